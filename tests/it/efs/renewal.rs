//! Certificates grow old while a mount works.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::fixtures::aws::Aws;
use crate::fixtures::noise;
use crate::fixtures::process::eventually;
use crate::lookalike::services::ROLE_ARN;

const MIB: usize = 1 << 20;

#[test]
fn certificates_renew_under_load_without_a_stall() {
    let aws = Aws::start();
    aws.world().iam_required = true;
    // Instance metadata are asked anew for each certificate. One connection at a time:
    // the order of the certificates is looked at.
    let mount = aws.request("iam,tls_renew=1,nconnect=1").mount();
    let done = AtomicBool::new(false);
    let block = noise(5, MIB);
    let mut longest = Duration::ZERO;
    let mut timed = |work: &mut dyn FnMut()| {
        let begun = Instant::now();
        work();
        longest = longest.max(begun.elapsed());
    };
    let blocks = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(700));
                aws.cut();
            }
        });
        let mut file = File::create(mount.join("file")).expect("create");
        let begun = Instant::now();
        let mut blocks = 0;
        let renewed = || {
            aws.record()
                .seen
                .last()
                .is_some_and(|seen| seen.serial >= 3)
        };
        // No panic in here: the other thread would go on for ever.
        while blocks < 64 || (!renewed() && begun.elapsed() < Duration::from_secs(60)) {
            timed(&mut || file.write_all(&block).expect("write"));
            // So that it lasts, and stays a small file.
            std::thread::sleep(Duration::from_millis(20));
            blocks += 1;
        }
        timed(&mut || file.sync_all().expect("fsync"));
        done.store(true, Ordering::Relaxed);
        blocks
    });
    let mut file = File::open(aws.server.export().join("file")).expect("open behind");
    let mut read = vec![0; MIB];
    for number in 0..blocks {
        file.read_exact(&mut read).expect("read behind");
        assert!(read == block, "block {number} differs");
    }
    assert_eq!(file.read(&mut read).expect("read"), 0);
    let record = aws.record();
    assert_eq!(record.refused, [""; 0]);
    let serials: Vec<_> = record.seen.iter().map(|seen| seen.serial).collect();
    assert!(serials.is_sorted(), "{serials:?}");
    let renewed = *serials.last().expect("connections");
    assert!(renewed >= 3, "{serials:?}");
    assert!(record.seen.iter().all(|seen| !seen.resumed));
    // A reconnect with a new certificate; not a wait for a dead connection.
    assert!(
        longest < Duration::from_secs(3),
        "one call took {longest:?}"
    );
}

#[test]
fn without_fresh_credentials_the_old_certificate_goes_on() {
    let aws = Aws::start();
    aws.world().iam_required = true;
    let token = aws.world().web_token.clone();
    let file = aws.file("token", &token);
    let options = format!(
        "iam,rolearn={ROLE_ARN},jwtpath={},tls_renew=1",
        file.display()
    );
    let mount = aws.request(&options).mount();
    fs::write(mount.join("one"), b"1").expect("write");
    // STS refuses the token from here on.
    aws.world().web_token = "another".to_owned();
    std::thread::sleep(Duration::from_millis(1500));
    aws.cut();
    fs::write(mount.join("two"), b"2").expect("write");
    let serials = || -> Vec<u64> { aws.record().seen.iter().map(|seen| seen.serial).collect() };
    assert_eq!(serials(), [0, 0]);
    // And when there are credentials again, there is a new one.
    aws.world().web_token = token;
    aws.cut();
    fs::write(mount.join("three"), b"3").expect("write");
    let renewed = eventually(Duration::from_secs(10), || {
        (serials().last() == Some(&1)).then_some(())
    });
    assert!(renewed.is_some(), "{:?}", serials());
    assert_eq!(aws.record().refused, [""; 0]);
}
