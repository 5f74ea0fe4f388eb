//! `mount.efs-fuse` as mount(8) calls it, and `/etc/fstab`.
//!
//! mount(8) looks for helpers in `/sbin` and for lines in `/etc/fstab`: each
//! test shows it its own of both, in a mount namespace that ends with it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{EFS_FUSE, Mountpoint, mounted_at};
use crate::fixtures::needs;
use crate::fixtures::process::{Finished, eventually, run};

/// A machine on which the helper is installed.
struct Machine {
    server: Server,
    dir: tempfile::TempDir,
    at: Mountpoint,
    also_at: Mountpoint,
}

const LIMIT: Duration = Duration::from_secs(120);

impl Machine {
    fn new() -> Self {
        needs::mounts_and_servers();
        Self {
            server: Server::start(ServerOptions::default()),
            dir: tempfile::tempdir().expect("temporary directory"),
            at: Mountpoint::new(),
            also_at: Mountpoint::new(),
        }
    }

    /// Runs a script with this fstab, `$AT` and `$ALSO` mount points, `$DEV`
    /// and `$PORT` the server. Whatever it leaves mounted is unmounted.
    #[track_caller]
    fn run(&self, fstab: &str, script: &str) -> Finished {
        let inside = |name: &str| self.dir.path().join(name);
        for name in ["up", "work"] {
            std::fs::create_dir_all(inside(name)).expect("mkdir");
        }
        let fstab = fstab
            .replace("$AT", &self.at.path().display().to_string())
            .replace("$ALSO", &self.also_at.path().display().to_string())
            .replace("$DEV", &self.server.device("/"))
            .replace("$PORT", &self.server.port().to_string());
        std::fs::write(inside("fstab"), fstab).expect("write fstab");
        let prologue = "set -eu\n\
            # `! command` never ends a script.\n\
            fails() { ! \"$@\"; }\n\
            mount -t overlay overlay -o lowerdir=/usr/sbin,upperdir=$DIR/up,workdir=$DIR/work /usr/sbin\n\
            ln -sf \"$EFS_FUSE\" /usr/sbin/mount.efs-fuse\n\
            ln -sf \"$EFS_FUSE\" /usr/sbin/mount.fuse.efs-fuse\n\
            mount --bind $DIR/fstab /etc/fstab\n\
            mkdir -p /run/mount\n\
            mount -t tmpfs tmpfs /run/mount\n\
            trap 'umount -l $AT $ALSO 2>/dev/null || :' EXIT\n";
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "bash", "-c"])
            .arg(format!("{prologue}{script}"))
            .env(
                "EFS_FUSE",
                Path::new(EFS_FUSE).canonicalize().expect("binary"),
            )
            .env("DIR", self.dir.path())
            .env("AT", self.at.path())
            .env("ALSO", self.also_at.path())
            .env("DEV", self.server.device("/"))
            .env("PORT", self.server.port().to_string());
        let done = run(&mut command, LIMIT);
        for at in [&self.at, &self.also_at] {
            let ended = eventually(Duration::from_secs(10), || {
                at.daemons().is_empty().then_some(())
            });
            assert!(ended.is_some(), "still running: {:?}", at.daemons());
            assert!(mounted_at(at.path()).is_empty(), "outside of the namespace");
        }
        done
    }
}

#[test]
fn fstab_lines_are_mounted_and_unmounted_by_mount_and_umount() {
    let machine = Machine::new();
    std::fs::write(machine.server.export().join("file"), "x").expect("write");
    machine
        .run(
            "$DEV $AT efs-fuse _netdev,nofail,port=$PORT,noresvport,x-systemd.automount,x-systemd.idle-timeout=60 0 0\n\
             $DEV $ALSO fuse.efs-fuse ro,noauto,nosuid,port=$PORT 0 0\n",
            "mount -a -t efs-fuse\n\
             [ $(cat $AT/file) = x ]\n\
             [ $(findmnt -n -o FSTYPE,SOURCE $AT | tr -s ' ' /) = fuse.efs-fuse/$DEV ]\n\
             # Mounted already: nothing to do, as for any other file system.\n\
             mount -a -t efs-fuse\n\
             [ $(findmnt -n $AT | wc -l) = 1 ]\n\
             mount $ALSO\n\
             findmnt -n -o OPTIONS $ALSO | grep -q '^ro,nosuid'\n\
             umount $AT\n\
             umount $ALSO\n\
             fails findmnt -n $AT\n\
             fails findmnt -n $ALSO\n",
        )
        .expect_success("the script");
}

