//! What a look at a whole journal has found.

/// What an examination of a journal has found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Whole records.
    pub records: u64,
    /// Lines before the last whole record that are no records.
    pub damaged: u64,
    /// Bytes behind the last whole record.
    pub torn_bytes: u64,
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
}
