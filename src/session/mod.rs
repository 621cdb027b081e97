//! Sessions: their journals, what is derived from these, and the turns that write to them.

pub mod dispatch;
pub mod feed;
pub mod journal;
pub mod reader;
pub mod record;
pub mod replay;
pub mod runtime;
mod said;
pub mod search;
#[expect(clippy::module_inception, reason = "the module is about sessions, the file about one")]
pub mod session;
pub mod store;
mod summaries;
mod tail;
pub mod transcript;
pub mod turn;
pub mod wake;
pub mod watchers;

#[cfg(test)]
mod tests;
