//! Puts the layers together for one mount.

use std::sync::Arc;

use super::daemon::Ready;
use super::error::MountError;
use super::launch::MountRequest;
use crate::telemetry::Metrics;

/// Mounts, serves until the mount ends, and cleans up.
///
/// # Errors
/// The mount did not come about, or ended in a way the user should know of.
pub async fn run(
    request: MountRequest,
    _metrics: Arc<Metrics>,
    _ready: Ready,
) -> Result<(), MountError> {
    Err(MountError::mount(
        format_args!("mounting {}", request.device),
        "this build has no file system in it",
    ))
}
