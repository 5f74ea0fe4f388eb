//! Replies that are not what was asked for: the call is answered or fails, and
//! the client goes on.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use efs_fuse::nfs::Client;
use efs_fuse::rpc::auth::Credential;
use efs_fuse::rpc::transport::{BoxStream, Connecting, Connector};
use efs_fuse::telemetry::Metrics;
use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};
use tokio::io::AsyncWriteExt;

use super::rig::{Rig, client_config, once_at, within};
use crate::peer::proto::op;
use crate::peer::script::Rewrite;
use crate::peer::{Action, Peer, PeerConfig};

fn rng() -> TestRng {
    TestRng::deterministic_rng(RngAlgorithm::ChaCha)
}

async fn goes_on(rig: &Rig) {
    rig.peer.clear_script();
    within(120, async {
        assert!(rig.lookup("d").await.expect("lookup").is_some());
        rig.mkdir("new").await.expect("mkdir");
        rig.remove("new").await.expect("remove");
    })
    .await;
}

async fn rig() -> Rig {
    let peer = Peer::new(PeerConfig::default());
    peer.fs().mkdir("/d").unwrap();
    Rig::of(peer, "one").await
}

/// A LOOKUP whose reply is rewritten.
async fn lookup_garbled(rig: &Rig, rewrite: Rewrite) {
    once_at(&rig.peer, op::LOOKUP, Action::Rewrite(rewrite));
    // A flipped bit may make any status or any name of an object; what cannot
    // be told from a right answer is not judged.
    drop(within(120, rig.lookup("d")).await);
}

#[tokio::test(start_paused = true)]
async fn a_reply_cut_short_anywhere_is_an_error_at_most() {
    for len in (4..420).step_by(4).chain([1, 5, 27, 63]) {
        let rig = rig().await;
        let rewrite = Box::new(move |mut message: Vec<u8>| {
            message.truncate(len);
            message
        });
        lookup_garbled(&rig, rewrite).await;
        goes_on(&rig).await;
    }
}

#[tokio::test(start_paused = true)]
async fn any_word_of_a_reply_may_be_huge() {
    for word in 1..100 {
        let rig = rig().await;
        let rewrite = Box::new(move |mut message: Vec<u8>| {
            if let Some(word) = message.get_mut(4 * word..4 * word + 4) {
                word.fill(0xff);
            }
            message
        });
        lookup_garbled(&rig, rewrite).await;
        goes_on(&rig).await;
    }
}

#[tokio::test(start_paused = true)]
async fn random_bytes_behind_the_xid_are_an_error_at_most() {
    let mut rng = rng();
    for _ in 0..200 {
        let rig = rig().await;
        let mut noise = vec![0; (rng.next_u32() % 600) as usize];
        rng.fill_bytes(&mut noise);
        let keep = (rng.next_u32() % 100) as usize;
        let rewrite = Box::new(move |mut message: Vec<u8>| {
            message.truncate(4 + keep);
            message.extend_from_slice(&noise);
            message
        });
        lookup_garbled(&rig, rewrite).await;
        goes_on(&rig).await;
    }
}

#[tokio::test(start_paused = true)]
async fn flipped_bits_are_an_error_at_most() {
    let mut rng = rng();
    for _ in 0..300 {
        let rig = rig().await;
        let flips: Vec<u32> = (0..3).map(|_| rng.next_u32()).collect();
        let rewrite = Box::new(move |mut message: Vec<u8>| {
            for flip in flips {
                let at = 4 + flip as usize / 8 % (message.len() - 4);
                message[at] ^= 1 << (flip % 8);
            }
            message
        });
        lookup_garbled(&rig, rewrite).await;
        goes_on(&rig).await;
    }
}

