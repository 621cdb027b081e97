//! The agent that answers turns: a model, the tools it may use, and the permissions for them.

mod clip;
pub mod endpoint;
mod flaw;
mod history;
mod loops;
pub mod model;
mod permissions;
mod progress;
mod prompt;
mod tool_call;
mod tool_runner;
mod tools;
mod turn_loop;
mod workspaces;

pub use tools::{command, preview, proposal};
pub use turn_loop::Assistant;

/// Returns the names of all tools, and their aliases.
pub fn tool_names() -> impl Iterator<Item = &'static str> {
    tools::TOOLS.iter().flat_map(|tool| [tool.name, tool.alias])
}

/// Returns whether the tool of this name runs commands.
pub fn runs_commands(name: &str) -> bool {
    tools::Tool::named(name).is_some_and(|tool| tool.effect == tools::Effect::Runs)
}

#[cfg(test)]
mod tests;
