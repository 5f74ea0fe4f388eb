//! The man pages: one a command, made of the command line as clap knows it, with examples;
//! and those of the unit and of the file of defaults, which are written by hand.

use std::fs;
use std::io;
use std::path::Path;

use clap::builder::ValueRange;
use clap::{Arg, ArgAction, Command, CommandFactory};
use clap_mangen::Man;

use super::super::arguments::{Cli, Helper};
use super::super::options::TABLE;

/// The manual's section: commands of the system administrator.
const SECTION: &str = "8";

/// Examples of each command: what it is for, and the line that is typed.
const EXAMPLES: &[(&str, &[(&str, &str)])] = &[
    (
        "mount",
        &[
            (
                "An EFS file system, with IAM and TLS",
                "efs-fuse mount fs-0123abcd /volumes -o iam,nosuid,nodev",
            ),
            (
                "A directory of any NFSv4.1 server",
                "efs-fuse mount nfs.example.com:/export/apps /volumes",
            ),
            (
                "At boot, until the server is there, and again when it fails",
                "systemctl enable --now efs-fuse@volumes",
            ),
        ],
    ),
    (
        "umount",
        &[
            (
                "Everything that was written reaches the server first",
                "efs-fuse umount /volumes",
            ),
            (
                "The server is dead: calls that wait for it fail",
                "efs-fuse umount --force /volumes",
            ),
        ],
    ),
    (
        "stats",
        &[
            (
                "A live screen; q ends it",
                "efs-fuse stats /volumes --watch",
            ),
            (
                "How long a read takes, for a script",
                "efs-fuse stats /volumes --json | jq .fuse_ops.read.p99_us",
            ),
        ],
    ),
    (
        "status",
        &[
            ("All mounts, a line each", "efs-fuse status"),
            ("One, in words", "efs-fuse status /volumes"),
        ],
    ),
    (
        "metrics",
        &[
            (
                "All mounts at http://127.0.0.1:9400/metrics",
                "efs-fuse metrics --listen 9400",
            ),
            (
                "The same as a service",
                "systemctl enable --now efs-fuse-metrics",
            ),
            (
                "Once, for the textfile collector of node_exporter",
                "efs-fuse metrics > /var/lib/node_exporter/efs-fuse.prom",
            ),
        ],
    ),
    (
        "doctor",
        &[
            (
                "What is in the way of a mount",
                "efs-fuse doctor fs-0123abcd -o iam",
            ),
            (
                "Also what the server leaves open, measured",
                "efs-fuse doctor nfs.example.com:/export --probe",
            ),
        ],
    ),
    (
        "du",
        &[
            (
                "The largest directories of a mount first",
                "efs-fuse du /volumes -d 1 | head",
            ),
            ("Without a mount", "efs-fuse du fs-0123abcd:/apps -o iam"),
        ],
    ),
    (
        "rm",
        &[
            ("What would go", "efs-fuse rm -r /volumes/old-app"),
            (
                "What nobody has changed for a month",
                "efs-fuse rm -r fs-0123abcd:/tmp --older-than 30d --yes",
            ),
        ],
    ),
    (
        "sync",
        &[(
            "Wait until all that was unpacked is at the server (-o writeback), and hear what is not",
            "efs-fuse sync /volumes",
        )],
    ),
    (
        "cache",
        &[
            (
                "How much is in a cache",
                "efs-fuse cache status /var/cache/efs-fuse",
            ),
            (
                "Read all of it, and remove what is damaged",
                "efs-fuse cache verify /var/cache/efs-fuse",
            ),
        ],
    ),
    (
        "warm",
        &[(
            "Have a data set on this host's disk before it is used",
            "efs-fuse warm /volumes/data --max-bytes 50g",
        )],
    ),
    (
        "log-level",
        &[
            (
                "Each failed request, from now on",
                "efs-fuse log-level /volumes debug",
            ),
            ("As before", "efs-fuse log-level /volumes info"),
        ],
    ),
    (
        "upgrade",
        &[(
            "All mounts that were made with -o takeover",
            "efs-fuse upgrade --all",
        )],
    ),
];

