//! What a look at a whole journal has found.

use crate::error::{Error, Kind};

use super::rules::SessionId;

/// What an examination of a journal has found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Whole records.
    pub records: u64,
    /// Lines before the last whole record that are no records.
    pub damaged: u64,
    /// Bytes behind the last whole record.
    pub torn_bytes: u64,
    /// How many of them belong to lines that have their end. What a crash cuts off has none: these
    /// were whole once, and may have been acknowledged.
    pub spoilt_bytes: u64,
    /// How many lines these are.
    pub spoilt: u64,
    /// Bytes up to the end of the last whole record.
    pub sound_bytes: u64,
    /// Bytes that the session's summary has counted and that the journal has no more.
    pub missing_bytes: u64,
}

impl Findings {
    /// The same beside a summary that has counted so many bytes. Summaries lag behind their
    /// journals and are never ahead of them.
    pub fn beside(mut self, counted: u64) -> Findings {
        self.missing_bytes = counted.saturating_sub(self.sound_bytes + self.torn_bytes);
        self
    }

    /// The same if there is a whole record.
    ///
    /// # Errors
    /// [`Kind::SessionDamaged`].
    pub fn some(self, id: &SessionId) -> Result<Findings, Error> {
        let because = match (self.records, self.torn_bytes) {
            (0, 0) => "its journal is empty or missing",
            (0, _) => "no record of its journal is whole",
            _ => return Ok(self),
        };
        let action = format!("read the session {}", id.as_str());
        let next_step = format!("to see what is wrong: opta sessions verify {}", id.as_str());
        Err(Error::cannot(Kind::SessionDamaged, action, because).with_next_step(next_step))
    }

    /// Lines that were records once.
    pub fn lost(&self) -> u64 {
        self.damaged + self.spoilt
    }

    /// Bytes of a record that was never finished.
    pub fn unfinished_bytes(&self) -> u64 {
        self.torn_bytes - self.spoilt_bytes
    }

    /// Whether something is lost, whoever may be writing now.
    pub fn is_damage(&self) -> bool {
        self.lost() > 0 || self.missing_bytes > 0
    }
}
