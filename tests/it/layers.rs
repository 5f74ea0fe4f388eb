//! The layers: which folder of `src` may use which, as the picture in `src/lib.rs` and
//! `docs/ARCHITECTURE.md` has it; and no circle inside `nfs` and `rpc`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// From the top. A folder uses only what stands below it, so there is no circle.
const LAYERS: [(&str, &[&str]); 10] = [
    ("cli", &["mount", "tree", "efs", "nfs", "rpc", "disk_cache"]),
    ("mount", &["fuse", "efs", "vfs", "nfs", "rpc", "disk_cache"]),
    ("fuse", &["vfs", "rpc"]),
    ("tree", &["nfs", "rpc"]),
    ("efs", &["rpc", "xdr"]),
    ("vfs", &["nfs", "rpc", "xdr", "disk_cache"]),
    ("nfs", &["rpc", "xdr"]),
    ("rpc", &["xdr"]),
    ("xdr", &[]),
    ("disk_cache", &[]),
];

/// Any layer may use these; of each other they use only those that follow.
const FOR_ALL: [&str; 5] = ["telemetry", "background", "privilege", "quoting", "wal"];

pub(crate) fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("readdir").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push(path);
        }
    }
}

/// The folders that a source names by `crate::`.
fn used_by(source: &str) -> BTreeSet<String> {
    let code = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let paths = code.flat_map(|line| line.split("crate::").skip(1));
    let is_word = |c: char| c.is_ascii_lowercase() || c == '_';
    paths
        .map(|path| path.chars().take_while(|c| is_word(*c)).collect())
        .filter(|name: &String| !name.is_empty())
        .collect()
}

/// What a folder, or a file beside `lib.rs`, may use.
fn may_use(layer: &str, other: &str) -> bool {
    let place = |name: &str| FOR_ALL.iter().position(|known| *known == name);
    match (place(layer), place(other)) {
        (Some(layer), Some(other)) => layer < other,
        (Some(_), None) => false,
        (None, Some(_)) => true,
        (None, None) => LAYERS
            .iter()
            .any(|(name, below)| *name == layer && below.contains(&other)),
    }
}

