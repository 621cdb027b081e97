//! The codes of faults of a model server. Others act on some of them: the turn asks again, the
//! checks of `opta doctor` name what mends it.

/// A setting names no server that can be asked.
pub const CONFIG: &str = "model-config";
/// Nothing answers there.
pub const UNREACHABLE: &str = "model-unreachable";
/// The key is missing or wrong.
pub const UNAUTHORIZED: &str = "model-unauthorized";
/// It has been asked again as often as patience says.
pub const BUSY: &str = "model-busy";
/// It fails in any other way.
pub const ERROR: &str = "model-error";
/// Its model has said what it cannot read itself: a turn may demand the call once more.
pub const MALFORMED: &str = "model-malformed";
/// It is silent for too long.
pub const TIMEOUT: &str = "model-timeout";
/// The connection has ended too soon.
pub const DISCONNECTED: &str = "model-disconnected";
/// More than the model can be told: a turn tries again with less.
pub const TOO_LONG: &str = "context-too-long";
