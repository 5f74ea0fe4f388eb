//! What `du` and `rm` have in common: finding what they are to work on, a
//! session of their own, and showing how far they are.

use std::ffi::OsStr;
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::arguments::Tree;
use super::defaults;
use super::exit::{self, Failure};
use super::format::{bytes, count};
use super::mount::{find_device, read_lists};
use crate::mount::found::{Found, effective_user};
use crate::mount::launch::Remarks;
use crate::mount::mountinfo::{Mount, MountTable};
use crate::mount::registry::Entry;
use crate::mount::{MountError, MountRequest, connecting, launch};
use crate::nfs::Client;
use crate::quoting;
use crate::rpc::auth::Credential;
use crate::telemetry::Metrics;
use crate::tree::Top;
use crate::tree::progress::Progress;

/// How long the server may take over our farewell.
const FAREWELL: Duration = Duration::from_secs(2);

/// A tree on a server, and how to get there.
#[derive(Debug)]
pub(super) struct TreeTarget {
    /// Connects to the directory that holds the tree.
    request: MountRequest,
    /// The name in that directory; empty for the root of the file system.
    pub(super) name: Vec<u8>,
    /// As the user knows it, byte by byte.
    pub(super) shown: Vec<u8>,
    /// What is mounted in the tree on this machine.
    pub(super) mounted_below: Vec<PathBuf>,
}

impl TreeTarget {
    /// What `asked` names: a device, or a path in a mount of ours.
    pub(super) fn find(asked: &Tree) -> Result<Self, Failure> {
        let text = asked.target.as_bytes();
        if text.starts_with(b"/") || text.starts_with(b".") {
            return Self::of_path(Path::new(&asked.target), &asked.options);
        }
        let device = asked
            .target
            .to_str()
            .ok_or_else(|| Failure::usage("reading the device", "it is not UTF-8"))?;
        Self::of_device(device, &defaults::before(&asked.options)?, Vec::new())
    }

    fn of_device(
        device: &str,
        options: &[String],
        mounted_below: Vec<PathBuf>,
    ) -> Result<Self, Failure> {
        let (options, _) = read_lists(options, false)?;
        let mut device = find_device(device, &options)?;
        let shown = device.spec.clone().into_bytes();
        let (parent, name) = device.path.rsplit_once('/').unwrap_or(("", ""));
        let name = name.as_bytes().to_vec();
        device.path = match parent {
            "" => "/".to_owned(),
            parent => parent.to_owned(),
        };
        Ok(Self {
            request: MountRequest {
                device,
                mountpoint: "(no mount)".into(),
                options,
                written: Vec::new(),
                origins: Vec::new(),
                foreground: true,
                mount_namespace: None,
                remarks: Remarks::default(),
            },
            name,
            shown,
            mounted_below,
        })
    }

    fn of_path(path: &Path, more: &[String]) -> Result<Self, Failure> {
        let wrong = |why: String| {
            Failure::usage(format!("finding {}", quoting::path(path)), why)
                .remedy("a directory in a mount of efs-fuse, or DEVICE:/dir")
        };
        let canonical = without_last_link(path).map_err(|why| wrong(why.to_string()))?;
        let table =
            MountTable::read().map_err(|why| Failure::system("reading the mount table", why))?;
        let mount = table
            .containing(&canonical)
            .filter(|mount| mount.is_ours())
            .ok_or_else(|| wrong("it is not in a mount of efs-fuse".to_owned()))?;
        let entry = written_of(mount, &table).map_err(&wrong)?;
        let inside = canonical
            .strip_prefix(&mount.mountpoint)
            .unwrap_or_else(|_| Path::new(""));
        let root = mount.root.strip_prefix("/").unwrap_or(&mount.root);
        let below = Path::new("/").join(root).join(inside);
        let below = below
            .to_str()
            .ok_or_else(|| wrong("its name is not UTF-8".to_owned()))?;
        let device = format!("{}{below}", entry.device.trim_end_matches('/'));
        let mut options = entry.options;
        options.extend_from_slice(more);
        let mounted_below = table
            .below(&canonical)
            .map(|mount| mount.mountpoint.clone())
            .collect();
        let mut target = Self::of_device(&device, &options, mounted_below)?;
        target.shown = path.as_os_str().as_bytes().to_vec();
        Ok(target)
    }
}