/// One page a command, `efs-fuse-COMMAND.8`, and those of the two programs, of the unit and
/// of the file of defaults.
pub(super) fn pages(dir: &Path) -> io::Result<()> {
    let mut whole = Cli::command();
    whole.build();
    // There is no page of it.
    let shown = whole.clone().mut_subcommand("help", |help| help.hide(true));
    page(dir, "efs-fuse", shown, CONTRACT)?;
    for command in commands(&whole) {
        let name = format!("efs-fuse-{}", command.get_name());
        let options = match command.get_name() {
            "mount" => options_section(),
            _ => String::new(),
        };
        let more = format!("{options}{}{CONTRACT}", examples(command.get_name()));
        page(dir, &name, command.clone(), &more)?;
    }
    let more = format!("{FSTAB}{}{CONTRACT}", options_section());
    page(dir, "mount.efs-fuse", Helper::command(), &more)?;
    let version = concat!("efs-fuse ", env!("CARGO_PKG_VERSION"));
    fs::write(
        dir.join("efs-fuse@.service.8"),
        UNIT.replace("@VERSION@", version),
    )?;
    fs::write(
        dir.join("efs-fuse.conf.5"),
        CONF.replace("@VERSION@", version),
    )
}

/// Those that have a page.
fn commands(whole: &Command) -> impl Iterator<Item = &Command> {
    let shown = whole.get_subcommands().filter(|one| !one.is_hide_set());
    shown.filter(|one| one.get_name() != "help")
}

fn page(dir: &Path, name: &str, command: Command, more: &str) -> io::Result<()> {
    let title: &'static str = name.to_owned().leak();
    let synopsis = synopsis(&command);
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
    let text = String::from_utf8_lossy(&text).into_owned();
    let text = with_synopsis(&text, &synopsis) + more;
    fs::write(dir.join(format!("{name}.{SECTION}")), text)
}

/// clap_mangen's names no value of an option: its section is replaced.
fn with_synopsis(text: &str, synopsis: &str) -> String {
    const HEADING: &str = ".SH SYNOPSIS\n";
    let Some((before, rest)) = text.split_once(HEADING) else {
        return text.to_owned();
    };
    let after = rest.find(".SH ").map_or("", |at| &rest[at..]);
    format!("{before}{HEADING}{synopsis}{after}")
}

/// How the command is called, each option with its value.
fn synopsis(command: &Command) -> String {
    let program = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let mut words = vec![format!("\\fB{}\\fR", roff(program))];
    if command.has_subcommands() {
        words.push("\\fICOMMAND\\fR [\\fIARGUMENT\\fR]...".to_owned());
    }
    let shown =
        |one: &&Arg| !one.is_hide_set() && !["help", "version"].contains(&one.get_id().as_str());
    let (positional, options): (Vec<_>, Vec<_>) = command
        .get_arguments()
        .filter(shown)
        .partition(|one| one.is_positional());
    words.extend(options.into_iter().map(option));
    words.extend(positional.into_iter().map(|one| {
        let name = format!("\\fI{}\\fR", roff(&placeholder(one)));
        let several = one.get_num_args().is_some_and(|some| some.max_values() > 1);
        let dots = if several { "..." } else { "" };
        match one.is_required_set() {
            true => format!("{name}{dots}"),
            false => format!("[{name}]{dots}"),
        }
    }));
    words.join(" ") + "\n"
}

fn placeholder(argument: &Arg) -> String {
    match argument.get_value_names() {
        Some([name, ..]) => name.to_string(),
        _ => argument.get_id().as_str().to_uppercase(),
    }
}

/// An option as it is written, with its value; several times where that means something.
fn option(argument: &Arg) -> String {
    let short = argument.get_short().map(|short| format!("-{short}"));
    let long = argument.get_long().map(|long| format!("--{long}"));
    let written: Vec<_> = short
        .into_iter()
        .chain(long)
        .map(|name| format!("\\fB{}\\fR", roff(&name)))
        .collect();
    let written = written.join("|");
    let value = format!("\\fI{}\\fR", roff(&placeholder(argument)));
    let may_lack = argument.get_num_args() == Some(ValueRange::from(0..=1));
    match argument.get_action() {
        ArgAction::Append => format!("[{written} {value}]..."),
        ArgAction::Set if may_lack => format!("[{written}[={value}]]"),
        ArgAction::Set => format!("[{written} {value}]"),
        _ => format!("[{written}]"),
    }
}

