//! `efs-fuse generate`, which packages and docs/OPTIONS.md are made with: man pages,
//! shell completions, the table of mount options. Hidden: nobody mounts with it.

mod man;

use std::fs;
use std::io;
use std::path::Path;

use clap::CommandFactory;

use super::arguments::{Cli, Generate};
use super::completion;
use super::exit::{self, Failure};
use super::options::TABLE;
use crate::quoting;

pub(super) fn run(asked: &Generate) -> Result<(), Failure> {
    let into = |dir: &Path, make: fn(&Path) -> io::Result<()>| {
        fs::create_dir_all(dir)
            .and_then(|()| make(dir))
            .map_err(|why| Failure::system(format_args!("writing to {}", quoting::path(dir)), why))
    };
    match asked {
        Generate::Man { dir } => into(dir, man::pages),
        Generate::Completions { dir } => into(dir, completions),
        Generate::Options => exit::print(&options_table()),
    }
}

fn completions(dir: &Path) -> io::Result<()> {
    let whole = Cli::command();
    fs::write(dir.join("efs-fuse.bash"), completion::bash(&whole))?;
    fs::write(dir.join("_efs-fuse"), completion::zsh(&whole))?;
    fs::write(dir.join("efs-fuse.fish"), completion::fish(&whole))
}

/// The table of options as docs/OPTIONS.md has it.
pub(super) fn options_table() -> String {
    let mut text = String::from("| option | meaning (default) |\n|---|---|\n");
    for spec in TABLE.iter().filter(|spec| !spec.help.is_empty()) {
        let cell = |text: &str| text.replace('|', "\\|");
        text.push_str(&format!(
            "| `{}` | {} |\n",
            cell(&spec.written()),
            cell(spec.help)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::options::all;
    use super::*;

    const MANUAL: &str = include_str!("../../docs/OPTIONS.md");

    /// Where the table stands in it.
    const MARKS: [&str; 2] = [
        "<!-- options: efs-fuse generate options -->\n",
        "<!-- end of options -->",
    ];

    #[test]
    fn the_manual_has_the_options_that_there_are() {
        let after = MANUAL.split_once(MARKS[0]).map(|(_, after)| after);
        let table = after.and_then(|after| after.split_once(MARKS[1]));
        let (table, _) = table.expect("docs/OPTIONS.md has both marks");
        let now = options_table();
        assert!(
            table == now,
            "put this between the marks in docs/OPTIONS.md (efs-fuse generate options):\n{now}"
        );
    }

    #[test]
    fn the_manual_names_what_is_accepted_and_refused_without_help() {
        for spec in all() {
            let named = |end: &str| MANUAL.contains(&format!("`{}{end}", spec.name));
            assert!(named("`") || named("="), "docs/OPTIONS.md: {}", spec.name);
        }
    }

    #[test]
    fn every_shell_has_its_completions() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        completions(dir.path())?;
        for file in ["efs-fuse.bash", "_efs-fuse", "efs-fuse.fish"] {
            let script = fs::read_to_string(dir.path().join(file))?;
            assert!(script.contains("log-level"), "{file}");
        }
        Ok(())
    }
}
