//! A site as WordPress is one: many small files that one host reads all the time,
//! while another deploys new releases of them.
//!
//! A release of a file says its number in every line, so a reader knows whether what
//! it has is whole, and of which release; the test knows which one must be seen.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::fixtures::ganesha::ServerOptions;
use crate::fixtures::host::Hosts;
use crate::fixtures::setting;

const FILES: usize = 120;
const DIRS: usize = 12;
const READERS: usize = 4;

fn name(number: usize) -> String {
    format!(
        "wp-content/plugins/plugin-{}/file-{number}.php",
        number % DIRS
    )
}

fn content(number: usize, release: u64) -> String {
    let lines = 2 + (number * 37 + release as usize * 11) % 90;
    let line = format!("<?php // file {number}, release {release}: return array();\n");
    line.repeat(lines) + &format!("?> end of file {number}, release {release}\n")
}

/// The release of a file that is whole.
fn release_of(number: usize, text: &str) -> Result<u64, String> {
    let release = text
        .lines()
        .last()
        .and_then(|line| line.strip_prefix(&format!("?> end of file {number}, release ")))
        .and_then(|release| release.parse().ok())
        .ok_or_else(|| format!("no end: {text:?}"))?;
    match text == content(number, release) {
        true => Ok(release),
        false => Err(format!("torn: {text:?}")),
    }
}

#[test]
fn a_torn_file_is_known_as_one() {
    let (old, new) = (content(3, 7), content(3, 8));
    assert_eq!(release_of(3, &old), Ok(7));
    assert!(release_of(3, &old[..old.len() - 20]).is_err());
    assert!(
        release_of(
            3,
            &format!("{}{}", &old[..old.len() / 2], &new[old.len() / 2..])
        )
        .is_err()
    );
    assert!(release_of(4, &old).is_err() && release_of(3, "").is_err());
}

/// As a deploy tool does it: a new file beside the old one, and its name.
fn deploy(site: &Path, number: usize, release: u64) {
    let path = site.join(name(number));
    let new = path.with_extension("php.new");
    fs::write(&new, content(number, release)).expect("write");
    fs::rename(&new, &path).expect("rename");
}

/// Ends the readers, also in a panic.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn next(dice: &mut u64) -> u64 {
    // xorshift64
    *dice ^= *dice << 13;
    *dice ^= *dice >> 7;
    *dice ^= *dice << 17;
    *dice
}

/// Who opens a file after its deploy sees the new one; nobody ever sees half of
/// one, or none.
#[test]
fn a_site_read_by_one_host_while_another_deploys_by_rename_is_whole_at_every_moment() {
    let seconds = setting("EFS_FUSE_SITE_SECONDS", 6);
    let limit = Duration::from_secs(seconds + 120);
    let hosts = Hosts::with(2, ServerOptions::default(), &[], limit);
    let [site, reader] = [0, 1].map(|host: usize| hosts.hosts[host].path(""));
    for dir in 0..DIRS {
        let dir = format!("wp-content/plugins/plugin-{dir}");
        fs::create_dir_all(site.join(dir)).expect("mkdir");
    }
    for number in 0..FILES {
        deploy(&site, number, 1);
    }
    let deployed: Vec<_> = (0..FILES).map(|_| AtomicU64::new(1)).collect();
    let (done, pages) = (AtomicBool::new(false), AtomicU64::new(0));
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut releases = 1;
    thread::scope(|scope| {
        let _done = Done(&done);
        for seed in 1..=READERS as u64 {
            let (deployed, done, pages, reader) = (&deployed, &done, &pages, &reader);
            let host = &hosts.hosts[1];
            scope.spawn(move || {
                let mut dice = seed;
                while !done.load(Ordering::SeqCst) {
                    let number = next(&mut dice) as usize % FILES;
                    let oldest = deployed[number].load(Ordering::SeqCst);
                    let mut text = String::new();
                    let failed = |what: &str, error| -> ! {
                        let said = host.stats()["last_error"].take();
                        panic!("{what} file {number}: {error}; last error: {said}")
                    };
                    let mut file = File::open(reader.join(name(number)))
                        .unwrap_or_else(|error| failed("open", error));
                    file.read_to_string(&mut text)
                        .unwrap_or_else(|error| failed("read", error));
                    match release_of(number, &text) {
                        Ok(release) if release >= oldest => {}
                        wrong => panic!("file {number}: {wrong:?}, deployed was {oldest}"),
                    }
                    pages.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        while Instant::now() < until {
            releases += 1;
            for (number, last) in deployed.iter().enumerate() {
                deploy(&site, number, releases);
                last.store(releases, Ordering::SeqCst);
            }
        }
    });
    let pages = pages.into_inner();
    println!("{pages} files read, {releases} releases of {FILES} files");
    assert!(pages > 100 && releases > 1);
}

/// A release is a directory, and which one is current is a link that is replaced:
/// what a reader finds behind it is one release.
#[test]
fn a_link_switched_to_the_next_release_leads_to_one_whole_release() {
    let lifetime = Duration::from_secs(1);
    let hosts = Hosts::with(
        2,
        ServerOptions::default(),
        &["acdirmin=1", "acdirmax=1"],
        Duration::from_secs(120),
    );
    let [site, reader] = [0, 1].map(|host: usize| hosts.hosts[host].path(""));
    let files = 10;
    let mut seen = 0;
    for release in 1..=8 {
        let dir = site.join(format!("release-{release}"));
        fs::create_dir(&dir).expect("mkdir");
        for number in 0..files {
            fs::write(dir.join(format!("{number}.php")), content(number, release)).expect("write");
        }
        let new = site.join("current.new");
        std::os::unix::fs::symlink(format!("release-{release}"), &new).expect("symlink");
        fs::rename(&new, site.join("current")).expect("rename");
        let switched = Instant::now();
        loop {
            // As php-fpm resolves the path of the script once a request.
            let current = fs::read_link(reader.join("current")).expect("current");
            for number in 0..files {
                let path = reader.join(&current).join(format!("{number}.php"));
                let text = fs::read_to_string(path).expect("read");
                let found = release_of(number, &text).expect("whole");
                assert_eq!(current, Path::new(&format!("release-{found}")));
                assert!(found + 1 >= release, "older than the one before");
                seen = found;
            }
            if seen == release {
                break;
            }
            let took = switched.elapsed();
            assert!(took < lifetime * 3, "release {release} after {took:?}");
        }
    }
    assert_eq!(seen, 8);
}
