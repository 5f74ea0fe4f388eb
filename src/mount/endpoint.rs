//! Where metrics are served, of a mount or of the machine: the address, and whose a socket is.

use std::io;
use std::path::Path;

use super::registry::Registry;
use crate::privilege;
use crate::quoting;
use crate::telemetry::serve::{Address, Bound, bind};

/// Binds the address. A socket that a process of this user had bound there, and that was
/// left when it was killed, is replaced; nothing else is.
///
/// # Errors
/// It is taken, not ours to take, or does not exist here.
pub fn bound(address: &Address) -> io::Result<Bound> {
    let registry = Registry::of_user();
    let is_ours = |path: &Path, socket: &_| registry.has_claimed(path, socket);
    let bound = privilege::binding(|| bind(address, is_ours))?;
    if let Some((path, socket)) = bound.socket()
        && let Err(why) = registry.claim(path, socket)
    {
        tracing::warn!(
            "should this process be killed, {} is in the way of the next one: {why}",
            quoting::path(path)
        );
    }
    Ok(bound)
}
