//! The table for people, printed as it comes about, and the JSON.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::host::{Context, Result, machine};

/// Tables are Markdown: what is printed can be kept.
#[derive(Debug)]
pub(crate) struct Report {
    json: Map<String, Value>,
}

impl Report {
    pub(crate) fn new(quick: bool, dir: &Path) -> Self {
        let machine = machine();
        let text = |key: &str| machine[key].as_str().unwrap_or("?").to_owned();
        println!(
            "efs-fuse {}, {}, {} cpus ({}), {}, Linux {}, load {}, server's files in {}{}",
            env!("CARGO_PKG_VERSION"),
            text("date"),
            machine["cpus"],
            text("cpu"),
            text("memory"),
            text("kernel"),
            text("load"),
            dir.display(),
            if quick { ", --quick" } else { "" },
        );
        let mut json = Map::new();
        json.insert("version".into(), json!(env!("CARGO_PKG_VERSION")));
        json.insert("quick".into(), json!(quick));
        json.insert("machine".into(), machine);
        Self { json }
    }

    pub(crate) fn heading(&self, title: &str, columns: &[&str]) {
        println!("\n### {title}\n");
        println!("| {} |", columns.join(" | "));
        println!("|---|{}", "---:|".repeat(columns.len().saturating_sub(1)));
    }

    pub(crate) fn row(&self, cells: &[String]) {
        println!("| {} |", cells.join(" | "));
    }

    pub(crate) fn note(&self, text: &str) {
        println!("\n{text}");
    }

    pub(crate) fn verdict(kept: bool) -> &'static str {
        if kept { "(kept)" } else { "(MISSED)" }
    }

    pub(crate) fn put(&mut self, key: &str, value: Value) {
        self.json.insert(key.to_owned(), value);
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.json).context("JSON")?;
        std::fs::write(path, text + "\n").context(path.display())
    }
}
