//! Bytes that no honest server sends: nothing that decodes them panics, hangs
//! or runs over. The same functions as the fuzz targets call, on whole replies,
//! on every prefix of them, and on many small damages; always the same ones. The seeds of
//! the fuzz targets are treated in the same way.

#[path = "../../fuzz/decoders.rs"]
mod decoders;

use efs_fuse::xdr::Encoder;

/// Damaged copies of each input.
const ROUNDS: usize = 400;

/// A small generator of its own: a failure is to be found again.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

/// Flips, removes, inserts, repeats; words become lengths that hurt.
fn damage(input: &[u8], chance: &mut Chance) -> Vec<u8> {
    let mut data = input.to_vec();
    for _ in 0..=chance.below(4) {
        let at = chance.below(data.len() + 1);
        match chance.below(5) {
            0 if at < data.len() => data[at] ^= 1 << chance.below(8),
            1 => data.truncate(at),
            2 => data.insert(at, chance.below(256) as u8),
            3 => {
                let from = chance.below(at + 1);
                let copy = data[from..at].to_vec();
                data.splice(at..at, copy);
            }
            _ => {
                let hurt = [u32::MAX, 0x7fff_ffff, 0x8000_0000, 0, 1, 0x0001_0000];
                let word = hurt[chance.below(hurt.len())].to_be_bytes();
                let at = at & !3;
                let end = data.len().min(at + 4);
                data.splice(at.min(end)..end, word);
            }
        }
    }
    data
}

fn torment(decode: impl Fn(&[u8]), input: &[u8]) {
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    decode(input);
    for end in 0..input.len() {
        decode(&input[..end]);
    }
    for _ in 0..ROUNDS {
        decode(&damage(input, &mut chance));
    }
}

type Decode = fn(&[u8]);

/// Every fuzz target with its decoder.
const TARGETS: [(&str, Decode); 21] = [
    ("attributes", decoders::attributes),
    ("bind_reply", decoders::bind_reply),
    ("ca_file", decoders::ca_file),
    ("certificate", decoders::certificate),
    ("compound_reply", decoders::compound_reply),
    ("container_credentials", decoders::container_credentials),
    ("control_answer", decoders::control_answer),
    ("device", decoders::device),
    ("efs_answer", decoders::efs_answer),
    ("http_answer", decoders::http_answer),
    ("instance_metadata", decoders::instance_metadata),
    ("metrics_page", decoders::metrics_page),
    ("options", decoders::options),
    ("readdir", decoders::readdir),
    ("records", decoders::records),
    ("registry_entry", decoders::registry_entry),
    ("role_credentials", decoders::role_credentials),
    ("rpc_reply", decoders::rpc_reply),
    ("shown", decoders::shown),
    ("sts_answer", decoders::sts_answer),
    ("tls_answer", decoders::tls_answer),
];

/// A target that is added has seeds, and they are run here.
#[test]
fn no_seed_of_a_fuzz_target_does_harm_whole_or_damaged() {
    let fuzz = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let names = |dir: &std::path::Path| -> Vec<String> {
        let entries = std::fs::read_dir(dir).expect("directory");
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("entry").file_name())
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    let known: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names(&fuzz.join("seeds")), known);
    let sources: Vec<_> = known.iter().map(|name| format!("{name}.rs")).collect();
    assert_eq!(names(&fuzz.join("fuzz_targets")), sources);
    for (name, decode) in TARGETS {
        let seeds = fuzz.join("seeds").join(name);
        for seed in names(&seeds) {
            torment(decode, &std::fs::read(seeds.join(seed)).expect("seed"));
        }
    }
}

fn attributes() -> Vec<u8> {
    let mut values = Encoder::default();
    values.u32(1).u64(7).u64(4096).u64(1).u64(2); // type, change, size, fsid
    values.opaque(b"a handle").u64(42).u32(0o644).u32(1); // filehandle .. numlinks
    values.opaque(b"1000").opaque(b"users@example.org");
    values.i64(-1).u32(999_999_999); // time_modify
    let mut enc = Encoder::default();
    let low = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 8 | 1 << 19 | 1 << 20;
    let high = 1 << (33 - 32) | 1 << (35 - 32) | 1 << (36 - 32) | 1 << (37 - 32) | 1 << (53 - 32);
    enc.u32(2).u32(low).u32(high).opaque(values.as_slice());
    enc.into_vec()
}

/// The body of a reply with one result, which is OK.
fn reply(op: u32, result: &[u8]) -> Vec<u8> {
    let mut enc = Encoder::default();
    enc.u32(0).opaque(b"tag").u32(1).u32(op).u32(0);
    let mut body = enc.into_vec();
    body.extend(result);
    body
}

