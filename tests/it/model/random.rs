//! The property. A failure prints the setting and the fewest steps that show
//! it; it goes into [`super::found`] as a test of its own.

use std::time::Duration;

use efs_fuse::rpc::Connections;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::step::{Step, calm, stormy};
use super::world::{Setting, World};
use crate::peer::{CommitMode, PeerConfig};

fn setting() -> impl Strategy<Value = Setting> {
    let limits = (
        prop_oneof![Just(8_u32), Just(16)],
        proptest::sample::select(vec![1_u32, 2, 5, 64]),
        proptest::sample::select(vec![8192_u32, 65_536, 1_049_620]),
        proptest::sample::select(vec![0_u32, 8192]),
    );
    let kind = (
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        proptest::sample::select(vec![2_u32, u32::MAX]),
        proptest::sample::select(vec![1_usize, 1, 3]),
    );
    (limits, kind).prop_map(
        |((max_ops, slots, size, max_cached), (noac, sync, preserve, keep, reuse, page, most))| {
            Setting {
                peer: PeerConfig {
                    max_ops,
                    slots,
                    max_request: size,
                    max_response: size,
                    max_cached,
                    commit_mode: match sync {
                        true => CommitMode::FileSync,
                        false => CommitMode::Unstable,
                    },
                    preserve_unlinked: preserve,
                    keep_unlinked: preserve || keep,
                    reuse_fileids: reuse,
                    readdir_page_entries: page,
                    // Without any, a request could leave at the very instant in
                    // which the one before it was answered.
                    latency: Duration::from_millis(1),
                    ..PeerConfig::default()
                },
                noac,
                connections: Connections { least: most, most },
            }
        },
    )
}

fn run(setting: Setting, steps: &[Step]) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime")
        .block_on(World::run(setting, steps));
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 4000,
        // The suite says the same of the same code; PROPTEST_RNG_SEED=NUMBER
        // looks elsewhere.
        rng_seed: match std::env::var("PROPTEST_RNG_SEED") {
            Ok(_) => ProptestConfig::default().rng_seed,
            Err(_) => RngSeed::Fixed(20_261_123),
        },
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn one_host_sees_a_local_file_system(setting in setting(), steps in calm(80)) {
        run(setting, &steps);
    }
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn faults_and_other_hosts_change_no_result(setting in setting(), steps in stormy(80)) {
        run(setting, &steps);
    }
}
