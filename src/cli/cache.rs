//! `efs-fuse cache`: the directory of a disk cache, without its mounts.

use serde_json::json;

use super::arguments::{CacheAction, DiskCache};
use super::exit::{self, Failure};
use super::format::{bytes, count};
use crate::disk_cache::inspect::{self, Contents};
use crate::quoting;

pub(super) fn run(asked: &DiskCache) -> Result<(), Failure> {
    match asked.action {
        CacheAction::Status => status(asked),
        CacheAction::Verify => verify(asked),
        CacheAction::Clear => clear(asked),
    }
}

fn failed(what: &str, asked: &DiskCache, why: &str) -> Failure {
    let what = format!("{what} the cache {}", quoting::path(&asked.dir));
    Failure::system(what, quoting::plain(why)).remedy("the directory that -o cache= has, as root")
}

fn status(asked: &DiskCache) -> Result<(), Failure> {
    let found = inspect::contents(&asked.dir).map_err(|why| failed("reading", asked, &why))?;
    let Contents {
        slices,
        bytes: taken,
        file_systems,
        free,
        total,
    } = found;
    exit::print(&match asked.json {
        true => format!(
            "{}\n",
            json!({
                "files": slices,
                "bytes": taken,
                "file_systems": file_systems,
                "disk_free": free,
                "disk_total": total,
            })
        ),
        false => format!(
            "{} in {} files, of {file_systems} file systems; {} of {} of the disk are free\n",
            bytes(taken),
            count(slices),
            bytes(free),
            bytes(total),
        ),
    })
}

fn verify(asked: &DiskCache) -> Result<(), Failure> {
    let found = inspect::verify(&asked.dir).map_err(|why| failed("checking", asked, &why))?;
    exit::print(&match asked.json {
        true => format!(
            "{}\n",
            json!({
                "good": found.good,
                "damaged": found.damaged,
                "encrypted": found.encrypted,
                "removed_files": found.removed,
            })
        ),
        false => {
            let encrypted = match found.encrypted {
                0 => String::new(),
                some => format!(
                    "; {} are encrypted, and only their daemon can check them",
                    count(some)
                ),
            };
            format!(
                "{} blocks are good, {} are damaged ({} files were removed){encrypted}\n",
                count(found.good),
                count(found.damaged),
                count(found.removed),
            )
        }
    })
}

fn clear(asked: &DiskCache) -> Result<(), Failure> {
    let before = inspect::clear(&asked.dir).map_err(|why| failed("emptying", asked, &why))?;
    exit::print(&match asked.json {
        true => format!(
            "{}\n",
            json!({"removed_files": before.slices, "removed_bytes": before.bytes})
        ),
        false => format!(
            "{} files were removed, {}\n",
            count(before.slices),
            bytes(before.bytes)
        ),
    })
}
