//! Each call goes out as its caller: uid, gid, supplementary groups.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use crate::fixtures::World;
use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{MountRequest, Mountpoint};
use crate::fixtures::process::{Background, run};
use crate::fixtures::sys::{self, Identity, errno};

fn user(uid: u32) -> Identity {
    Identity::new(uid, uid, &[])
}

/// A directory where everybody may create, and on the server only root.
fn open_world() -> World {
    let world = World::new();
    sys::chmod(world.mount.path(), 0o1777).expect("chmod");
    world
}

#[test]
fn what_a_user_creates_is_owned_by_the_user() {
    let world = open_world();
    let who = Identity::new(1001, 2002, &[3003]);
    who.run(|| {
        File::create(world.path("file")).expect("create");
        fs::create_dir(world.path("dir")).expect("mkdir");
        std::os::unix::fs::symlink("x", world.path("link")).expect("symlink");
        sys::mknod(&world.path("fifo"), libc::S_IFIFO | 0o600, 0).expect("mkfifo");
    });
    for name in ["file", "dir", "link", "fifo"] {
        let behind = fs::symlink_metadata(world.behind(name)).expect("stat behind");
        assert_eq!((behind.uid(), behind.gid()), (1001, 2002), "{name}");
    }
}

#[test]
fn a_child_process_with_other_ids_is_that_user() {
    let world = open_world();
    let who = Identity::new(1001, 2002, &[3003]);
    let mut shell = Command::new("/bin/sh");
    shell
        .args([
            "-c",
            "umask 022; echo mine > file; mkdir dir; id -G > groups",
        ])
        .current_dir(world.mount.path());
    // SAFETY: `assume` makes three system calls and nothing else.
    unsafe { shell.pre_exec(move || who.assume()) };
    run(&mut shell, Duration::from_secs(30)).expect_success("sh");
    for name in ["file", "dir"] {
        let behind = fs::metadata(world.behind(name)).expect("stat behind");
        assert_eq!((behind.uid(), behind.gid()), (1001, 2002), "{name}");
    }
    assert_eq!(
        fs::read_to_string(world.behind("groups")).expect("read"),
        "2002 3003\n"
    );
}

#[test]
fn supplementary_groups_open_what_the_mode_gives_the_group() {
    let world = open_world();
    fs::write(world.path("file"), b"for the group").expect("write");
    chown(world.path("file"), Some(1000), Some(5005)).expect("chown");
    sys::chmod(&world.path("file"), 0o640).expect("chmod");
    let path = world.path("file");
    let read = |who: Identity| who.run(|| fs::read(&path));
    assert_eq!(
        read(Identity::new(1001, 1001, &[7, 5005, 9])).expect("member"),
        b"for the group"
    );
    assert_eq!(
        errno(read(Identity::new(1001, 1001, &[7, 9]))),
        libc::EACCES
    );
    assert_eq!(errno(read(user(1001))), libc::EACCES);
}

#[test]
fn a_new_file_in_a_setgid_directory_gets_the_directorys_group() {
    let world = open_world();
    fs::create_dir(world.path("dir")).expect("mkdir");
    chown(world.path("dir"), Some(1001), Some(5005)).expect("chown");
    sys::chmod(&world.path("dir"), 0o2775).expect("chmod");
    user(1001).run(|| {
        File::create(world.path("dir/file")).expect("create");
        fs::create_dir(world.path("dir/sub")).expect("mkdir");
    });
    for name in ["dir/file", "dir/sub"] {
        assert_eq!(
            fs::metadata(world.behind(name)).expect("stat").gid(),
            5005,
            "{name}"
        );
    }
    assert_ne!(
        fs::metadata(world.behind("dir/sub")).expect("stat").mode() & 0o2000,
        0
    );
}

#[test]
fn one_users_files_are_closed_to_another_also_when_cached() {
    let world = open_world();
    user(1001).run(|| {
        fs::create_dir(world.path("home")).expect("mkdir");
        fs::write(world.path("home/secret"), b"secret").expect("write");
        sys::chmod(&world.path("home/secret"), 0o600).expect("chmod");
        sys::chmod(&world.path("home"), 0o700).expect("chmod");
        // Now names, attributes and pages are in every cache.
        assert_eq!(
            fs::read(world.path("home/secret")).expect("read"),
            b"secret"
        );
    });
    let path = world.path("home/secret");
    user(1002).run(|| {
        assert_eq!(errno(fs::read(&path)), libc::EACCES, "search permission");
        assert_eq!(errno(fs::metadata(&path)), libc::EACCES);
        assert_eq!(
            errno(fs::read_dir(world.path("home")).map(|_| ())),
            libc::EACCES
        );
        assert_eq!(errno(File::create(world.path("home/new"))), libc::EACCES);
    });
    sys::chmod(&world.path("home"), 0o755).expect("chmod");
    user(1002).run(|| {
        assert_eq!(errno(fs::read(&path)), libc::EACCES, "read permission");
        assert_eq!(errno(fs::remove_file(&path)), libc::EACCES);
        assert_eq!(errno(fs::rename(&path, world.path("taken"))), libc::EACCES);
        assert_eq!(errno(sys::chmod(&path, 0o777)), libc::EPERM);
        assert_eq!(errno(chown(&path, Some(1002), None)), libc::EPERM);
        assert_eq!(errno(sys::set_times(&path, (1, 0), (1, 0))), libc::EPERM);
    });
    assert_eq!(
        fs::read(world.behind("home/secret")).expect("read"),
        b"secret"
    );
}

