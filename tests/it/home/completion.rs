//! Completion, in a bash and a zsh that run on a terminal: what is typed, and what becomes of
//! it with the tabulator key. fish says itself what it would complete.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::fixtures::mount::{COMMAND_LIMIT, EFS_FUSE};
use crate::fixtures::needs;
use crate::fixtures::process::run;
use crate::fixtures::sys;

/// Nothing is shown for this long: the shell has done what there was to do.
const QUIET: Duration = Duration::from_millis(400);

/// A program that says what it was called with.
const PROGRAM: &str = r#"efs-fuse() { printf 'called'; printf ' <%s>' "$@"; printf '\n'; }"#;

struct Shell {
    child: Child,
    keys: File,
    shown: Receiver<Vec<u8>>,
}

impl Shell {
    /// With the completion in `dir`.
    fn bash(dir: &Path) -> Self {
        let rc = dir.join("rc");
        fs::write(
            &rc,
            format!(
                "PS1='ready> '\n\
                 bind 'set enable-bracketed-paste off'\n\
                 bind 'set bell-style none'\n\
                 bind 'set page-completions off'\n\
                 . \"$COMPLETIONS/efs-fuse.bash\"\n\
                 {PROGRAM}\n"
            ),
        )
        .expect("write");
        let mut command = Command::new("bash");
        command.arg("--rcfile").arg(&rc).arg("-i");
        command.env("INPUTRC", "/dev/null");
        Self::start(command, dir)
    }

    /// The same; it finds the completion by its name, as when it is installed.
    fn zsh(dir: &Path) -> Self {
        fs::write(
            dir.join(".zshrc"),
            format!(
                "PS1='ready> '\n\
                 unset zle_bracketed_paste\n\
                 setopt no_beep no_prompt_cr no_prompt_sp\n\
                 fpath=(\"$COMPLETIONS\" $fpath)\n\
                 autoload -Uz compinit\n\
                 compinit -u -D\n\
                 {PROGRAM}\n"
            ),
        )
        .expect("write");
        let mut command = Command::new(needs::tool("zsh"));
        command.args(["-d", "-i"]).env("ZDOTDIR", dir);
        Self::start(command, dir)
    }

    fn start(mut command: Command, dir: &Path) -> Self {
        let (ours, theirs) = sys::openpty().expect("openpty");
        let end = || theirs.try_clone().expect("descriptor");
        command
            .current_dir(dir)
            .env("COMPLETIONS", dir)
            .env("TERM", "dumb")
            .env("HISTFILE", "")
            .stdin(end())
            .stdout(end())
            .stderr(end());
        // SAFETY: both calls are async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        let child = command.spawn().expect("a shell");
        let mut reader = ours.try_clone().expect("descriptor");
        let (tell, shown) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if tell.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let shell = Self {
            child,
            keys: ours,
            shown,
        };
        let begun = shell.until_quiet(Duration::from_secs(10));
        assert!(begun.contains("ready> "), "{begun:?}");
        shell
    }

    /// What is shown from now on, the first of it after `first` at the latest.
    fn until_quiet(&self, first: Duration) -> String {
        let mut all = Vec::new();
        let mut patience = first;
        while let Ok(more) = self.shown.recv_timeout(patience) {
            all.extend_from_slice(&more);
            patience = QUIET;
        }
        String::from_utf8_lossy(&all).into_owned()
    }

