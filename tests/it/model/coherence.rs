//! Two hosts on one server: what one closes the other sees when it opens
//! (close-to-open), and names follow when they are not believed any more.

use std::sync::Arc;
use std::time::Duration;

use efs_fuse::vfs::types::{Errno, ROOT_INO};
use proptest::prelude::*;

use crate::peer::{Peer, PeerConfig};
use crate::protocol::rig::{Mount, default_timeouts, seconds, within};

async fn two_hosts() -> (Mount, Mount) {
    let peer = Peer::new(PeerConfig {
        latency: Duration::from_millis(1),
        ..PeerConfig::default()
    });
    let one = Mount::of(&peer, "one", default_timeouts()).await;
    let two = Mount::of(&Arc::clone(&peer), "two", default_timeouts()).await;
    (one, two)
}

/// open, write, close.
async fn put(host: &Mount, name: &str, at: u64, data: &[u8], flags: i32) {
    let ino = host.walk(name).await.expect("the file");
    let file = host.open(ino, libc::O_RDWR | flags).await.expect("open");
    host.write(file, at, data).await.expect("write");
    host.close(file).await.expect("close");
}

/// open, read all, close.
async fn get(host: &Mount, name: &str) -> Vec<u8> {
    let ino = host.walk(name).await.expect("the file");
    let file = host.open(ino, libc::O_RDONLY).await.expect("open");
    let size = host.getattr(ino).await.expect("fstat").size;
    let mut content = Vec::new();
    loop {
        let part = host.read(file, content.len() as u64, 10_000).await;
        let part = part.expect("read");
        if part.is_empty() {
            break;
        }
        content.extend(part);
    }
    assert_eq!(content.len() as u64, size, "fstat after open");
    host.close(file).await.expect("close");
    content
}

