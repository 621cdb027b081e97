//! The limits of a whole turn, and its statistics.

use std::time::{Duration, Instant};

use crate::limits;
use crate::protocol::event::TurnStats;
use crate::session::turn::{Fault, Turn};

use super::model::{Completion, FinishReason};

/// How far a turn is.
pub(super) struct Progress {
    pub(super) began: Instant,
    pub(super) first: Option<Instant>,
    /// How long the model has generated.
    generating: Duration,
    pub(super) stats: TurnStats,
    /// What it may write to the journal of its session.
    journal_bytes_max: u64,
}

impl Progress {
    /// Returns the progress of a turn that began at `began`.
    pub(super) fn new(began: Instant, journal_bytes_max: u64) -> Progress {
        let (generating, stats) = (Duration::ZERO, TurnStats::default());
        Progress { began, first: None, generating, stats, journal_bytes_max }
    }

    /// Fails if the turn has taken too long or has filled its part of the journal.
    pub(super) fn check(&self, turn: &Turn<'_>) -> Result<(), Fault> {
        if self.began.elapsed() >= limits::TURN_MAX {
            let minutes = limits::TURN_MAX.as_secs() / 60;
            let message = format!("the turn did not end within {minutes} minutes");
            return Err(Fault { code: "turn-timeout", message });
        }
        if turn.bytes() >= self.journal_bytes_max {
            let size = self.journal_bytes_max >> 20;
            let message =
                format!("the turn did not end within {size} MiB of its session's journal");
            return Err(Fault { code: "turn-too-long", message });
        }
        Ok(())
    }

    /// Adds the statistics of a completion.
    pub(super) fn add(&mut self, completion: &Completion) {
        self.stats.model.clone_from(&completion.model);
        // For a server that does not count: a token has about four characters.
        let estimate = (completion.text.len() as u64).div_ceil(4);
        let tokens = completion.completion_tokens.unwrap_or(estimate);
        self.stats.add_tokens(completion.prompt_tokens.unwrap_or(0), tokens);
        self.generating += completion.took;
    }

    /// Returns the statistics of the turn.
    pub(super) fn finish(mut self, finish: FinishReason) -> TurnStats {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let seconds = self.generating.as_secs_f64();
        let tokens = self.stats.completion_tokens;
        self.stats.tokens = tokens;
        // Tokens that arrive at the same time have no speed. The cast is exact up to 2^53 tokens.
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let speed = if seconds >= 0.001 { tokens as f64 / seconds } else { 0.0 };
        self.stats.speed = (speed * 10.0).round() / 10.0;
        self.stats.elapsed = millis(self.began.elapsed());
        self.stats.first_token_latency_ms = self.first.map(|first| millis(first - self.began));
        self.stats.finish_reason = match finish {
            FinishReason::Stop => None,
            FinishReason::Length => Some("length".to_owned()),
            FinishReason::Other(word) => Some(word),
        };
        self.stats
    }
}
