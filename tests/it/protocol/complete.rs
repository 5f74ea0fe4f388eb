//! `lookupcache=complete`: a directory that is known whole answers for every name, within its time
//! and until it is known to have moved.

use std::sync::Arc;

use efs_fuse::vfs::VfsConfig;
use efs_fuse::vfs::types::{Ino, MissingNames, ROOT_INO};

use super::rig::{Mount, connect, default_timeouts, nocto, seconds};
use crate::peer::{Peer, PeerConfig};

fn complete() -> VfsConfig {
    VfsConfig {
        missing_names: MissingNames::AllOthers,
        close_to_open: true,
        ..nocto(default_timeouts())
    }
}

/// A mount that knows `/dir` whole, which has `a` and `b`.
async fn known() -> (Mount, Ino) {
    let peer = Peer::new(PeerConfig::default());
    peer.fs().mkdir("/dir").unwrap();
    peer.fs().write_file("/dir/a", b"a").unwrap();
    peer.fs().write_file("/dir/b", b"b").unwrap();
    let client = connect(&peer, "one").await;
    let mount = Mount::behaving(&client, &peer, complete());
    let dir = mount.walk("dir").await.unwrap();
    mount.list(dir, true).await.unwrap();
    peer.clear_log();
    (mount, dir)
}

async fn has(mount: &Mount, dir: Ino, name: &str) -> bool {
    mount.lookup(dir, name).await.unwrap().is_some()
}

fn asked(mount: &Mount) -> u64 {
    let spent = mount.peer.round_trips();
    mount.peer.clear_log();
    spent
}

type Change = fn(&Arc<Peer>);

/// What another host does to names of a directory.
fn changes() -> [(&'static str, Change); 4] {
    [
        ("made", |peer| {
            peer.fs().write_file("/dir/new", b"n").unwrap()
        }),
        ("linked", |peer| {
            peer.fs().link("/dir/a", "/dir/new").unwrap()
        }),
        ("moved", |peer| {
            peer.fs().rename("/dir/b", "/dir/new").unwrap()
        }),
        ("moved in", |peer| {
            peer.fs().write_file("/x", b"x").unwrap();
            peer.fs().rename("/x", "/dir/new").unwrap();
        }),
    ]
}

#[tokio::test(start_paused = true)]
async fn what_another_host_has_made_is_missing_within_the_time_of_the_directory_and_no_longer() {
    for (what, change) in changes() {
        let (mount, dir) = known().await;
        change(&mount.peer);
        assert!(!has(&mount, dir, "new").await, "{what}");
        assert_eq!(asked(&mount), 0, "{what}");
        seconds(29).await;
        assert!(!has(&mount, dir, "new").await, "{what}");
        seconds(32).await;
        assert!(has(&mount, dir, "new").await, "{what}");
        assert_eq!(has(&mount, dir, "b").await, what != "moved");
    }
}

#[tokio::test(start_paused = true)]
async fn what_another_host_has_made_is_found_as_soon_as_the_directory_is_known_to_have_moved() {
    for (what, change) in changes() {
        for way in ["a change of ours", "a listing", "a name that is asked for"] {
            let (mount, dir) = known().await;
            change(&mount.peer);
            match way {
                "a listing" => drop(mount.list(dir, true).await.unwrap()),
                "a change of ours" => {
                    mount.mkdir(dir, "own").await.unwrap();
                }
                _ => {
                    let found = mount.vfs.lookup_asked(&mount.cred, dir, b"a").await;
                    found.unwrap();
                }
            }
            assert!(has(&mount, dir, "new").await, "{what}, {way}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_this_host_does_is_known_at_once_and_nothing_is_asked_for_it() {
    let (mount, dir) = known().await;
    for round in 0..5 {
        mount.mkdir(dir, "made").await.unwrap();
        mount.rename((dir, "made"), (dir, "moved")).await.unwrap();
        asked(&mount);
        assert!(!has(&mount, dir, "made").await && has(&mount, dir, "moved").await);
        mount.vfs.rmdir(&mount.cred, dir, b"moved").await.unwrap();
        asked(&mount);
        assert!(!has(&mount, dir, "moved").await, "{round}");
        assert!(!has(&mount, dir, &format!("never{round}")).await);
        assert_eq!(asked(&mount), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_was_made_here_answers_for_what_is_not_in_it() {
    let (mount, _) = known().await;
    let own = mount.mkdir(ROOT_INO, "own").await.unwrap();
    asked(&mount);
    for number in 0..20 {
        assert!(!has(&mount, own, &format!("{number}")).await);
    }
    assert_eq!(asked(&mount), 0);
    mount.peer.fs().write_file("/own/7", b"7").unwrap();
    seconds(61).await;
    assert!(has(&mount, own, "7").await);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_goes_on_knows_no_directory_whole() {
    let (mount, dir) = known().await;
    let estate = mount.left().await;
    estate.peer.fs().write_file("/dir/new", b"n").unwrap();
    let (mount, _) = estate.taken_over_as(complete()).await;
    assert!(has(&mount, dir, "new").await);
    assert!(!has(&mount, dir, "none").await);
}
