//! The layers: which folder of `src` may use which, as the picture in `src/lib.rs` has it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// From the top. A folder uses only what stands below it, so there is no circle.
const LAYERS: [(&str, &[&str]); 9] = [
    ("cli", &["mount", "tree", "efs", "nfs", "rpc"]),
    ("mount", &["fuse", "efs", "vfs", "nfs", "rpc"]),
    ("fuse", &["vfs", "rpc"]),
    ("tree", &["nfs", "rpc"]),
    ("efs", &["rpc", "xdr"]),
    ("vfs", &["nfs", "rpc", "xdr"]),
    ("nfs", &["rpc", "xdr"]),
    ("rpc", &["xdr"]),
    ("xdr", &[]),
];

/// Any layer may use these; of each other they use only those that follow.
const FOR_ALL: [&str; 4] = ["telemetry", "background", "privilege", "quoting"];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
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
