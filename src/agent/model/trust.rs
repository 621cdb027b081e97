//! Whether a model server that was found, not set, may be used: any user of this machine can listen
//! on its port, and would get what the model is told, and say what its tools do.

use std::io;

use crate::http::{self, ClientConnection};
use crate::sys::owner::FIRST_PERSON;
use crate::{limits, sys};

/// Returns the name of the user whose server is at the other end.
///
/// # Errors
/// `PermissionDenied` if that is another person, or cannot be told.
pub fn owner_of(connection: &ClientConnection<'_>) -> io::Result<String> {
    let refuse = |why: String| io::Error::new(io::ErrorKind::PermissionDenied, why);
    let unknown = || refuse("whose server it is cannot be told".to_owned());
    let owner = match http::peer_owner(connection, limits::OWNER_MAX) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
        owner => owner.ok().flatten().ok_or_else(unknown)?,
    };
    let name = sys::name_of_user(owner).unwrap_or_else(|| format!("user {owner}"));
    if owner == sys::effective_user() || owner < FIRST_PERSON {
        Ok(name)
    } else {
        Err(refuse(format!("the server belongs to another user, {name}")))
    }
}
