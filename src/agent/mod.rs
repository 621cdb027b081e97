//! What answers turns.

mod address;
pub mod find;
pub mod model;

use crate::session::desk::Turn;
use crate::session::turn::{Agent, Fault, Stats};

/// Answers no turn: there is no model to ask. Every turn ends by saying so.
pub struct Nobody;

impl Agent for Nobody {
    fn run(&self, _turn: &Turn<'_>) -> Result<Stats, Fault> {
        let message = "no model server is known: this daemon keeps sessions and cannot answer yet";
        Err(Fault { code: "model-unreachable", message: message.to_owned() })
    }
}