fn page(entries: u64) -> Vec<u8> {
    let mut enc = Encoder::default();
    enc.fixed(&[9; 8]);
    for cookie in 0..entries {
        enc.bool(true).u64(cookie + 3).opaque(b"name");
        enc.fixed(&attributes());
    }
    enc.bool(false).bool(true);
    reply(26, enc.as_slice())
}

#[test]
fn damaged_attributes_and_listings_are_refused() {
    torment(decoders::attributes, &attributes());
    torment(decoders::readdir, &page(3));
}

/// What is asked for and what comes need not be the same.
#[test]
fn damaged_results_are_refused_whatever_was_asked_for() {
    let mut words = Encoder::default();
    (0..24).for_each(|word| {
        words.u32(word % 3);
    });
    // In the order of the decoders' table.
    let ops = [
        9, 10, 28, 11, 29, 6, 34, 3, 27, 18, 4, 25, 38, 5, 26, 22, 55, 12, 13,
    ];
    assert_eq!(ops.len(), decoders::kinds());
    for (kind, op) in ops.into_iter().enumerate() {
        torment(
            |body| decoders::result(kind, body),
            &reply(op, words.as_slice()),
        );
    }
}

#[test]
fn nothing_is_taken_from_behind_a_damaged_result() {
    let attrs = attributes();
    let mut enc = Encoder::default();
    enc.u32(0).opaque(b"").u32(4).u32(22).u32(0);
    enc.u32(9).u32(0).fixed(&attrs);
    enc.u32(10).u32(0).opaque(b"a handle");
    enc.u32(9).u32(0).fixed(&attrs);
    // Four operations: PUTFH, GETATTR, GETFH, GETATTR.
    let compound = [&[3, 15, 0, 1, 0][..], enc.as_slice()].concat();
    torment(decoders::compound_reply, &compound);
}

/// Found by the fuzzer: DENIED, which alone among failures has a result, was taken for
/// that of a LOCKT that had not run, and what followed for who is in the way.
#[test]
fn nothing_is_taken_for_a_denied_lock_that_was_not_asked_about() {
    let mut enc = Encoder::default();
    // The status of the compound, which has two results; the first is none.
    enc.u32(10_010).opaque(b"").u32(2).u32(512).u32(0);
    // What would do for a LOCK4denied: offset, length, type, owner.
    enc.u64(1).u64(2).u32(1).u64(3).opaque(b"owner");
    // LOCKT, twice.
    let compound = [&[1, 18, 18][..], enc.as_slice()].concat();
    decoders::compound_reply(&compound);
}

#[test]
fn damaged_messages_and_records_are_refused() {
    let mut enc = Encoder::default();
    enc.u32(77).u32(1).u32(0).u32(0).opaque(b"verifier").u32(0);
    torment(decoders::rpc_reply, enc.as_slice());
    let message = enc.into_vec();
    let mut stream = (0x8000_0000 | message.len() as u32).to_be_bytes().to_vec();
    stream.extend(&message);
    stream.extend([0, 0, 0, 2, 1, 2, 0, 0, 0, 0, 0x80, 0, 0, 1, 3]);
    torment(decoders::records, &stream);
}

#[test]
fn damaged_option_lists_and_devices_are_refused() {
    let lists =
        "rw,actimeo=3,port=2049,rsize=1048576,nconnect=2,x-systemd.automount,sloppy,a=\"b,c\"";
    torment(decoders::options, lists.as_bytes());
    for device in [
        "fs-f223e6bb:/dir",
        "us-east-1a.fs-f223e6bb.efs.us-east-1.amazonaws.com",
        "[fe80::1%eth0]:/export/ä",
        "host:/",
    ] {
        torment(decoders::device, device.as_bytes());
    }
}

#[test]
fn damaged_registry_entries_and_control_answers_are_refused() {
    let entry = r#"{"mountpoint":"/v","device":"h:/","server":"h:1","pid":7,"start_time":4711,
        "pid_namespace":4026531836,"exe":"/x","since":1790000000,"version":"0","options":["ro"]}"#;
    torment(decoders::registry_entry, entry.as_bytes());
    let answer = r#"{"session":{"state":"up","lease_s":90},"connections":[{"peer":"h:1"}]}"#;
    torment(decoders::control_answer, answer.as_bytes());
    // Deeper than anybody would go.
    let deep = [b'['; 100_000];
    decoders::control_answer(&deep);
    decoders::registry_entry(&deep);
}

#[test]
fn damaged_numbers_of_a_mount_and_names_are_harmless() {
    torment(
        decoders::metrics_page,
        br#"{"numbers":{"round_trips":7,"buckets":{"fuse_ops":{"read":[[12,3],[80,1]]}}},
            "status":{"server":"h:1","session":{"state":"up"},"connections":[{"state":"up"}]}}"#,
    );
    torment(
        decoders::shown,
        "a\nb'\u{1b}[2J\u{202e}\u{9b}ä日".as_bytes(),
    );
}
