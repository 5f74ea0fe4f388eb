//! `efs-fuse rm`.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tokio::sync::mpsc;

use super::arguments::Rm;
use super::exit::{self, Failure};
use super::format::{bytes, count};
use super::names::Names;
use super::tree::{self, TreeTarget};
use crate::mount::MountError;
use crate::quoting;
use crate::tree::progress::Progress;
use crate::tree::remove::{Wanted, remove};

/// Names that are listed and not yet printed.
const LISTED_AHEAD: usize = 4096;

pub(super) fn run(asked: &Rm) -> Result<(), Failure> {
    let target = TreeTarget::find(&asked.tree)?;
    refuse(&target)?;
    let progress = Arc::new(Progress::default());
    let begun = Instant::now();
    let walk = |client, cred, top: crate::tree::Top| {
        let progress = Arc::clone(&progress);
        let (path, shown) = (
            target.shown.clone(),
            quoting::name(&target.shown).to_string(),
        );
        async move {
            if top.is_directory() && !asked.recursive {
                return Err(
                    Failure::usage(format_args!("removing {shown}"), "it is a directory")
                        .remedy("efs-fuse rm -r"),
                );
            }
            let (only_list, printing) = if asked.yes {
                (None, None)
            } else {
                let (names, to_print) = mpsc::channel(LISTED_AHEAD);
                let how = (!asked.tree.json).then(|| Names::on_stdout(asked.tree.null));
                // What is in the tree is named from the tree on: all but its own name is known.
                let before = directory_of(&path).to_vec();
                let printing = tokio::task::spawn_blocking(move || print(to_print, &before, how));
                (Some(names), Some(printing))
            };
            let wanted = Wanted {
                before: asked.older_than.map(cut),
                only_list,
            };
            let gone = remove(client, cred, &top, wanted, progress).await;
            if let Some(printing) = printing {
                // It ends when the last sender is gone.
                let _ = printing.await;
            }
            gone.map_err(|error| MountError::mount(format_args!("removing {shown}"), error).into())
        }
    };
    let gone = tree::run(
        &target,
        &progress,
        if asked.yes {
            removed_line
        } else {
            tree::found_line
        },
        walk,
    )?;
    report(asked, &target, &progress, gone, begun.elapsed())?;
    tree::verdict(&progress, "removing", &target.shown)
}

/// What must not be removed, whoever asks.
fn refuse(target: &TreeTarget) -> Result<(), Failure> {
    let refused = |why: String, remedy: &str| {
        let failure = Failure::usage(
            format_args!("removing {}", quoting::name(&target.shown)),
            why,
        );
        Err(failure.remedy(remedy))
    };
    if target.name.is_empty() {
        let why = "it is the root of the file system".to_owned();
        return refused(why, "to name a directory in it");
    }
    if let Some(below) = target.mounted_below.first() {
        let why = format!("something is mounted in it, on {}", quoting::path(below));
        return refused(why, "to unmount that first");
    }
    Ok(())
}

/// Now less an age, in seconds since 1970.
fn cut(age: Duration) -> i64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX) - i64::try_from(age.as_secs()).unwrap_or(0)
}

/// Prints names; with no way to, it only takes them.
fn print(mut names: mpsc::Receiver<Vec<u8>>, before: &[u8], mut how: Option<Names>) {
    let mut out = io::BufWriter::new(io::stdout().lock());
    while let Some(name) = names.blocking_recv() {
        if let Some(names) = how {
            let line = names.ended(&[before, &name].concat());
            // A reader that has gone away (`| head`) still gets its status.
            how = out.write_all(&line).is_ok().then_some(names);
        }
    }
}

/// The beginning of a path up to its last name.
fn directory_of(path: &[u8]) -> &[u8] {
    let slashes = path.iter().rev().take_while(|&&byte| byte == b'/').count();
    let named = &path[..path.len() - slashes];
    let end = named.iter().rposition(|&byte| byte == b'/');
    &path[..end.map_or(0, |at| at + 1)]
}

fn removed_line(progress: &Progress) -> String {
    format!(
        "{} removed, {} freed",
        count(progress.removed.load(Relaxed)),
        bytes(progress.bytes.load(Relaxed)),
    )
}

fn report(
    asked: &Rm,
    target: &TreeTarget,
    progress: &Progress,
    gone: bool,
    took: Duration,
) -> Result<(), Failure> {
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Relaxed);
    if asked.tree.json {
        let report = json!({
            "path": String::from_utf8_lossy(&target.shown),
            "dry_run": !asked.yes,
            "files": load(&progress.files),
            "directories": load(&progress.directories),
            "bytes": load(&progress.bytes),
            "removed": load(&progress.removed),
            "kept": load(&progress.kept),
            "errors": progress.errors().0,
            "complete": asked.yes && gone,
            "seconds": took.as_secs_f64(),
        });
        return exit::print(&format!("{report}\n"));
    }
    let kept = match load(&progress.kept) {
        0 => String::new(),
        kept => format!(", {} too young and kept", count(kept)),
    };
    exit::note(&if asked.yes {
        format!(
            "{} removed, {} freed{kept}, in {:.1} s",
            count(load(&progress.removed)),
            bytes(load(&progress.bytes)),
            took.as_secs_f64(),
        )
    } else {
        format!(
            "nothing was removed; --yes removes {} files and {} directories, {}{kept}",
            count(load(&progress.files)),
            count(load(&progress.directories)),
            bytes(load(&progress.bytes)),
        )
    });
    Ok(())
}
