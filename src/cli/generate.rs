//! `efs-fuse generate`, which packages and docs/OPTIONS.md are made with: man pages,
//! shell completions, the table of mount options. Hidden: nobody mounts with it.

use std::fs;
use std::io;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use super::arguments::{Cli, Generate, Helper};
use super::completion;
use super::exit::{self, Failure};
use super::options::TABLE;
use crate::quoting;

/// The manual's section: commands of the system administrator.
const SECTION: &str = "8";

pub(super) fn run(asked: &Generate) -> Result<(), Failure> {
    let into = |dir: &Path, make: fn(&Path) -> io::Result<()>| {
        fs::create_dir_all(dir)
            .and_then(|()| make(dir))
            .map_err(|why| Failure::system(format_args!("writing to {}", quoting::path(dir)), why))
    };
    match asked {
        Generate::Man { dir } => into(dir, man_pages),
        Generate::Completions { dir } => into(dir, completions),
        Generate::Options => exit::print(&options_table()),
    }
}

/// One page a command, `efs-fuse-COMMAND.8`, and those of the two programs.
fn man_pages(dir: &Path) -> io::Result<()> {
    let mut whole = Cli::command();
    whole.build();
    page(dir, "efs-fuse", whole.clone(), CONTRACT)?;
    for command in whole
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
    {
        if command.get_name() == "help" {
            continue;
        }
        let name = format!("efs-fuse-{}", command.get_name());
        let more = match command.get_name() {
            "mount" => format!("{}{CONTRACT}", options_section()),
            _ => CONTRACT.to_owned(),
        };
        page(dir, &name, command.clone(), &more)?;
    }
    let more = format!("{FSTAB}{}{CONTRACT}", options_section());
    page(dir, "mount.efs-fuse", Helper::command(), &more)
}

fn page(dir: &Path, name: &str, command: clap::Command, more: &str) -> io::Result<()> {
    let title: &'static str = name.to_owned().leak();
    // The options have a section of their own; in the help they come after.
    let command = command
        .name(title)
        .after_help(None::<&str>)
        .after_long_help(None::<&str>);
    let mut text = Vec::new();
    Man::new(command)
        .section(SECTION)
        .source(concat!("efs-fuse ", env!("CARGO_PKG_VERSION")))
        .manual("efs-fuse")
        .render(&mut text)?;
    text.extend_from_slice(more.as_bytes());
    fs::write(dir.join(format!("{name}.{SECTION}")), text)
}

/// Every option with a help text, as a section of a man page.
fn options_section() -> String {
    let mut text =
        String::from(".SH \"MOUNT OPTIONS\"\nAfter \\fB\\-o\\fR, separated by commas.\n");
    for spec in TABLE.iter().filter(|spec| !spec.help.is_empty()) {
        text.push_str(&format!(
            ".TP\n\\fB{}\\fR\n{}\n",
            roff(&spec.written()),
            roff(spec.help)
        ));
    }
    text.push_str(
        ".PP\nFurther options of nfs(5) and mount(8) that change nothing here are accepted; any other is an error.\n",
    );
    text
}

fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    // A line that begins like a request would be one.
    match text.as_bytes().first() {
        Some(b'.' | b'\'') => format!("\\&{text}"),
        _ => text,
    }
}

const CONTRACT: &str = r#".SH "EXIT STATUS"
.TP
0
done
.TP
1
usage: arguments, unknown or conflicting options, a malformed device, a path that is not a mount of efs\-fuse
.TP
2
the system: no /dev/fuse, not permitted, no fork, a daemon that does not answer
.TP
32
everything else: mount point, region, credentials, DNS, network, TLS, NFS, export
.SH FILES
.TP
/run/efs\-fuse
what is mounted, and a control socket for each mount; for root alone
.TP
/etc/efs\-fuse/\fINAME\fR.conf
what efs\-fuse@\fINAME\fR.service mounts
.SH "SEE ALSO"
efs\-fuse(8), efs\-fuse\-mount(8), mount.efs\-fuse(8), efs\-fuse\-stats(8), mount(8), nfs(5), fstab(5)
"#;

const FSTAB: &str = r#".SH FSTAB
.nf
fs\-0123abcd:/  /volumes  efs\-fuse  _netdev,nofail,tls,iam  0 0
.fi
.PP
With \fBnofail\fR the boot goes on when the mount fails; the journal says why. Nobody tries again then:
\fBwait=300\fR makes the helper itself wait for the server, and efs\-fuse@.service waits for ever.
.SH MOUNT.EFS
Called as \fBmount.efs\fR it stands in for the helper of amazon\-efs\-utils: without \fBtls\fR, \fBiam\fR and
\fBaccesspoint=\fR the connection is not encrypted, /etc/amazon/efs/efs\-utils.conf counts, and the same mount
once more at the same place is done already.
"#;

fn completions(dir: &Path) -> io::Result<()> {
    for shell in [Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Cli::command(), "efs-fuse", dir)?;
    }
    fs::write(dir.join("efs-fuse.bash"), completion::bash(&Cli::command()))
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
    fn every_command_has_a_page_and_every_option_of_a_mount_is_in_it() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        man_pages(dir.path())?;
        completions(dir.path())?;
        for command in Cli::command()
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
        {
            let page = fs::read_to_string(
                dir.path()
                    .join(format!("efs-fuse-{}.8", command.get_name())),
            )?;
            assert!(
                page.contains(".SH SYNOPSIS") && page.contains("EXIT STATUS"),
                "{page}"
            );
        }
        for page in ["efs-fuse-mount.8", "mount.efs-fuse.8"] {
            let page = fs::read_to_string(dir.path().join(page))?;
            for spec in TABLE.iter().filter(|spec| !spec.help.is_empty()) {
                assert!(page.contains(&roff(&spec.written())), "{}", spec.name);
            }
        }
        for file in ["efs-fuse.bash", "_efs-fuse", "efs-fuse.fish"] {
            assert!(
                fs::read_to_string(dir.path().join(file))?.contains("log-level"),
                "{file}"
            );
        }
        Ok(())
    }

    #[test]
    fn no_text_becomes_a_request_of_roff() {
        assert_eq!(roff(".so x"), "\\&.so x");
        assert_eq!(roff("a-b\\"), "a\\-b\\e");
    }
}