#[tokio::test(start_paused = true)]
async fn what_one_host_closed_the_other_sees_when_it_opens() {
    let (one, two) = two_hosts().await;
    one.peer.fs().write_file("/f", b"first").unwrap();
    within(60, async {
        assert_eq!(get(&two, "f").await, b"first");
        for round in 0..10_u8 {
            let (writer, reader) = if round % 2 == 0 {
                (&one, &two)
            } else {
                (&two, &one)
            };
            let data = vec![round; 30_000 + usize::from(round)];
            put(writer, "f", 0, &data, libc::O_TRUNC).await;
            assert_eq!(get(reader, "f").await, data);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_open_file_is_read_anew_once_its_change_was_noticed() {
    let (one, two) = two_hosts().await;
    one.peer.fs().write_file("/f", &[1; 100_000]).unwrap();
    within(600, async {
        let ino = two.walk("f").await.unwrap();
        let file = two.open(ino, libc::O_RDONLY).await.unwrap();
        for at in 0..5 {
            let part = two.read(file, at * 10_000, 10_000).await.unwrap();
            assert_eq!(part, [1; 10_000]);
        }
        put(&one, "f", 0, &[2; 100_000], 0).await;
        seconds(61).await;
        two.getattr(ino).await.unwrap();
        for at in 0..10 {
            let part = two.read(file, at * 10_000, 10_000).await.unwrap();
            assert_eq!(part, [2; 10_000]);
        }
        two.close(file).await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn names_of_the_other_host_are_seen_after_their_time() {
    let (one, two) = two_hosts().await;
    within(600, async {
        assert!(two.lookup(ROOT_INO, "new").await.unwrap().is_none());
        let file = one.create(ROOT_INO, "new", libc::O_RDWR).await.unwrap();
        one.close(file).await.unwrap();
        seconds(61).await;
        assert!(two.lookup(ROOT_INO, "new").await.unwrap().is_some());
        one.rename((ROOT_INO, "new"), (ROOT_INO, "moved"))
            .await
            .unwrap();
        seconds(61).await;
        assert!(two.lookup(ROOT_INO, "new").await.unwrap().is_none());
        assert!(two.lookup(ROOT_INO, "moved").await.unwrap().is_some());
        one.unlink(ROOT_INO, "moved").await.unwrap();
        seconds(61).await;
        assert!(two.lookup(ROOT_INO, "moved").await.unwrap().is_none());
        assert!(two.list(ROOT_INO, true).await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn own_changes_are_seen_at_once_whatever_was_believed() {
    let (one, _) = two_hosts().await;
    within(60, async {
        assert!(one.lookup(ROOT_INO, "f").await.unwrap().is_none());
        let file = one.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
        assert!(one.lookup(ROOT_INO, "f").await.unwrap().is_some());
        one.write(file, 0, b"12345").await.unwrap();
        assert_eq!(one.getattr(file.ino).await.unwrap().size, 5);
        one.truncate(file.ino, None, 3).await.unwrap();
        assert_eq!(one.getattr(file.ino).await.unwrap().size, 3);
        one.close(file).await.unwrap();
        one.unlink(ROOT_INO, "f").await.unwrap();
        assert!(one.lookup(ROOT_INO, "f").await.unwrap().is_none());
        assert!(one.list(ROOT_INO, false).await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_file_that_the_other_host_replaced_is_found_by_its_name() {
    let (one, two) = two_hosts().await;
    one.peer.fs().write_file("/f", b"old").unwrap();
    within(600, async {
        assert_eq!(get(&two, "f").await, b"old");
        let file = one.create(ROOT_INO, "f.new", libc::O_RDWR).await.unwrap();
        one.write(file, 0, b"replaced").await.unwrap();
        one.close(file).await.unwrap();
        one.rename((ROOT_INO, "f.new"), (ROOT_INO, "f"))
            .await
            .unwrap();
        // Until then the old one may be opened and is gone, or is answered.
        let ino = two.walk("f").await.unwrap();
        match two.open(ino, libc::O_RDONLY).await {
            Ok(file) => two.close(file).await.unwrap(),
            Err(error) => assert_eq!(error, Errno(libc::ESTALE)),
        }
        seconds(61).await;
        assert_eq!(get(&two, "f").await, b"replaced");
    })
    .await;
}

#[derive(Clone, Debug)]
enum Turn {
    Put { at: usize, len: usize, cut: bool },
    Get,
    Wait(u64),
}

fn turns() -> impl Strategy<Value = Vec<(bool, usize, Turn)>> {
    let turn = prop_oneof![
        3 => (0..50_000_usize, 0..50_000_usize, any::<bool>())
            .prop_map(|(at, len, cut)| Turn::Put { at, len, cut }),
        3 => Just(Turn::Get),
        1 => (0..70_000_u64).prop_map(Turn::Wait),
    ];
    proptest::collection::vec((any::<bool>(), 0..2_usize, turn), 1..40)
}

async fn take_turns(turns: Vec<(bool, usize, Turn)>) {
    let (one, two) = two_hosts().await;
    let names = ["f", "g"];
    let mut contents = [Vec::new(), Vec::new()];
    for name in names {
        one.peer.fs().write_file(&format!("/{name}"), b"").unwrap();
    }
    for (number, (first, file, turn)) in turns.into_iter().enumerate() {
        let host = if first { &one } else { &two };
        let content = &mut contents[file];
        match turn {
            Turn::Put { at, len, cut } => {
                let data = vec![number as u8 + 1; len];
                let flags = if cut { libc::O_TRUNC } else { 0 };
                put(host, names[file], at as u64, &data, flags).await;
                if cut {
                    content.clear();
                }
                if len > 0 {
                    content.resize(content.len().max(at + len), 0);
                    content[at..at + len].copy_from_slice(&data);
                }
            }
            Turn::Get => assert!(get(host, names[file]).await == *content, "turn {number}"),
            Turn::Wait(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(20_261_123),
        ..ProptestConfig::default()
    })]

    #[test]
    fn two_hosts_that_open_and_close_in_turns_always_see_each_other(turns in turns()) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime")
            .block_on(take_turns(turns));
    }
}