/// What this user's own daemon wrote about a mount: also for a bind mount, which nobody
/// registers. What is worked on must not be another user's to say, least of all for root;
/// and what is written must be about the mount that the kernel shows, not about another
/// that was at the place.
fn written_of(mount: &Mount, table: &MountTable) -> Result<Entry, String> {
    if mount.user() != Some(effective_user()) {
        let user = mount.user().map_or_else(
            || "an unknown user".to_owned(),
            |user| format!("user {user}"),
        );
        return Err(format!(
            "its mount is that of {user}, who alone knows what is mounted there"
        ));
    }
    let same = |other: &&Mount| (other.major, other.minor) == (mount.major, mount.minor);
    let mut daemons = table.ours().filter(same).filter_map(Found::of);
    let entry = daemons.find_map(|found| found.written().cloned());
    let entry = entry.ok_or("the daemon of its mount is gone")?;
    match entry.device == mount.source {
        true => Ok(entry),
        false => Err(format!(
            "what is known of its mount is of another one, of {}",
            quoting::plain(&entry.device)
        )),
    }
}

/// The canonical form of a path whose last component is not followed if it is
/// a symbolic link: that is what is to be removed, not what it leads to.
fn without_last_link(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    match absolute.components().next_back() {
        Some(Component::Normal(name)) if !ends_in_dots(path) => {
            let parent = absolute.parent().unwrap_or_else(|| Path::new("/"));
            Ok(parent.canonicalize()?.join(name))
        }
        _ => absolute.canonicalize(),
    }
}

/// `dir/.`, `dir/..` and `dir/` name the directory itself.
fn ends_in_dots(path: &Path) -> bool {
    let text = path.as_os_str().as_bytes();
    let last = text
        .rsplit(|&byte| byte == b'/')
        .next()
        .map(OsStr::from_bytes);
    last.is_none_or(|last| last.is_empty() || last == "." || last == "..")
}

/// Connects, finds the tree, runs `work` on it and leaves the server. While it
/// works a line on the terminal shows how far it is; Ctrl-C stops it.
pub(super) fn run<T, W>(
    target: &TreeTarget,
    progress: &Arc<Progress>,
    line: fn(&Progress) -> String,
    work: impl FnOnce(Arc<Client>, Arc<Credential>, Top) -> W,
) -> Result<T, Failure>
where
    W: Future<Output = Result<T, Failure>>,
{
    launch::confine(&target.request.device, &target.request.options.server)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|why| Failure::system("starting the runtime", why))?;
    runtime.block_on(async {
        let metrics = Metrics::new();
        let client = connecting::connect_only(&target.request, &metrics).await?;
        let cred = Credential::of_process();
        let found = Top::find(&client, &cred, &target.name).await;
        let outcome = match found {
            Ok(Some(top)) => {
                let shown = show(Arc::clone(progress), line);
                let outcome = stoppable(progress, work(Arc::clone(&client), cred, top)).await;
                shown.end();
                outcome
            }
            Ok(None) => Err(MountError::mount(
                format_args!("looking for {}", quoting::name(&target.shown)),
                "there is no such file or directory on the server",
            )
            .into()),
            Err(error) => Err(MountError::mount(
                format_args!("looking for {}", quoting::name(&target.shown)),
                error,
            )
            .into()),
        };
        client.shut_down(FAREWELL).await;
        outcome
    })
}