#[test]
fn permission_given_up_after_open_stays_with_the_descriptor() {
    let world = open_world();
    fs::write(world.path("file"), b"content").expect("write");
    chown(world.path("file"), Some(1001), Some(1001)).expect("chown");
    user(1001).run(|| {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(world.path("file"))
            .expect("open");
        sys::chmod(&world.path("file"), 0o000).expect("chmod");
        let mut bytes = [0; 7];
        file.read_exact_at(&mut bytes, 0)
            .expect("read through the old descriptor");
        file.write_all_at(b"CONTENT", 0)
            .expect("write through the old descriptor");
        file.sync_all().expect("fsync");
        assert_eq!(errno(File::open(world.path("file"))), libc::EACCES);
    });
    assert_eq!(fs::read(world.behind("file")).expect("read"), b"CONTENT");
}

#[test]
fn a_file_created_read_only_is_written_by_its_creator() {
    // cp, tar and git make files 0444 and write into the open descriptor.
    use std::os::unix::fs::OpenOptionsExt;
    let world = open_world();
    user(1001).run(|| {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(world.path("file"))
            .expect("create");
        file.write_all_at(b"object", 0).expect("write");
        drop(file);
        assert_eq!(
            errno(OpenOptions::new().write(true).open(world.path("file"))),
            libc::EACCES
        );
    });
    assert_eq!(fs::read(world.behind("file")).expect("read"), b"object");
}

#[test]
fn sticky_directories_protect_the_files_of_others() {
    let world = open_world();
    user(1001).run(|| fs::write(world.path("mine"), b"x").expect("write"));
    user(1002).run(|| {
        let refused = errno(fs::remove_file(world.path("mine")));
        assert!(matches!(refused, libc::EPERM | libc::EACCES), "{refused}");
    });
    user(1001).run(|| fs::remove_file(world.path("mine")).expect("unlink"));
}

#[test]
fn a_program_that_writes_drops_setuid_rights_of_the_file() {
    let world = open_world();
    fs::write(world.path("program"), b"#!").expect("write");
    chown(world.path("program"), Some(1000), Some(1000)).expect("chown");
    sys::chmod(&world.path("program"), 0o6777).expect("chmod");
    user(1001).run(|| {
        let file = OpenOptions::new()
            .write(true)
            .open(world.path("program"))
            .expect("open");
        file.write_all_at(b"evil", 0).expect("write");
    });
    assert_eq!(
        fs::metadata(world.path("program")).expect("stat").mode() & 0o6000,
        0,
        "set-id bits must not survive a stranger's write"
    );
}

#[test]
fn a_daemon_that_sees_the_processes_of_others_takes_nothing_of_theirs() {
    let server = Server::start(ServerOptions::default());
    let at = Mountpoint::new();
    let secret = server.export().join("secret");
    fs::write(&secret, "s").expect("write");
    chown(&secret, Some(0), Some(4711)).expect("chown");
    sys::chmod(&secret, 0o640).expect("chmod");
    // A member of the group, whose number outside is the caller's inside.
    let mut member = Command::new("sleep");
    member.arg("1000").current_dir("/");
    let who = Identity::new(1001, 1001, &[4711]);
    // SAFETY: `assume` makes three system calls and nothing else.
    unsafe { member.pre_exec(move || who.assume()) };
    let member = Background::spawn(member).expect("sleep");
    let log = tempfile::NamedTempFile::new().expect("temporary file");
    let request = MountRequest::of(&server)
        .without("log=")
        .option(&format!("log={}", log.path().display()));
    let mount = request.command(at.path());
    let script = r#"
        "$@" || exit 10
        for _ in $(seq 200); do
            echo $((MEMBER - 1)) >/proc/sys/kernel/ns_last_pid || exit 11
            # The first process of this shell after that: it gets the number, or another
            # one was faster.
            sh -c '[ $$ = "$MEMBER" ] || exit 99
                exec setpriv --reuid 1001 --regid 1001 --clear-groups cat "$AT/secret"' >/dev/null 2>"$AT.said"
            status=$?
            [ $status = 99 ] || break
        done
        said=$(cat "$AT.said")
        umount "$AT"
        [ $status = 1 ] || { echo "cat: $status"; exit 12; }
        case $said in *"Permission denied"*) ;; *) echo "$said"; exit 13 ;; esac
    "#;
    let mut command = Command::new("unshare");
    command
        .args([
            "--pid",
            "--fork",
            "--kill-child",
            "--mount",
            "--propagation",
            "private",
        ])
        .args(["bash", "-c", script, "bash"])
        .arg(mount.get_program())
        .args(mount.get_args())
        .current_dir("/")
        .env("MEMBER", member.pid().to_string())
        .env("AT", at.path());
    run(&mut command, Duration::from_secs(60)).expect_success("the namespace");
    let log = fs::read_to_string(log.path()).expect("log");
    let warned = log
        .lines()
        .filter(|line| line.contains("/proc is not that of"));
    assert_eq!(warned.count(), 1, "{log}");
}
