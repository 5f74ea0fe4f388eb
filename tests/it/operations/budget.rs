//! What work costs in round trips on a real mount with a real server: the kernel's own
//! LOOKUPs, GETATTRs and ACCESSes are in it, which `protocol::budget`, the same for
//! each request to the vfs, does not see.
//!
//! Each row is done [`TIMES`] times, one file after the other. CLOSEs that found no
//! OPEN to go along with are in it too; a round trip of the lease may be.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::fixtures::World;
use crate::fixtures::process::eventually;
use crate::fixtures::sys;

const TIMES: usize = 40;

/// The last CLOSEs, those that were on their way, the lease; and where a busy machine
/// lets a program pause, the question whether a name has been made by others meanwhile.
/// One round trip more for each is more than that.
const SLACK: u64 = 15;

struct Row {
    what: &'static str,
    /// Round trips for each.
    budget: u64,
    work: fn(&Path, usize) -> std::io::Result<()>,
}

const fn row(
    what: &'static str,
    budget: u64,
    work: fn(&Path, usize) -> std::io::Result<()>,
) -> Row {
    Row { what, budget, work }
}

fn old(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("old{number:03}"))
}

fn new(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("new{number:03}"))
}

fn log(dir: &Path) -> std::io::Result<File> {
    OpenOptions::new().append(true).open(dir.join("log"))
}

/// In this order: each row finds what those before it have left.
const TABLE: &[Row] = &[
    row("stat after readdir", 0, |dir, number| {
        fs::metadata(old(dir, number)).map(drop)
    }),
    row(
        "open, read, close of a small file whose name is known",
        1,
        |dir, number| fs::read(old(dir, number)).map(|data| assert_eq!(data, [7; 5000])),
    ),
    row("the same again, unchanged", 1, |dir, number| {
        fs::read(old(dir, number)).map(|data| assert_eq!(data, [7; 5000]))
    }),
    row("create, write 4 KiB, close", 2, |dir, number| {
        File::create_new(new(dir, number))?.write_all(&[1; 4096])
    }),
    row("stat of what was made here", 0, |dir, number| {
        fs::metadata(new(dir, number)).map(|meta| assert_eq!(meta.len(), 4096))
    }),
    row(
        "make an object file as an assembler does",
        4,
        |dir, number| {
            let name = dir.join(format!("{number:03}.o"));
            let mut file = OpenOptions::new();
            let file = file.create_new(true).read(true).write(true).open(name)?;
            // Each piece goes where a header that comes later will say, behind a look at
            // what is there: OPEN, the first piece and a READ of it, all others.
            for (offset, len) in [
                (272, 7),
                (64, 51),
                (120, 56),
                (280, 24),
                (176, 96),
                (392, 704),
            ] {
                file.write_all_at(&vec![3; len], offset)?;
                file.read_at(&mut [0; 8192], 0)?;
            }
            file.write_all_at(&[4; 64], 0)
        },
    ),
    row("open, append, fsync, close", 2, |dir, _| {
        let mut file = log(dir)?;
        file.write_all(&[2; 100])?;
        file.sync_all()
    }),
    row("open, lock, unlock, close", 3, |dir, _| {
        let file = log(dir)?;
        sys::record_lock(&file, libc::F_WRLCK)?;
        sys::record_lock(&file, libc::F_UNLCK)
    }),
    row("chmod", 1, |dir, number| {
        fs::set_permissions(new(dir, number), PermissionsExt::from_mode(0o600))
    }),
    row("rename to a free name", 1, |dir, number| {
        fs::rename(new(dir, number), new(dir, number).with_extension("renamed"))
    }),
    row(
        "rename over a file that nobody has open",
        1,
        |dir, number| fs::rename(new(dir, number).with_extension("renamed"), old(dir, number)),
    ),
    row("symlink", 1, |dir, number| symlink("log", new(dir, number))),
    row("readlink of what was made here", 0, |dir, number| {
        fs::read_link(new(dir, number)).map(|text| assert_eq!(text, Path::new("log")))
    }),
    row("unlink", 1, |dir, number| fs::remove_file(new(dir, number))),
    row("mkdir", 1, |dir, number| fs::create_dir(new(dir, number))),
    row("rmdir", 1, |dir, number| fs::remove_dir(new(dir, number))),
];

#[test]
fn nothing_costs_more_round_trips_than_its_budget() {
    // Attributes stay good for as long as this takes on a busy machine.
    let world = World::with(|request| request.option("actimeo=600"));
    let behind = world.behind("dir");
    fs::create_dir(&behind).expect("mkdir");
    fs::write(behind.join("log"), b"").expect("write");
    for number in 0..TIMES {
        fs::write(old(&behind, number), [7; 5000]).expect("write");
    }
    let dir = world.path("dir");
    assert_eq!(fs::read_dir(&dir).expect("readdir").count(), TIMES + 1);
    let mut bill = String::new();
    let mut kept = true;
    for row in TABLE {
        let closed = || {
            eventually(Duration::from_secs(5), || {
                (world.mount.stat("/gauges/closes_pending") == 0).then_some(())
            })
        };
        closed();
        let ((), spent) = world.mount.round_trips(|| {
            for number in 0..TIMES {
                (row.work)(&dir, number).unwrap_or_else(|error| panic!("{}: {error}", row.what));
            }
        });
        let most = row.budget * TIMES as u64 + SLACK;
        kept &= spent <= most;
        bill += &format!(
            "{:55} {:.2} of {}\n",
            row.what,
            spent as f64 / TIMES as f64,
            row.budget
        );
    }
    println!("{bill}");
    assert!(kept, "round trips of each:\n{bill}");
}
