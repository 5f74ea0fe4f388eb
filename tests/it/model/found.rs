//! What the property has found, as small as it could be made.

use efs_fuse::rpc::Connections;

use super::step::{Fault, Place, Step};
use super::world::{Setting, World};
use crate::peer::PeerConfig;

fn at(name: &'static str) -> Place {
    Place {
        dirs: Vec::new(),
        name,
    }
}

async fn run(steps: &[Step]) {
    for noac in [false, true] {
        let setting = Setting {
            connections: Connections::ONE,
            peer: PeerConfig {
                latency: std::time::Duration::from_millis(1),
                ..PeerConfig::default()
            },
            noac,
        };
        World::run(setting, steps).await;
    }
}

/// A server that keeps no reply says so at the operation behind SEQUENCE, which may be
/// the CLOSE in front of the REMOVE that has run.
#[tokio::test(start_paused = true)]
async fn a_removal_whose_reply_is_lost_with_that_of_the_close_in_front_has_been_done() {
    let peer = PeerConfig {
        max_cached: 0,
        latency: std::time::Duration::from_millis(1),
        ..PeerConfig::default()
    };
    let setting = Setting {
        peer,
        noac: false,
        connections: Connections::ONE,
    };
    let flags = libc::O_RDONLY;
    let steps = [
        Step::Create { at: at("c"), flags },
        Step::Close(0),
        Step::Fault(Fault::CutAt(crate::peer::proto::op::CLOSE, true)),
        Step::Unlink(at("c")),
    ];
    World::run(setting, &steps).await;
}

#[tokio::test(start_paused = true)]
async fn a_write_of_nothing_does_not_make_a_file_longer() {
    let flags = libc::O_RDWR;
    run(&[
        Step::Create { at: at("a"), flags },
        Step::Write {
            file: 0,
            at: 1,
            len: 0,
        },
        Step::Fstat(0),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_handle_that_reads_goes_on_after_one_that_writes_found_the_state_gone() {
    run(&[
        Step::Create {
            at: at("b"),
            flags: libc::O_RDONLY,
        },
        Step::Fault(Fault::Revoke),
        Step::Open {
            at: at("b"),
            flags: libc::O_WRONLY,
        },
        Step::Read {
            file: 0,
            at: 0,
            len: 9,
        },
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_size_after_a_restart_is_not_that_of_what_the_server_lost() {
    let flags = libc::O_RDWR;
    run(&[
        Step::Create { at: at("a"), flags },
        Step::Write {
            file: 0,
            at: 0,
            len: 1,
        },
        Step::Fstat(0),
        Step::Fault(Fault::Restart),
        Step::Fstat(0),
        Step::Read {
            file: 0,
            at: 0,
            len: 9,
        },
    ])
    .await;
}
