//! `efs-fuse umount`.

use super::arguments::Umount;
use super::exit::{self, Failure};
use crate::mount::unmount::{self, Mode};

pub(super) fn run(asked: &Umount) -> Result<(), Failure> {
    let mode = match (asked.force, asked.lazy) {
        (true, _) => Mode::Force,
        (_, true) => Mode::Lazy,
        _ => Mode::Plain,
    };
    let warnings = unmount::unmount(&asked.mountpoint, mode)?;
    warnings.iter().for_each(|warning| exit::warn(warning));
    Ok(())
}