#[test]
fn a_remount_changes_what_the_kernel_keeps_and_names_what_it_cannot() {
    let machine = Machine::new();
    let script = "mount $AT\n\
        touch $AT/before\n\
        mount -o remount,ro $AT\n\
        findmnt -n -o OPTIONS $AT | grep -q '^ro,'\n\
        fails touch $AT/refused 2>/dev/null\n\
        cat $AT/before\n\
        mount -o remount,rw,noexec $AT\n\
        findmnt -n -o OPTIONS $AT | grep -q '^rw,.*noexec'\n\
        touch $AT/after\n\
        # A file open for writing keeps the mount writable.\n\
        exec 7>$AT/open\n\
        fails mount -o remount,ro $AT 2>$DIR/busy\n\
        grep -q 'open for writing' $DIR/busy\n\
        exec 7>&-\n\
        # What belongs to the daemon stays, and is not said to have changed.\n\
        fails mount -o remount,acregmin=1 $AT 2>$DIR/fixed\n\
        grep -q 'acregmin=1 was not among its options' $DIR/fixed\n\
        umount $AT\n\
        fails mount.efs-fuse $DEV $AT -o remount,ro 2>$DIR/gone\n\
        grep -q 'not a mount point of efs-fuse' $DIR/gone\n";
    let fstab = "$DEV $AT efs-fuse _netdev,port=$PORT,acregmin=2 0 0\n";
    machine.run(fstab, script).expect_success("with fstab");
    // Without a line mount(8) takes type and options from the mount table.
    let by_hand = script.replacen("mount $AT", "mount -t efs-fuse -o port=$PORT $DEV $AT", 1);
    machine.run("", &by_hand).expect_success("without fstab");
    assert!(machine.server.export().join("after").exists());
    assert!(!machine.server.export().join("refused").exists());
}

#[test]
fn the_flags_of_mount_8_are_understood() {
    let machine = Machine::new();
    machine
        .run(
            "",
            "helper() { mount.efs-fuse $DEV $AT \"$@\"; }\n\
             # -f: everything is checked, nothing is done.\n\
             [ \"$(helper -f -v -n -o port=$PORT)\" = \"$DEV would be mounted on $AT\" ]\n\
             fails findmnt -n $AT\n\
             fails helper -f -o nonsense 2>/dev/null\n\
             fails mount.efs-fuse $DEV $AT/missing -f 2>$DIR/missing\n\
             grep -q 'no such directory here' $DIR/missing\n\
             fails mount.efs-fuse $DEV $DIR/fstab -f 2>$DIR/file\n\
             grep -q 'it is not a directory' $DIR/file\n\
             # -s: what is unknown is a warning.\n\
             helper -s -n -t efs-fuse -o port=$PORT,nonsense=1 2>$DIR/warning\n\
             grep -q 'efs-fuse: warning: .*nonsense' $DIR/warning\n\
             umount $AT\n\
             [ \"$(helper -v -o port=$PORT)\" = \"$DEV mounted on $AT\" ]\n\
             fails helper -f -o port=$PORT 2>$DIR/taken\n\
             grep -q 'is already mounted there' $DIR/taken\n\
             umount $AT\n\
             mount -t efs-fuse -o port=$PORT,_netdev,x-systemd.requires=foo.service $DEV $AT\n\
             umount $AT\n",
        )
        .expect_success("the script");
}

#[test]
fn symbolic_links_are_not_followed_where_it_is_said_until_a_remount() {
    let machine = Machine::new();
    machine
        .run(
            "",
            "mount.efs-fuse $DEV $AT -o port=$PORT,nosymfollow,context=a:b:c:s0 2>$DIR/said\n\
             grep -q 'context=a:b:c:s0 has no effect' $DIR/said || [ -e /sys/fs/selinux/enforce ]\n\
             findmnt -n -o OPTIONS $AT | grep -q nosymfollow\n\
             echo x >$AT/file\n\
             ln -s file $AT/link\n\
             fails cat $AT/link 2>/dev/null\n\
             # What is not mentioned stays.\n\
             mount.efs-fuse $DEV $AT -o remount,noexec\n\
             fails cat $AT/link 2>/dev/null\n\
             mount.efs-fuse $DEV $AT -o remount,symfollow\n\
             [ $(cat $AT/link) = x ]\n\
             umount $AT\n",
        )
        .expect_success("the script");
}

#[test]
fn a_line_that_cannot_be_mounted_is_one_message_and_status_32() {
    let machine = Machine::new();
    let done = machine.run("$DEV/nowhere $AT efs-fuse port=$PORT 0 0\n", "mount $AT");
    assert_eq!(done.code(), 32, "{}", done.stderr);
    assert!(
        done.stderr
            .contains("efs-fuse: mounting failed: no such directory on the server: /nowhere"),
        "{}",
        done.stderr
    );
}

#[test]
fn one_file_system_is_mounted_at_several_places() {
    let machine = Machine::new();
    machine
        .run(
            "$DEV $AT efs-fuse port=$PORT 0 0\n$DEV $ALSO efs-fuse port=$PORT 0 0\n",
            "mount -a\n\
             echo x >$AT/file\n\
             [ $(cat $ALSO/file) = x ]\n\
             umount $AT\n\
             [ $(cat $ALSO/file) = x ]\n\
             umount $ALSO\n",
        )
        .expect_success("the script");
}
