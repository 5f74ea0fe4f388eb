//! A request that runs a second time, because its session is gone with the reply of the first: what it
//! had done is not done to what has come to its names since.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use efs_fuse::vfs::types::{Errno, Ino};

use super::super::rig::{Mount, within};
use super::{MAKES_OR_REMOVES, private, settled, unpack};
use crate::peer::Action;

/// What is done with a name.
#[derive(Clone, Copy, Debug)]
enum Step {
    Make(&'static str),
    Remove(&'static str),
    Rename(&'static str, &'static str),
}

use Step::{Make, Remove, Rename};

async fn does(mount: &Mount, dir: Ino, number: usize, step: Step) {
    let done = match step {
        Make(name) => {
            let text = format!("new {number}");
            let made = unpack(mount, dir, name, text.as_bytes()).await;
            made.map(drop)
        }
        Remove(name) => mount.unlink(dir, name).await,
        Rename(from, to) => mount.rename((dir, from), (dir, to)).await,
    };
    done.unwrap_or_else(|error| panic!("{step:?}: {error}"));
}

/// What the names lead to by the steps.
fn expected(steps: &[Step]) -> BTreeMap<&'static str, String> {
    let old = |name| (name, format!("old {name}"));
    let mut names = BTreeMap::from(["f", "x", "y"].map(old));
    for (number, step) in steps.iter().enumerate() {
        match *step {
            Make(name) => drop(names.insert(name, format!("new {number}"))),
            Remove(name) => drop(names.remove(name)),
            Rename(from, to) => {
                let moved = names.remove(from).expect("a name");
                names.insert(to, moved);
            }
        }
    }
    names
}

/// Everything is asked for at once, and the session is gone when the `which`-th change of a name is
/// executed.
async fn is_done_once(steps: &[Step], which: usize) {
    let (mount, dir) = private().await;
    for name in ["f", "x", "y"] {
        let text = format!("old {name}");
        unpack(&mount, dir, name, text.as_bytes())
            .await
            .expect("a file");
    }
    settled(&mount).await;
    let peer = Arc::downgrade(&mount.peer);
    let seen = AtomicUsize::new(0);
    mount.peer.on_op(move |event| {
        let about = MAKES_OR_REMOVES.contains(&event.op);
        if !about || seen.fetch_add(1, Ordering::Relaxed) != which {
            return Action::Pass;
        }
        peer.upgrade().expect("it lives").destroy_sessions();
        Action::DropConnectionAfter
    });
    for (number, step) in steps.iter().enumerate() {
        does(&mount, dir, number, *step).await;
    }
    let told = within(600, mount.vfs.fsyncdir(dir)).await;
    assert_eq!(told.map_err(Errno::from), Ok(()), "{steps:?} {which}");
    assert_eq!(mount.vfs.late_errors().0, 0, "{steps:?} {which}");
    let fs = mount.peer.fs();
    let names = fs.list("/d").expect("names").into_iter();
    let read = |name: &String| fs.read_file(&format!("/d/{name}")).expect("data");
    let found = names.map(|name| {
        let text = String::from_utf8(read(&name)).expect("text");
        (name, text)
    });
    let expected = expected(steps).into_iter();
    let expected: BTreeMap<_, _> = expected
        .map(|(name, text)| (name.to_owned(), text))
        .collect();
    assert_eq!(
        found.collect::<BTreeMap<_, _>>(),
        expected,
        "{steps:?} {which}"
    );
    within(600, mount.vfs.settled()).await;
    assert_eq!(mount.peer.open_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_has_come_to_another_file_since_is_left_alone() {
    let all: [&[Step]; 9] = [
        // An editor saves, and keeps what was there.
        &[Make("t"), Rename("f", "f~"), Rename("t", "f")],
        &[Remove("x"), Rename("y", "x")],
        // A log is rotated.
        &[Rename("f", "f.1"), Make("f")],
        &[Rename("y", "x"), Make("y")],
        &[Make("n"), Remove("n"), Make("n")],
        &[Make("n"), Rename("n", "m"), Make("n")],
        &[Remove("x"), Make("x")],
        &[Remove("x"), Make("n"), Rename("n", "x")],
        &[Rename("x", "m"), Rename("y", "x"), Rename("m", "y")],
    ];
    for steps in all {
        for which in 0..steps.len() {
            is_done_once(steps, which).await;
        }
    }
}
