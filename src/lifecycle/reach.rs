//! Asking the daemon for something on a command's own account. One is made to run first; if it dies
//! or is replaced in that very moment, the one that runs next is asked, once.

use crate::client::{self, Failure};
use crate::config::Config;
use crate::error::{Error, Kind};
use crate::lifecycle::guardian::{self, Caller, Ensured, How};
use crate::lifecycle::status;
use crate::limits;
use crate::paths::Paths;
use crate::protocol;
use crate::state::DaemonInfo;

/// Calls the daemon. What is called must be safe to repeat: an answer may be lost on its way.
///
/// `tell` is told of each daemon that is called, before it is.
///
/// # Errors
/// As [`guardian::ensure_running`]; [`Kind::VersionSkew`] if the daemon is of a version that speaks
/// another language; whatever the call says.
pub fn reach<T>(
    paths: &Paths,
    config: &Config,
    mut tell: impl FnMut(&Ensured),
    mut call: impl FnMut(&DaemonInfo) -> Result<T, Failure>,
) -> Result<T, Error> {
    let first = guardian::ensure_running(paths, config, Caller::Command)?;
    let mut ask = |ensured: &Ensured| {
        check_protocol(&ensured.info).map_err(Failure::Final)?;
        tell(ensured);
        call(&ensured.info)
    };
    match ask(&first) {
        Ok(answer) => return Ok(answer),
        Err(Failure::Final(error)) => return Err(error),
        Err(Failure::Lost(_)) => {}
    }
    let second = match first.how {
        How::AlreadyRunning => guardian::ensure_running(paths, config, Caller::Command)?,
        // One start a command is enough: the next might be lost as well, and the one after it.
        How::Started(_) => Ensured { info: status::running(paths)?, how: How::AlreadyRunning },
    };
    ask(&second).map_err(|failure| match failure {
        Failure::Lost(error) | Failure::Final(error) => error,
    })
}

/// A daemon of another version is talked to if it speaks the same protocol.
fn check_protocol(info: &DaemonInfo) -> Result<(), Error> {
    if info.version == env!("CARGO_PKG_VERSION") {
        return Ok(());
    }
    match client::health(info, limits::HEALTH_MAX) {
        Ok(health) if health.version != protocol::PROTOCOL_VERSION => {
            let (theirs, ours) = (&info.version, env!("CARGO_PKG_VERSION"));
            let reason = format!(
                "it is opta {theirs} (protocol {}), this is opta {ours} (protocol {})",
                health.version,
                protocol::PROTOCOL_VERSION
            );
            Err(Error::cannot(Kind::VersionSkew, "talk to the daemon", reason)
                .with_next_step("to move it to this version: opta daemon restart"))
        }
        // Why it does not answer, the call itself will say.
        _ => Ok(()),
    }
}
