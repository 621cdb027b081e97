//! Sessions: what they are, how they are kept, and the life of their turns.

mod crc;
pub mod desk;
pub mod event;
pub mod findings;
pub mod journal;
pub mod rules;
pub mod runtime;
pub mod store;
pub mod transcript;
pub mod turn;
pub mod wake;

#[cfg(test)]
mod tests;
