//! `efs-fuse take-over`: what a keeper starts, and nobody else.

use super::arguments::TakeOver;
use super::exit::Failure;
use super::mount::{find_device, read_lists};
use super::option_list::quoted;
use crate::mount::handover::take::Circumstances;
use crate::mount::handover::{HandedOver, record};
use crate::mount::keeper::{Died, Inherited, KeeperLink};
use crate::mount::launch::Remarks;
use crate::mount::{MountRequest, launch};
use crate::quoting;

pub(super) fn run(asked: &TakeOver) -> Result<(), Failure> {
    let what = format!("taking over {}", quoting::path(&asked.mountpoint));
    let inherited = Inherited::take().map_err(|_| {
        Failure::usage(&what, "it is started by the keeper of a mount")
            .remedy("efs-fuse upgrade MOUNTPOINT")
    })?;
    let why = Circumstances {
        failed: asked.failed.clone().filter(|failed| !failed.is_empty()),
        died: asked.died.as_deref().and_then(Died::parse),
    };
    let outcome = read(&what, &inherited, why.died);
    let (request, state) = outcome.inspect_err(|why| tell(&inherited.link, why))?;
    let link = inherited.link.clone();
    let taken = launch::take_over(request, inherited, state, why);
    taken
        .map_err(Failure::from)
        .inspect_err(|why| tell(&link, why))
}

/// What the last daemon has left, and the mount that it means.
fn read(
    what: &str,
    inherited: &Inherited,
    died: Option<Died>,
) -> Result<(MountRequest, HandedOver), Failure> {
    let state = record::read(&inherited.state, died).map_err(|why| Failure::system(what, why))?;
    let mounted = &state.mounted;
    let lists: Vec<_> = mounted
        .options
        .iter()
        .map(|option| quoted(option))
        .collect();
    // What a newer program does not know any more is no reason to lose the mount.
    let (options, _) = read_lists(&lists, true)?;
    let device = find_device(&mounted.device, &options)?;
    let request = MountRequest {
        device,
        mountpoint: mounted.mountpoint(),
        options,
        written: mounted.options.clone(),
        origins: mounted.origins.clone(),
        foreground: mounted.foreground,
        mount_namespace: mounted.mount_namespace(),
        remarks: Remarks::default(),
    };
    Ok((request, state))
}

/// The former program, which takes over then, is told why this one cannot.
fn tell(keeper: &KeeperLink, why: &Failure) {
    // Without a keeper there is nobody to tell.
    let _ = keeper.failed(&why.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_with_commas_is_read_as_it_was_written() {
        assert_eq!(quoted("ro"), "ro");
        assert_eq!(quoted("log=/var/log/a"), "log=/var/log/a");
        assert_eq!(quoted("log=/a,b"), "log=\"/a,b\"");
        let (options, _) =
            read_lists(&[quoted("log=/a,b=c")], false).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(options.log_file.as_deref(), Some("/a,b=c".as_ref()));
    }
}
