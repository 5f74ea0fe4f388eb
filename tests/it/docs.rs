//! The documents: the tests that they name exist, and their links lead somewhere.
//!
//! `docs/SEMANTICS.md` is the rule book, and each of its rules names the tests that hold it.
//! Whoever renames a test renames it there as well, or these tests fail.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The documents are written below this directory, and so are the tests.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text_of(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// Every file below `dir` whose name ends in `.kind`.
fn files(dir: &Path, kind: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("readdir").flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, kind, found);
        } else if path.extension().is_some_and(|extension| extension == kind) {
            found.push(path);
        }
    }
}

/// The README and what lies beside it, and everything below `docs`.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root()).expect("readdir").flatten() {
        if entry.path().extension().is_some_and(|kind| kind == "md") {
            found.push(entry.path());
        }
    }
    files(&root().join("docs"), "md", &mut found);
    found
}

/// The paths of all tests, as the test programs list them.
fn tests() -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    for top in ["src", "tests/it"] {
        let top = root().join(top);
        let mut sources = Vec::new();
        files(&top, "rs", &mut sources);
        for source in sources {
            let below = source.strip_prefix(&top).expect("it was found there");
            let module: Vec<_> = below
                .with_extension("")
                .iter()
                .map(|part| part.to_string_lossy().into_owned())
                .filter(|part| !["mod", "main", "lib"].contains(&part.as_str()))
                .collect();
            tests_in(&text_of(&source), module, &mut tests);
        }
    }
    tests
}

/// The tests of one source, which is formatted: a module that is written in it ends with the brace
/// that stands as far to the right as its beginning.
fn tests_in(source: &str, mut module: Vec<String>, tests: &mut BTreeSet<String>) {
    let mut inner = Vec::new();
    let mut is_test = false;
    for line in source.lines() {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        if code == "}" && inner.last() == Some(&indent) {
            inner.pop();
            module.pop();
        } else if let Some(name) = code
            .strip_prefix("mod ")
            .and_then(|rest| rest.strip_suffix(" {"))
        {
            inner.push(indent);
            module.push(name.to_owned());
        } else if code.starts_with("#[test]") || code.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some((_, rest)) = code.split_once("fn ").filter(|_| is_test) {
            let name = rest.split(['(', '<']).next().unwrap_or(rest);
            tests.insert([&module.join("::"), name].join("::"));
            is_test = false;
        }
    }
}

/// Whether this is the path of a test, or of a module with a test in it.
fn is_there(tests: &BTreeSet<String>, named: &str) -> bool {
    let within = format!("{named}::");
    tests.contains(named) || tests.iter().any(|test| test.starts_with(&within))
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The document without its blocks of code.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    text.lines().enumerate().filter_map(move |(number, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        (!is_code && !is_fence).then_some((number + 1, line))
    })
}

#[test]
fn every_rule_names_a_test_that_exists() {
    let tests = tests();
    assert!(tests.len() > 1000, "{}", tests.len());
    let text = text_of(&root().join("docs/SEMANTICS.md"));
    let (mut rules, mut wrong) = (0, Vec::new());
    // The number of cells, and which of them has the tests.
    let mut table: Option<(usize, Option<usize>)> = None;
    for (number, line) in prose(&text) {
        let Some(row) = line.strip_prefix('|') else {
            table = None;
            continue;
        };
        let cells: Vec<_> = row
            .trim_end_matches('|')
            .split('|')
            .map(str::trim)
            .collect();
        let Some((width, column)) = table else {
            let column = cells.iter().position(|&heading| heading == "test");
            table = Some((cells.len(), column));
            continue;
        };
        if cells.len() != width {
            wrong.push(format!("line {number} has {} cells", cells.len()));
            continue;
        }
        let Some(cell) = column.map(|column| cells[column]) else {
            continue;
        };
        if cell.starts_with("---") {
            continue;
        }
        rules += 1;
        if quoted(cell).next().is_none() {
            wrong.push(format!("line {number} names no test"));
        }
        for named in quoted(cell).filter(|named| !is_there(&tests, named)) {
            wrong.push(format!("line {number}: there is no {named}"));
        }
    }
    assert!(wrong.is_empty(), "docs/SEMANTICS.md: {wrong:#?}");
    assert!(rules > 100, "{rules}");
}

#[test]
fn every_test_that_security_md_names_is_there() {
    let tests = tests();
    let text = text_of(&root().join("SECURITY.md"));
    let is_name = |c: char| c.is_ascii_lowercase() || matches!(c, '_' | ':' | '0'..='9');
    let of_a_test = |named: &&str| named.chars().all(is_name) && named.matches('_').count() > 2;
    let mut seen = 0;
    for named in quoted(&text).filter(of_a_test) {
        seen += 1;
        let within = format!("::{named}");
        assert!(
            tests.iter().any(|test| test.ends_with(&within)) || is_there(&tests, named),
            "there is no {named}"
        );
    }
    assert!(seen > 20, "{seen}");
}

/// The anchor that a heading has: lower case, a hyphen for each space, no punctuation.
fn anchor(heading: &str) -> String {
    heading
        .trim()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            '-' | '_' => Some(c),
            _ => c.is_alphanumeric().then(|| c.to_ascii_lowercase()),
        })
        .collect()
}

fn has_anchor(document: &Path, wanted: &str) -> bool {
    let text = text_of(document);
    prose(&text).any(|(_, line)| {
        let heading = line.trim_start_matches('#');
        heading.len() < line.len() && heading.starts_with(' ') && anchor(heading) == wanted
    })
}

#[test]
fn every_link_in_the_documents_leads_somewhere() {
    let (mut seen, mut dead) = (0, Vec::new());
    for document in documents() {
        let text = text_of(&document);
        for (number, line) in prose(&text) {
            for link in line.split("](").skip(1) {
                let target = link.split(')').next().unwrap_or(link);
                if target.contains("://") {
                    continue;
                }
                seen += 1;
                let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
                let at = match path {
                    "" => document.clone(),
                    _ => document.with_file_name(path),
                };
                if !at.exists() || !(anchor.is_empty() || has_anchor(&at, anchor)) {
                    dead.push(format!("{}:{number}: {target}", document.display()));
                }
            }
        }
    }
    assert!(dead.is_empty(), "{dead:#?}");
    assert!(seen > 10, "{seen}");
}