#[test]
fn every_layer_uses_only_those_below_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&src, &mut found);
    assert!(found.len() > 100, "{}", found.len());
    let mut wrong = Vec::new();
    for path in found {
        let below = path.strip_prefix(&src).expect("it was found there");
        let top = below.iter().next().expect("a name").to_string_lossy();
        let layer = top.trim_end_matches(".rs");
        if ["lib", "main"].contains(&layer) {
            continue;
        }
        let source = fs::read_to_string(&path).expect("a source");
        for other in used_by(&source) {
            if other != layer && !may_use(layer, &other) {
                wrong.push(format!("{} uses crate::{other}", below.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_order_of_the_layers_has_no_arrow_upward() {
    for (number, (layer, below)) in LAYERS.iter().enumerate() {
        for other in *below {
            let place = LAYERS.iter().position(|(name, _)| name == other);
            assert!(place > Some(number), "{layer} uses {other}");
        }
    }
}

/// The text of a source without its comments and its tests.
fn code_of(path: &Path) -> String {
    let source = fs::read_to_string(path).expect("a source");
    let code = source.split("#[cfg(test)]\nmod tests").next();
    without_comments(code.unwrap_or_default())
}

pub(crate) fn without_comments(source: &str) -> String {
    let lines = source.lines();
    lines
        .filter(|line| !line.trim_start().starts_with("//"))
        .fold(String::new(), |code, line| code + line + "\n")
}

/// The word that a text begins with.
pub(crate) fn word(text: &str) -> String {
    let is_word = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
    text.chars().take_while(is_word).collect()
}

/// The first names of the paths in `text`, which begins behind a `::`: one, or those of
/// a group in braces.
fn heads(text: &str) -> Vec<String> {
    let Some(group) = text.strip_prefix('{') else {
        return vec![word(text)];
    };
    let (mut depth, mut names, mut begins) = (0, Vec::new(), true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => begins = true,
            c if begins && !c.is_whitespace() => {
                names.push(word(&group[at..]));
                begins = false;
            }
            _ => {}
        }
    }
    names
}

/// The rooms of a folder of `src`: its files, and its folders as a whole, each with its
/// code. `mod.rs` is the door, and none of them.
fn rooms(layer: &str) -> BTreeMap<String, Vec<(usize, String)>> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src")
        .join(layer);
    let mut found = Vec::new();
    sources(&top, &mut found);
    let mut rooms: BTreeMap<String, Vec<(usize, String)>> = BTreeMap::new();
    for path in found {
        let below = path.strip_prefix(&top).expect("it was found there");
        let parts: Vec<_> = below
            .with_extension("")
            .iter()
            .map(|part| part.to_string_lossy().into_owned())
            .filter(|part| part != "mod")
            .collect();
        let Some(room) = parts.first() else { continue };
        let of_room = rooms.entry(room.clone()).or_default();
        of_room.push((parts.len(), code_of(&path)));
    }
    rooms
}

/// The rooms that code uses by its paths. `depth` is how far its module is below the
/// folder: so many `super` lead to it.
pub(crate) fn named_by(layer: &str, depth: usize, code: &str) -> BTreeSet<String> {
    let inside = format!("crate::{layer}::");
    let mut named: BTreeSet<String> = code.split(&inside).skip(1).flat_map(heads).collect();
    let up = "super::".repeat(depth);
    for (at, _) in code.match_indices(&up) {
        let is_longer = code[..at].ends_with("super::");
        let rest = &code[at + up.len()..];
        if !is_longer && !rest.starts_with("super::") {
            named.extend(heads(rest));
        }
    }
    named
}

/// The methods that code declares.
fn declared_in(code: &str) -> BTreeSet<String> {
    let words = code.split(" fn ").skip(1).flat_map(heads);
    words.filter(|name| !name.is_empty()).collect()
}

/// Code calls this method on itself or on a client.
fn calls(code: &str, method: &str) -> bool {
    let call = format!(".{method}(");
    code.match_indices(&call).any(|(at, _)| {
        let before = code[..at].trim_end();
        ["self", "client"].iter().any(|of| before.ends_with(of))
    })
}

/// Which room uses which: by a path, or by a method that only one room declares (an
/// `impl` may stand in another room than its type).
fn uses(layer: &str) -> BTreeMap<String, BTreeSet<String>> {
    let rooms = rooms(layer);
    let mut declares: BTreeMap<String, BTreeSet<&String>> = BTreeMap::new();
    for (room, files) in &rooms {
        for method in files.iter().flat_map(|(_, code)| declared_in(code)) {
            declares.entry(method).or_default().insert(room);
        }
    }
    let mut uses = BTreeMap::new();
    for (room, files) in &rooms {
        let mut used = BTreeSet::new();
        for (depth, code) in files {
            used.extend(named_by(layer, *depth, code));
            for (method, of) in &declares {
                if let (1, Some(other)) = (of.len(), of.first())
                    && calls(code, method)
                {
                    used.insert((*other).clone());
                }
            }
        }
        used.retain(|other| other != room && rooms.contains_key(other));
        uses.insert(room.clone(), used);
    }
    uses
}

/// The circles, if there are any: what is left when rooms that use none of the others,
/// or that none of the others uses, are taken away again and again.
fn circle(mut uses: BTreeMap<String, BTreeSet<String>>) -> BTreeMap<String, BTreeSet<String>> {
    loop {
        let used: BTreeSet<_> = uses.values().flatten().cloned().collect();
        let ends: Vec<_> = uses
            .iter()
            .filter(|(room, of)| of.is_empty() || !used.contains(*room))
            .map(|(room, _)| room.clone())
            .collect();
        if ends.is_empty() {
            return uses;
        }
        for room in &ends {
            uses.remove(room);
        }
        for used in uses.values_mut() {
            used.retain(|other| !ends.contains(other));
        }
    }
}

#[test]
fn no_circle_is_between_the_files_of_nfs_or_of_rpc() {
    for (layer, at_least) in [("nfs", 15), ("rpc", 12)] {
        let uses = uses(layer);
        assert!(uses.len() >= at_least, "{layer}: {uses:#?}");
        let pairs: usize = uses.values().map(BTreeSet::len).sum();
        assert!(pairs >= 2 * at_least, "{layer}: {uses:#?}");
        let circle = circle(uses);
        assert!(circle.is_empty(), "{layer}: a circle is in {circle:#?}");
    }
}

#[test]
fn a_circle_is_found() {
    let of = |pairs: &[(&str, &[&str])]| {
        let pairs = pairs.iter().map(|(room, used)| {
            let used = used.iter().map(|other| (*other).to_owned()).collect();
            ((*room).to_owned(), used)
        });
        circle(pairs.collect())
    };
    assert!(of(&[("a", &["b"]), ("b", &["c"]), ("c", &[])]).is_empty());
    let found = of(&[("a", &["b"]), ("b", &["c"]), ("c", &["b", "d"]), ("d", &[])]);
    assert_eq!(found.into_keys().collect::<Vec<_>>(), ["b", "c"]);
    let used = named_by(
        "nfs",
        2,
        "use super::super::{a::B, c};\nsuper::d::e(super::super::f::G)",
    );
    assert_eq!(used.into_iter().collect::<Vec<_>>(), ["a", "c", "f"]);
}

/// The text of a file beside `Cargo.toml`.
fn text_of(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(path).expect("a text")
}

#[test]
fn every_arrow_of_the_picture_is_used() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (layer, below) in LAYERS {
        let mut found = Vec::new();
        sources(&src.join(layer), &mut found);
        let texts = found
            .iter()
            .map(|path| fs::read_to_string(path).expect("a source"));
        let used: BTreeSet<_> = texts.flat_map(|text| used_by(&text)).collect();
        for other in below {
            assert!(used.contains(*other), "{layer} does not use {other}");
        }
    }
}

#[test]
fn the_architecture_shows_the_layers_as_they_are() {
    let architecture = text_of("docs/ARCHITECTURE.md");
    let picture: Vec<_> = text_of("src/lib.rs")
        .lines()
        .skip_while(|line| !line.contains("```text"))
        .skip(1)
        .take_while(|line| !line.contains("```"))
        .map(|line| line.trim_start_matches("//!").trim().to_owned())
        .collect();
    assert!(picture.len() > 5);
    let drawn: Vec<_> = architecture.lines().map(str::trim).collect();
    let is_there = drawn.windows(picture.len()).any(|lines| lines == picture);
    assert!(is_there, "the picture of src/lib.rs: {picture:#?}");
    // A row of its table is `| `layer` | what it uses | what it is |`.
    for (layer, below) in LAYERS {
        let row = format!("| `{layer}` | {} |", below.join(", "));
        assert!(architecture.contains(&row), "no row {row}");
    }
}