/// The examples of a command, as a section.
fn examples(command: &str) -> String {
    let of = EXAMPLES.iter().find(|(name, _)| *name == command);
    let mut text = String::from(".SH EXAMPLES\n");
    for (what, line) in of.map_or(&[][..], |(_, examples)| examples) {
        text.push_str(&format!(".TP\n{}:\n\\fB{}\\fR\n", roff(what), roff(line)));
    }
    text
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
/etc/efs\-fuse/efs\-fuse.conf
options of all mounts, see efs\-fuse.conf(5)
.TP
/etc/efs\-fuse/\fINAME\fR.conf
what efs\-fuse@\fINAME\fR.service mounts
.SH "SEE ALSO"
efs\-fuse(8), efs\-fuse\-mount(8), mount.efs\-fuse(8), efs\-fuse\-stats(8), efs\-fuse@.service(8), efs\-fuse.conf(5), mount(8), nfs(5), fstab(5)
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

const UNIT: &str = r#".TH efs\-fuse@.service 8 "" "@VERSION@" efs\-fuse
.SH NAME
efs\-fuse@.service, efs\-fuse\-metrics.service \- systemd units that mount, and that show metrics
.SH SYNOPSIS
.nf
\fBefs\-fuse@\fINAME\fB.service\fR
\fBefs\-fuse\-metrics.service\fR
.fi
.SH DESCRIPTION
An instance of the first mounts what \fI/etc/efs\-fuse/NAME.conf\fR says. It is up when the first directory read
would succeed. It tries until the server is there, is started again when its daemon fails or does not answer any
more, and writes and closes everything when it is stopped. It comes before remote\-fs.target, docker, containerd, the
ECS agent and kubelet: what is to wait for the volume needs no line of its own.
.PP
\fBsystemctl reload\fR has the program that is installed now take over the mount, if \fBtakeover\fR is among its options.
.PP
The second serves the numbers of all mounts at http://127.0.0.1:9400/metrics, see efs\-fuse\-metrics(8). Another
address is set by \fBsystemctl edit efs\-fuse\-metrics\fR:
.PP
.nf
[Service]
Environment=LISTEN=10.0.0.5:9400
.fi
.SH "CONFIGURATION FILE"
Lines of \fINAME\fR=\fIVALUE\fR, read by systemd: no quotes are needed, and no shell runs.
.TP
\fBDEVICE\fR
what is mounted: \fIHOST\fR:\fI/dir\fR, fs\-\fIID\fR:\fI/dir\fR
.TP
\fBMOUNTPOINT\fR
where; the directory is made if it is not there
.TP
\fBOPTIONS\fR
options of efs\-fuse\-mount(8), separated by commas; \fBwait=forever\fR if nothing is written
.SH EXAMPLES
.nf
# cat > /etc/efs\-fuse/volumes.conf <<END
DEVICE=fs\-0123abcd:/
MOUNTPOINT=/volumes
OPTIONS=iam,nosuid,nodev,wait=600
END
# systemctl enable \-\-now efs\-fuse@volumes
# systemctl enable \-\-now efs\-fuse\-metrics
.fi
.SH FILES
.TP
/etc/efs\-fuse/\fINAME\fR.conf
one mount
.TP
/etc/efs\-fuse/efs\-fuse.conf
options of all mounts, see efs\-fuse.conf(5)
.SH "SEE ALSO"
efs\-fuse(8), efs\-fuse\-mount(8), efs\-fuse\-metrics(8), efs\-fuse.conf(5), systemd.service(5), systemctl(1)
"#;

const CONF: &str = r#".TH efs\-fuse.conf 5 "" "@VERSION@" efs\-fuse
.SH NAME
efs\-fuse.conf \- options of all mounts of this machine
.SH SYNOPSIS
\fB/etc/efs\-fuse/efs\-fuse.conf\fR
.SH DESCRIPTION
Mount options that stand in front of those of each mount: of the command line, of a line of /etc/fstab, of
efs\-fuse@.service. Of two that contradict each other the later counts, so a mount can always have it otherwise. The
file is read when something is mounted or remade, and by \fBefs\-fuse doctor\fR, \fBdu\fR and \fBrm\fR of a
\fIDEVICE\fR; not by a remount, and not by a daemon that takes over.
.PP
Each line is a list of options as it stands after \fB\-o\fR; a line that begins with # is a comment, and an empty one
is nothing. All options of efs\-fuse\-mount(8) can stand there but \fBremount\fR and \fBsloppy\fR, which are about one mount.
.PP
An option that is unknown, malformed or refused is an error of every mount, with the number of its line: an option that
was written and does not count would be worse. So is a file that others than root can write, or that cannot be read.
Without the file nothing is added. \fBefs\-fuse doctor\fR shows what was added, and each daemon's log.
.SH EXAMPLES
.nf
# No set\-user\-id programs and no devices on any volume.
nosuid,nodev
# In this account all file systems want IAM.
iam
region=eu\-west\-1
slow_op_ms=500
.fi
.SH "SEE ALSO"
efs\-fuse\-mount(8), efs\-fuse\-doctor(8), efs\-fuse@.service(8), mount.efs\-fuse(8)
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_examples_and_every_option_of_a_mount_is_in_it()
    -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        pages(dir.path())?;
        let mut whole = Cli::command();
        whole.build();
        for command in commands(&whole) {
            let name = format!("efs-fuse-{}.8", command.get_name());
            let page = fs::read_to_string(dir.path().join(name))?;
            for section in [".SH SYNOPSIS", ".SH EXAMPLES\n.TP", "EXIT STATUS"] {
                assert!(page.contains(section), "{section}: {page}");
            }
        }
        for page in ["efs-fuse-mount.8", "mount.efs-fuse.8"] {
            let page = fs::read_to_string(dir.path().join(page))?;
            for spec in TABLE.iter().filter(|spec| !spec.help.is_empty()) {
                assert!(page.contains(&roff(&spec.written())), "{}", spec.name);
            }
        }
        assert!(!fs::read_to_string(dir.path().join("efs-fuse.8"))?.contains("help(8)"));
        Ok(())
    }

    #[test]
    fn examples_are_of_commands_that_exist_and_are_read_by_them() {
        let whole = Cli::command();
        for (name, examples) in EXAMPLES {
            assert!(whole.find_subcommand(name).is_some(), "{name}");
            for (_, line) in *examples {
                let words = line.split(" | ").next().unwrap_or_default();
                let words = words.split(" > ").next().unwrap_or_default();
                if words.starts_with("efs-fuse ") {
                    let read = whole.clone().try_get_matches_from(words.split(' '));
                    assert!(read.is_ok(), "{line}: {read:?}");
                }
            }
        }
    }

    #[test]
    fn a_synopsis_has_the_values_of_options_and_what_is_required() {
        let mut whole = Cli::command();
        whole.build();
        let of = |name: &str| {
            let command = whole.find_subcommand(name).expect("a command");
            let plain = synopsis(command).replace("\\fB", "").replace("\\fI", "");
            plain.replace("\\fR", "").replace("\\-", "-")
        };
        assert_eq!(
            of("mount"),
            "efs-fuse mount [-o|--options OPTIONS]... [--foreground] [--mount-namespace PATH] [-s] DEVICE MOUNTPOINT\n"
        );
        assert_eq!(
            of("stats"),
            "efs-fuse stats [--json] [--price DOLLARS_PER_GB] [--reset] [--watch[=SECONDS]] MOUNTPOINT\n"
        );
        assert_eq!(of("status"), "efs-fuse status [--json] [MOUNTPOINT]...\n");
        assert_eq!(of("metrics"), "efs-fuse metrics [--listen ADDRESS]\n");
        assert!(synopsis(&whole).contains("COMMAND"));
    }

    #[test]
    fn no_text_becomes_a_request_of_roff() {
        assert_eq!(roff(".so x"), "\\&.so x");
        assert_eq!(roff("a-b\\"), "a\\-b\\e");
    }
}
