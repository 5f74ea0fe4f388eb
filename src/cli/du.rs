//! `efs-fuse du`.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::arguments::Du;
use super::exit::{self, Failure};
use super::format::bytes;
use super::names::Names;
use super::tree::{self, TreeTarget, found_line};
use crate::mount::MountError;
use crate::quoting;
use crate::tree::measure::{Measured, measure};
use crate::tree::progress::Progress;

pub(super) fn run(asked: &Du) -> Result<(), Failure> {
    let target = TreeTarget::find(&asked.tree)?;
    let progress = Arc::new(Progress::default());
    let begun = Instant::now();
    let walk = |client, cred, top| {
        let progress = Arc::clone(&progress);
        let shown = quoting::name(&target.shown).to_string();
        async move {
            measure(client, cred, &top, asked.depth, progress)
                .await
                .map_err(|error| MountError::mount(format_args!("measuring {shown}"), error).into())
        }
    };
    let measured = tree::run(&target, &progress, found_line, walk)?;
    if asked.tree.json {
        let seconds = begun.elapsed().as_secs_f64();
        let found = as_json(&target.shown, &measured, &progress, seconds);
        exit::print(&format!("{found}\n"))?;
    } else {
        let names = Names::on_stdout(asked.tree.null);
        let lines = measured
            .iter()
            .map(|tree| line(&target.shown, tree, asked.bytes, names));
        exit::print_bytes(&lines.collect::<Vec<_>>().concat())?;
    }
    tree::verdict(&progress, "measuring", &target.shown)
}

fn shown_path(top: &[u8], tree: &Measured) -> Vec<u8> {
    if tree.path.is_empty() {
        return top.to_owned();
    }
    let slashes = top.iter().rev().take_while(|&&byte| byte == b'/').count();
    [&top[..top.len() - slashes], b"/", &tree.path].concat()
}

fn line(top: &[u8], tree: &Measured, exact: bool, names: Names) -> Vec<u8> {
    let size = if exact {
        tree.totals.used.to_string()
    } else {
        bytes(tree.totals.used)
    };
    let name = names.ended(&shown_path(top, tree));
    [size.as_bytes(), b"\t", &name].concat()
}

fn as_json(top: &[u8], measured: &[Measured], progress: &Progress, seconds: f64) -> Value {
    let each = |tree: &Measured| {
        json!({
            "path": String::from_utf8_lossy(&shown_path(top, tree)),
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