/// The first signal stops the walk, which then says how far it came.
async fn stoppable<T>(progress: &Progress, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => return done,
        _ = tokio::signal::ctrl_c() => progress.stop(),
    }
    work.await
}

/// The line on the terminal.
struct Shown(Option<tokio::task::JoinHandle<()>>);

impl Shown {
    fn end(self) {
        if let Some(task) = self.0 {
            task.abort();
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn show(progress: Arc<Progress>, line: fn(&Progress) -> String) -> Shown {
    if !io::stderr().is_terminal() {
        return Shown(None);
    }
    Shown(Some(tokio::spawn(async move {
        let begun = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            // A terminal that is gone is no reason to stop.
            let _ = write!(
                io::stderr(),
                "\r{} {} {:.0} s\x1b[K",
                bar(&progress),
                line(&progress),
                begun.elapsed().as_secs_f64()
            );
        }
    })))
}

/// Directories done, of those found so far.
pub(super) fn bar(progress: &Progress) -> String {
    const WIDTH: u64 = 20;
    let found = progress.directories.load(Relaxed).max(1);
    let done = progress.finished.load(Relaxed).min(found);
    let full = (done * WIDTH / found) as usize;
    format!(
        "[{}{}]",
        "#".repeat(full),
        ".".repeat(WIDTH as usize - full)
    )
}

/// What was found, for the line on the terminal.
pub(super) fn found_line(progress: &Progress) -> String {
    format!(
        "{} files, {} directories, {}",
        count(progress.files.load(Relaxed)),
        count(progress.directories.load(Relaxed)),
        bytes(progress.bytes.load(Relaxed)),
    )
}

/// The errors of a walk, each on a line; a failure if there are any, or if it
/// was stopped.
pub(super) fn verdict(progress: &Progress, what: &str, shown: &[u8]) -> Result<(), Failure> {
    let (number, kept) = progress.errors();
    for error in &kept {
        exit::warn(error);
    }
    let failed = |why: String| -> Result<(), Failure> {
        Err(MountError::mount(format_args!("{what} {}", quoting::name(shown)), why).into())
    };
    match number {
        0 if progress.stopped() => failed("stopped by a signal before it was done".to_owned()),
        0 => Ok(()),
        1 => failed("one thing in it failed, see above".to_owned()),
        n => failed(format!("{} things in it failed, see above", count(n))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_name_of_a_path_is_not_followed() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let dir = dir.path().canonicalize()?;
        std::fs::create_dir(dir.join("real"))?;
        std::os::unix::fs::symlink("real", dir.join("link"))?;
        std::os::unix::fs::symlink("link", dir.join("real/inner"))?;
        assert_eq!(without_last_link(&dir.join("link"))?, dir.join("link"));
        assert_eq!(
            without_last_link(&dir.join("link/inner"))?,
            dir.join("real/inner")
        );
        assert_eq!(without_last_link(&dir.join("link/."))?, dir.join("real"));
        assert_eq!(without_last_link(&dir.join("real/.."))?, dir);
        Ok(())
    }

    #[test]
    fn a_tree_of_a_device_is_found_from_the_directory_that_holds_it() {
        let target = |device: &str| {
            TreeTarget::of_device(device, &[], Vec::new()).map(|target| {
                (
                    target.request.device.path,
                    String::from_utf8(target.name).unwrap_or_default(),
                )
            })
        };
        let of = |path: &str, name: &str| Ok((path.to_owned(), name.to_owned()));
        assert_eq!(target("h:/a/b/c"), of("/a/b", "c"));
        assert_eq!(target("h:/a"), of("/", "a"));
        assert_eq!(target("h"), of("/", ""));
    }

    #[test]
    fn what_is_not_in_a_mount_of_ours_is_refused() {
        for path in ["/", "/proc/self", "/nonexistent/x"] {
            let refused = TreeTarget::of_path(Path::new(path), &[]);
            assert!(refused.is_err_and(|why| why.status() == 1), "{path}");
        }
    }
}
