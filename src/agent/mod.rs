//! The agent that answers turns: a model, the tools it may use, and the permissions for them.

mod base_url;
mod clip;
pub mod endpoint;
mod flaw;
mod history;
mod loops;
pub mod model;
mod permissions;
mod prompt;
mod tool_call;
mod tool_runner;
mod tools;
mod turn_loop;

pub use tools::{command, preview, proposal};
pub use turn_loop::Assistant;

/// Returns whether `name` is the name of a tool, or its alias.
pub fn has_tool(name: &str) -> bool {
    tools::Tool::named(name).is_some()
}

#[cfg(test)]
mod tests;
