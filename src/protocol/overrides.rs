//! The settings of a turn in the form of older clients.

use nanoserde::{DeJson, SerJson};

/// Settings of one turn, as older clients send them.
#[derive(Clone, Default, DeJson, SerJson)]
pub struct Overrides {
    pub model: Option<String>,
    pub provider: Option<String>,
    /// Whether the turn may do everything without a permission request.
    pub dangerous: Option<bool>,
    /// Whether it may write and edit files without one.
    pub auto: Option<bool>,
    #[nserde(rename = "noCommit")]
    pub no_commit: Option<bool>,
    #[nserde(rename = "noCheckpoints")]
    pub no_checkpoints: Option<bool>,
    pub format: Option<String>,
    #[nserde(rename = "autonomyMode")]
    pub autonomy_mode: Option<String>,
    #[nserde(rename = "autonomyLevel")]
    pub autonomy_level: Option<u64>,
}