/// Damages a word of the next reply to CREATE: of the RPC and compound headers, and of
/// the result of SEQUENCE.
#[tokio::test(start_paused = true)]
async fn a_reply_damaged_where_it_says_whose_it_is_never_becomes_that_of_another_call() {
    // A server that takes a reused sequence id for a replay, and gives the old reply.
    let cfg = || PeerConfig {
        detect_false_retry: false,
        ..PeerConfig::default()
    };
    for word in 2..20 {
        let rig = Rig::new(cfg()).await;
        let at = word * 4;
        once_at(
            &rig.peer,
            op::CREATE,
            Action::Rewrite(Box::new(move |mut message| {
                message[at] ^= 0x40;
                message
            })),
        );
        let damaged = within(60, rig.mkdir("a")).await;
        within(60, rig.mkdir("b")).await.expect("mkdir");
        assert!(
            rig.peer.fs().exists("/b"),
            "word {word}: not done, but said to be"
        );
        if damaged.is_ok() {
            assert!(rig.peer.fs().exists("/a"), "word {word}");
        }
        if word >= 9 {
            // Asked for again on another connection: the server has kept it.
            damaged.unwrap_or_else(|error| panic!("word {word}: {error}"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_reply_may_come_twice() {
    let rig = rig().await;
    rig.peer.on_op(|_| Action::Duplicate);
    within(60, async {
        for _ in 0..20 {
            assert!(rig.lookup("d").await.expect("lookup").is_some());
            assert!(rig.lookup("x").await.expect("lookup").is_none());
        }
    })
    .await;
    goes_on(&rig).await;
}

#[tokio::test(start_paused = true)]
async fn a_reply_under_a_wrong_xid_is_not_taken_for_another_call() {
    let rig = rig().await;
    once_at(
        &rig.peer,
        op::LOOKUP,
        Action::Rewrite(Box::new(|mut message| {
            message[0] ^= 0x80;
            message
        })),
    );
    // The call itself has no reply until its connection is replaced.
    let lost = rig.lookup("d");
    tokio::pin!(lost);
    let early = tokio::time::timeout(std::time::Duration::from_secs(1), &mut lost).await;
    assert!(early.is_err());
    assert!(within(60, rig.lookup("d")).await.unwrap().is_some());
    rig.peer.cut_all_connections();
    assert!(within(60, lost).await.unwrap().is_some());
    goes_on(&rig).await;
}

/// Something that is no NFS server for its first connections.
struct Noise {
    peer: Arc<dyn Connector>,
    says: Vec<u8>,
    left: AtomicU32,
}

impl Connector for Noise {
    fn connect(&self) -> Connecting<'_> {
        Box::pin(async {
            let left = self.left.load(Ordering::Relaxed);
            if left == 0 {
                return self.peer.connect().await;
            }
            self.left.store(left - 1, Ordering::Relaxed);
            let (ours, mut theirs) = tokio::io::duplex(1 << 16);
            theirs.write_all(&self.says).await?;
            tokio::spawn(async move {
                // Stays there, and says nothing more.
                tokio::time::sleep(std::time::Duration::from_secs(3600)).await;
                drop(theirs);
            });
            Ok::<_, io::Error>(Box::new(ours) as BoxStream)
        })
    }

    fn peer(&self) -> String {
        "noise".to_owned()
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_beyond_all_bounds_ends_its_connection_and_costs_no_memory() {
    for says in [
        vec![0xff; 64],                                        // 2 GiB to come
        [vec![0x7f, 0xff, 0xff, 0xff], vec![1; 100]].concat(), // and not the last
        [0, 0, 0, 0].repeat(1000),                             // fragments of nothing
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        [vec![0x80, 0, 0, 4], vec![0; 4]].concat(),
        [vec![0x80, 0, 0, 8], vec![0, 0, 0, 9, 0, 0, 0, 7]].concat(),
    ] {
        let peer = Peer::new(PeerConfig::default());
        let noise = Arc::new(Noise {
            peer: peer.connector(),
            says: says.clone(),
            left: AtomicU32::new(1),
        });
        let client = tokio::time::timeout(
            std::time::Duration::from_secs(60),
            Client::connect(noise, client_config("one"), Metrics::new()),
        )
        .await;
        // Fragments of nothing are no reply, but no error either.
        match client {
            Ok(client) => {
                let client = client.expect("the second connection is a server");
                client
                    .find_root(&Credential::machine(), b"/")
                    .await
                    .expect("the root");
            }
            Err(_) => assert_eq!(says[0], 0, "waits on after {says:x?}"),
        }
    }
}
