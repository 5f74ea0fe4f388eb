//! `efs-fuse du`.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::arguments::Du;
use super::exit::{self, Failure};
use super::format::bytes;
use super::tree::{self, Target, found_line};
use crate::mount::MountError;
use crate::tree::measure::{Measured, measure};
use crate::tree::progress::Progress;

pub(super) fn run(asked: &Du) -> Result<(), Failure> {
    let target = Target::find(&asked.tree)?;
    let progress = Arc::new(Progress::default());
    let begun = Instant::now();
    let walk = |client, cred, top| {
        let progress = Arc::clone(&progress);
        let shown = target.shown.clone();
        async move {
            measure(client, cred, &top, asked.depth, progress)
                .await
                .map_err(|error| MountError::mount(format_args!("measuring {shown}"), error).into())
        }
    };
    let measured = tree::run(&target, &progress, found_line, walk)?;
    exit::print(&if asked.tree.json {
        let seconds = begun.elapsed().as_secs_f64();
        format!(
            "{}\n",
            as_json(&target.shown, &measured, &progress, seconds)
        )
    } else {
        measured
            .iter()
            .map(|tree| line(&target.shown, tree, asked.bytes))
            .collect()
    })?;
    tree::verdict(&progress, "measuring", &target.shown)
}

fn shown_path(top: &str, tree: &Measured) -> String {
    if tree.path.is_empty() {
        return top.to_owned();
    }
    format!(
        "{}/{}",
        top.trim_end_matches('/'),
        String::from_utf8_lossy(&tree.path)
    )
}

fn line(top: &str, tree: &Measured, exact: bool) -> String {
    let size = if exact {
        tree.totals.used.to_string()
    } else {
        bytes(tree.totals.used)
    };
    format!("{size}\t{}\n", shown_path(top, tree))
}

fn as_json(top: &str, measured: &[Measured], progress: &Progress, seconds: f64) -> Value {
    let each = |tree: &Measured| {
        json!({
            "path": shown_path(top, tree),
            "bytes": tree.totals.used,
            "apparent_bytes": tree.totals.size,
            "files": tree.totals.files,
            "directories": tree.totals.directories,
        })
    };
    let (below, of_all) = match measured {
        [below @ .., all] => (below, each(all)),
        [] => (measured, json!({})),
    };
    let mut all = of_all;
    all["below"] = below.iter().map(each).collect();
    all["errors"] = json!(progress.errors().0);
    all["seconds"] = json!(seconds);
    all
}
