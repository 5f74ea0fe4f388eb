//! The rooms of `src/vfs`, the largest of the layers: their order, and who implements `Vfs`; and
//! how long a function may be.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::layers::{named_by, sources, without_comments, word};

/// The rooms of `src/vfs`, from the top: a room uses only those that follow. What is in
/// `src/vfs/mod.rs` stands above all of them, and is there for the first two only.
const ROOMS: [&str; 10] = [
    "handover",
    "ops",
    "dirs",
    "files",
    "namespace",
    "inode",
    "file",
    "locks",
    "writeback",
    "types",
];

#[test]
fn no_room_of_the_vfs_uses_one_above_it() {
    let vfs = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/vfs");
    let (mut found, mut wrong) = (Vec::new(), Vec::new());
    sources(&vfs, &mut found);
    let mut rooms = BTreeSet::new();
    for path in found {
        let below = path.strip_prefix(&vfs).expect("it was found there");
        let module = below.with_extension("");
        let mut module: Vec<_> = module.iter().map(|part| part.to_string_lossy()).collect();
        module.retain(|part| *part != "mod");
        let Some(room) = module.first() else {
            continue;
        };
        rooms.insert(room.to_string());
        let Some(place) = ROOMS.iter().position(|known| known == room) else {
            continue;
        };
        let source = fs::read_to_string(&path).expect("a source");
        let code = without_comments(&source);
        for other in named_by("vfs", module.len(), &code) {
            let is_room = ROOMS.iter().position(|known| *known == other);
            let is_inner = |name: &str| name.starts_with(|c: char| c.is_ascii_uppercase());
            let allowed = match is_room {
                Some(other) => other >= place,
                // Of `src/vfs/mod.rs`; a smaller name is one of an inner module.
                None => place <= 1 || !is_inner(&other),
            };
            if !allowed {
                wrong.push(format!("{} uses {other}", below.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let known: BTreeSet<String> = ROOMS.iter().map(|room| (*room).to_owned()).collect();
    assert_eq!(rooms, known, "a room has its place in the order");
    assert!(rooms.len() <= 10, "{}", rooms.len());
}

#[test]
fn the_vfs_is_implemented_by_its_operations_alone() {
    let vfs = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/vfs");
    let mut found = Vec::new();
    sources(&vfs, &mut found);
    for path in found {
        let below = path.strip_prefix(&vfs).expect("it was found there");
        let source = fs::read_to_string(&path).expect("a source");
        let allowed =
            below.starts_with("ops") || ["mod.rs", "handover.rs"].map(Path::new).contains(&below);
        assert!(
            allowed || !source.contains("impl Vfs {"),
            "{}",
            below.display()
        );
    }
}

/// No function is longer than this, lines from its name to its last brace: it is read on one
/// screen or two.
const LONGEST: usize = 100;

/// The functions of a source, which is formatted, with their lengths: a function ends with the
/// brace that stands as far to the right as its beginning.
fn functions(source: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = source.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        let before = code.split("fn ").next().unwrap_or_default();
        let is_function = code.contains("fn ")
            && before.split_whitespace().all(|word| {
                word.starts_with("pub")
                    || word.ends_with(')')
                    || ["const", "async", "unsafe", "extern"].contains(&word)
            });
        if !is_function || code.ends_with('}') {
            continue;
        }
        let name = word(code.split_once("fn ").map_or("", |(_, rest)| rest));
        let ends = |line: &str| {
            let code = line.trim_start();
            line.len() - code.len() == indent && (code == "}" || code.ends_with(';'))
        };
        if let Some(length) = lines[at..].iter().position(|line| ends(line)) {
            found.push((name, length + 1));
        }
    }
    found
}

#[test]
fn no_function_is_longer_than_it_can_be_read() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&src, &mut found);
    let mut long = BTreeSet::new();
    let mut all = 0;
    for path in found {
        let below = path.strip_prefix(&src).expect("it was found there");
        let source = fs::read_to_string(&path).expect("a source");
        let functions = functions(&source);
        all += functions.len();
        let longer = functions
            .into_iter()
            .filter(|(_, length)| *length > LONGEST);
        long.extend(longer.map(|(name, _)| (below.display().to_string(), name)));
    }
    assert!(all > 2000, "{all}");
    assert!(long.is_empty(), "{long:#?}");
}