    /// What the program is called with when `typed` is followed by the enter key.
    fn called(&mut self, typed: &str) -> String {
        self.keys.write_all(typed.as_bytes()).expect("type");
        self.until_quiet(Duration::from_secs(5));
        self.keys.write_all(b"\n").expect("type");
        let shown = self.until_quiet(Duration::from_secs(5));
        let mut lines = shown.lines().filter(|line| line.starts_with("called"));
        let line = lines
            .next()
            .unwrap_or_else(|| panic!("{typed:?}: {shown:?}"));
        line.trim_start_matches("called ").trim().to_owned()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The completions, and files to be completed.
fn made() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut generate = Command::new(EFS_FUSE);
    generate.args(["generate", "completions"]).arg(dir.path());
    run(&mut generate, COMMAND_LIMIT).expect_success("generate completions");
    fs::create_dir_all(dir.path().join("some where/below")).expect("mkdir");
    fs::write(dir.path().join("some file"), "").expect("write");
    fs::write(dir.path().join("roots.pem"), "").expect("write");
    dir
}

/// What is typed, and what the program is called with then.
const TYPED: [(&str, &str); 14] = [
    ("efs-fuse mou\t", "<mount>"),
    ("efs-fuse mount --fore\t", "<mount> <--foreground>"),
    ("efs-fuse stats --js\t", "<stats> <--json>"),
    ("efs-fuse metrics --lis\t", "<metrics> <--listen>"),
    (
        "efs-fuse status --js\tsome\t",
        "<status> <--json> <some where/>",
    ),
    ("efs-fuse help docto\t", "<help> <doctor>"),
    // A file is no place to mount on.
    (
        "efs-fuse mount fs-1:/d some\t",
        "<mount> <fs-1:/d> <some where/>",
    ),
    (
        "efs-fuse umount some\\ where/b\t",
        "<umount> <some where/below/>",
    ),
    ("efs-fuse log-level . deb\t", "<log-level> <.> <debug>"),
    // No space behind what a value belongs to, and none behind a list.
    ("efs-fuse mount -o acregmi\t3", "<mount> <-o> <acregmin=3>"),
    (
        "efs-fuse mount -o ro,nosui\t,tls",
        "<mount> <-o> <ro,nosuid,tls>",
    ),
    (
        "efs-fuse mount -o port=1,actim\t5",
        "<mount> <-o> <port=1,actimeo=5>",
    ),
    (
        "efs-fuse doctor h -o ro,lookupcache=pos\t",
        "<doctor> <h> <-o> <ro,lookupcache=positive>",
    ),
    (
        "efs-fuse rm -o tls,cafile=roo\t",
        "<rm> <-o> <tls,cafile=roots.pem>",
    ),
];

#[test]
fn commands_flags_directories_and_mount_options_are_completed_in_bash() {
    let dir = made();
    let mut bash = Shell::bash(dir.path());
    for (typed, called) in TYPED {
        assert_eq!(bash.called(typed), called, "{typed:?}");
    }
}

#[test]
fn commands_flags_directories_and_mount_options_are_completed_in_zsh() {
    let dir = made();
    let mut zsh = Shell::zsh(dir.path());
    for (typed, called) in TYPED {
        // It takes the slash behind a directory away again when the line ends there, and
        // the `=` behind a flag.
        let called = called
            .replace("/>", ">")
            .replace("<--listen>", "<--listen=>");
        assert_eq!(
            zsh.called(typed).replace("<--listen>", "<--listen=>"),
            called,
            "{typed:?}"
        );
    }
}

#[test]
fn commands_flags_directories_and_mount_options_are_completed_in_fish() {
    let dir = made();
    for (typed, completed) in [
        ("efs-fuse mou", &["mount"][..]),
        ("efs-fuse mount --fore", &["--foreground"]),
        ("efs-fuse metrics --lis", &["--listen"]),
        ("efs-fuse mount fs-1:/d some", &["some where/"]),
        ("efs-fuse umount some\\ where/b", &["some where/below/"]),
        ("efs-fuse log-level . deb", &["debug"]),
        ("efs-fuse mount -o acregmi", &["acregmin="]),
        ("efs-fuse mount -o ro,nosui", &["ro,nosuid"]),
        (
            "efs-fuse doctor h -o lookupcache=po",
            &["lookupcache=positive"],
        ),
        (
            "efs-fuse doctor h -o ro,lookupcache=",
            &[
                "ro,lookupcache=all",
                "ro,lookupcache=complete",
                "ro,lookupcache=none",
                "ro,lookupcache=positive",
            ],
        ),
        ("efs-fuse rm -o tls,cafile=roo", &["tls,cafile=roots.pem"]),
    ] {
        let mut command = Command::new(needs::tool("fish"));
        command
            .args(["--no-config", "-c"])
            .arg("source efs-fuse.fish; complete -C \"$TYPED\"")
            .env("TYPED", typed)
            .env("HOME", dir.path())
            .current_dir(dir.path());
        let shown = run(&mut command, COMMAND_LIMIT).expect_success("fish");
        let words = shown.stdout.lines().map(|line| line.split('\t').next());
        let mut words: Vec<_> = words.map(Option::unwrap_or_default).collect();
        words.sort_unstable();
        assert_eq!(words, completed, "{typed:?}: {}", shown.stdout);
    }
}
