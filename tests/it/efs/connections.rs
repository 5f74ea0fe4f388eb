//! Several connections to EFS: the bind protocol with a look-alike that spreads
//! connections over partitions, and streams that end.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::time::Duration;

use crate::faults::connections::{copy_through, until_up};
use crate::fixtures::aws::Aws;
use crate::fixtures::mount::Mount;
use crate::fixtures::noise;
use crate::fixtures::process::eventually;
use crate::lookalike::bind::{Saying, Stream};

const MIB: usize = 1 << 20;

fn streams(aws: &Aws) -> Vec<Stream> {
    aws.record().streams.clone()
}

/// Connections that carried NFS.
fn used(aws: &Aws) -> Vec<(usize, Stream)> {
    let numbered = streams(aws).into_iter().enumerate();
    numbered.filter(|(_, stream)| stream.nfs).collect()
}

fn living(aws: &Aws) -> Vec<(usize, Stream)> {
    let mut used = used(aws);
    used.retain(|(_, stream)| !stream.ended);
    used
}

fn asked(aws: &Aws) -> usize {
    let all = streams(aws).into_iter();
    all.filter(|stream| stream.said.is_some()).count()
}

fn assert_one_partition(streams: &[(usize, Stream)]) {
    let told: Vec<_> = streams.iter().map(|(_, stream)| stream.said).collect();
    assert!(matches!(told[0], Some(Saying::Ready(_))), "{told:?}");
    assert!(told.iter().all(|said| *said == told[0]), "{told:?}");
    let who: BTreeSet<_> = streams
        .iter()
        .map(|(_, stream)| (stream.identifier.clone(), stream.incarnation))
        .collect();
    assert_eq!(who.len(), 1, "one client, one incarnation: {who:?}");
}

fn works(mount: &Mount) {
    fs::write(mount.join("file"), noise(3, 5 * MIB)).expect("write");
    assert!(fs::read(mount.join("file")).expect("read") == noise(3, 5 * MIB));
}

#[test]
fn the_connections_of_a_session_are_those_that_lead_to_its_partition() {
    let aws = Aws::start();
    aws.world().binding.partitions = 3;
    let mount = aws.request("nconnect=5").mount();
    until_up(&mount, 5);
    works(&mount);
    let found = used(&aws);
    assert_eq!(found.len(), 5);
    assert_one_partition(&found);
    assert!(asked(&aws) > 5, "others led elsewhere and were not used");
    assert!(found.iter().all(|(_, it)| it.generation == Some(2)));
    assert!(found[0].1.identifier.len() == 16);
    assert_eq!(mount.stat("/recoveries"), 0);
}

#[test]
fn killing_one_of_five_connections_to_efs_during_a_copy_costs_no_error() {
    let aws = Aws::start();
    aws.world().binding.partitions = 2;
    let mount = aws.request("nconnect=5").mount();
    until_up(&mount, 5);
    let first = living(&aws);
    let mut victims = [2, 4].map(|nth| first[nth].0).into_iter();
    copy_through(&mount, &aws.server.export(), || {
        aws.cut_stream(victims.next().expect("two faults"));
    });
    until_up(&mount, 5);
    let found = used(&aws);
    assert_eq!(found.len(), 7, "two came in the place of two");
    assert_one_partition(&found);
    assert_eq!(mount.stat("/reconnects"), 2);
    assert_eq!(mount.stat("/recoveries"), 0);
}

#[test]
fn when_all_end_the_next_partition_is_the_sessions() {
    let aws = Aws::start();
    aws.world().binding.partitions = 2;
    let mount = aws.request("nconnect=3").mount();
    until_up(&mount, 3);
    let before = living(&aws);
    aws.cut();
    works(&mount);
    let again = eventually(Duration::from_secs(60), || {
        let now = living(&aws);
        (now.len() == 3 && now[0].0 > before[2].0).then_some(now)
    });
    let now = again.unwrap_or_else(|| panic!("{:?}", streams(&aws)));
    assert_one_partition(&now);
    assert_eq!(now[0].1.incarnation, before[0].1.incarnation + 1);
    assert_eq!(now[0].1.identifier, before[0].1.identifier);
    works(&mount);
}

#[test]
fn efs_gets_more_connections_when_there_is_much_to_carry() {
    let aws = Aws::start();
    aws.world().binding.most = 3;
    let mount = aws.request("").mount();
    works(&mount);
    until_up(&mount, 1);
    assert_eq!(asked(&aws), 1);
    let grown = eventually(Duration::from_secs(120), || {
        let data = noise(3, MIB);
        let mut file = File::create(mount.join("file")).expect("create");
        for _ in 0..256 {
            std::io::Write::write_all(&mut file, &data).expect("write");
        }
        file.sync_all().expect("fsync");
        (living(&aws).len() >= 3).then_some(())
    });
    assert!(grown.is_some(), "{}", mount.status()["connections"]);
    until_up(&mount, 3);
    assert_eq!(living(&aws).len(), 3, "as many as the server allows");
}

#[test]
fn each_generation_of_the_protocol_is_spoken_and_a_server_with_none_is_used_plainly() {
    for (generations, connections) in [(vec![1], 3), (vec![], 1)] {
        let aws = Aws::start();
        aws.world().binding.generations.clone_from(&generations);
        let mount = aws.request("nconnect=3").mount();
        works(&mount);
        until_up(&mount, connections);
        let found = used(&aws);
        assert_eq!(found.len(), connections, "{generations:?}");
        let spoken = found[0].1.generation;
        assert_eq!(spoken, generations.first().copied());
        assert!(found.iter().all(|(_, it)| it.generation == spoken));
        // Known now, and not tried from the beginning again.
        let before = streams(&aws).len();
        aws.cut();
        let again = eventually(Duration::from_secs(60), || {
            works(&mount);
            (living(&aws).len() == connections && living(&aws)[0].0 >= before).then_some(())
        });
        assert!(again.is_some(), "{:?}", streams(&aws));
        // On a busy machine one may have been late, and made anew.
        let made = streams(&aws).len() - before;
        assert!((connections..connections + 3).contains(&made), "{made}");
    }
}

#[test]
fn a_first_connection_is_used_whatever_the_bind_call_comes_to() {
    for saying in [
        Saying::RetryLater,
        Saying::Error,
        Saying::Unknown,
        Saying::Damaged,
        Saying::HangUp,
        Saying::Silence,
    ] {
        let aws = Aws::start();
        aws.world().binding.script.push_back(saying);
        let mount = aws.request("nconnect=3").mount();
        works(&mount);
        until_up(&mount, 1);
        assert_eq!(used(&aws).len(), 1, "{saying:?}");
        assert_eq!(asked(&aws), 1, "{saying:?}");
    }
}

#[test]
fn retry_is_heeded_and_retry_later_ends_the_search() {
    let aws = Aws::start();
    aws.world().binding.script.extend([
        Saying::Retry,
        Saying::Ready(7),
        // The second connection:
        Saying::Retry,
        Saying::Preferred(7),
        Saying::Ready(8),
        Saying::Ready(7),
        // The third:
        Saying::RetryLater,
    ]);
    let mount = aws.request("nconnect=3").mount();
    until_up(&mount, 2);
    let told = eventually(Duration::from_secs(30), || (asked(&aws) == 7).then_some(()));
    assert!(told.is_some(), "{}", asked(&aws));
    works(&mount);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(asked(&aws), 7, "not asked again for a while");
    let found = used(&aws);
    assert_eq!(found.len(), 2);
    assert_one_partition(&found);
    until_up(&mount, 2);
}
