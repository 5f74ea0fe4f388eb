//! The node pod of the EFS CSI driver, rehearsed: a mount namespace and a cgroup that mount for
//! others, and are killed.
//!
//! A host of namespaces stands for the node: its first process is the pid 1 that the wrapper
//! (`deploy/kubernetes/mount.efs`) enters. Of a real node there is no kubelet and no systemd:
//! what starts the daemon outside of the pod's cgroup is a script here (`EFS_FUSE_HOST_RUN`);
//! `scripts/boot-test` has systemd itself do it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::host::{Host, Network, living};
use crate::fixtures::mount::{COMMAND_LIMIT, DAEMON_END, EFS_FUSE, is_keeper, served_by, serves};
use crate::fixtures::process::{Background, Finished, eventually, run};

/// What kubelet and the driver share on a node, and a volume in it.
const KUBELET: &str = "/run/kubelet";
const VOLUME: &str = "/run/kubelet/volume";

/// What calls the program by the name `mount.efs` in a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Helper {
    /// The program itself: its daemon is a process of the pod.
    Program,
    /// The wrapper of `deploy/kubernetes`.
    Wrapper,
}

/// A node with a server, and the cgroups of its pods. Dropped in this order.
struct Node {
    cgroups: Cgroups,
    host: Host,
    server: Server,
    _network: Network,
}

/// Cgroups `pod` and `node`, as the test reaches them. They end with the value, and what runs
/// in them as well.
struct Cgroups(PathBuf);

impl Cgroups {
    fn kill(&self, name: &str) {
        fs::write(self.0.join(name).join("cgroup.kill"), "1").expect("cgroup.kill");
    }

    fn is_empty(&self, name: &str) -> bool {
        fs::read_to_string(self.0.join(name).join("cgroup.procs"))
            .expect("cgroup.procs")
            .is_empty()
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for name in ["pod", "node"] {
            self.kill(name);
            let dir = self.0.join(name);
            eventually(COMMAND_LIMIT, || fs::remove_dir(&dir).ok());
        }
        let _ = fs::remove_dir(&self.0);
    }
}

impl Node {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let network = Network::new();
        let server = network.server(ServerOptions::default());
        let host = network.host();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("efs-fuse-test-{}-{number}", std::process::id());
        let made = format!(
            "mkdir -p {VOLUME} /run/cgroup /run/node /run/user /run/mount\n\
             mount --bind {KUBELET} {KUBELET}\n\
             mount --make-rshared {KUBELET}\n\
             mount -t cgroup2 none /run/cgroup\n\
             mkdir -p /run/cgroup/{cgroup}/pod /run/cgroup/{cgroup}/node\n\
             ln -s {EFS_FUSE} /run/node/efs-fuse\n\
             ln -s efs-fuse /run/node/mount.efs\n\
             printf '#!/bin/sh\\necho 0 >/run/cgroup/{cgroup}/node/cgroup.procs\\nexec \"$@\"\\n' >/run/node/run\n\
             chmod 755 /run/node/run\n"
        );
        host.command(&["sh", "-euc", &made]);
        let root = PathBuf::from(format!("/proc/{}/root", host.processes().0));
        Self {
            cgroups: Cgroups(root.join("run/cgroup").join(cgroup)),
            host,
            server,
            _network: network,
        }
    }

    /// A file of the node's own `/run`.
    fn run_file(&self, name: &str) -> PathBuf {
        let init = self.host.processes().0;
        PathBuf::from(format!("/proc/{init}/root/run")).join(name)
    }

    /// What runs `script` in a node pod: mounts of its own, but for kubelet's directory, and the
    /// helper in `/sbin`.
    fn node_pod(&self, helper: Helper, script: &str) -> Command {
        let wrapper = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes/mount.efs");
        let helper = match helper {
            Helper::Program => Path::new(EFS_FUSE),
            Helper::Wrapper => &wrapper,
        };
        let cgroup = self.cgroups.0.file_name().expect("a name");
        let prologue = format!(
            "echo 0 >/run/cgroup/{}/pod/cgroup.procs\n\
             mount -t tmpfs pod /mnt\n\
             mkdir /mnt/sbin /mnt/work\n\
             mount -t overlay overlay -o lowerdir=/usr/sbin,upperdir=/mnt/sbin,workdir=/mnt/work /usr/sbin\n\
             ln -sf {} /usr/sbin/mount.efs\n",
            cgroup.display(),
            helper.display()
        );
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "unchanged", "sh", "-euc"])
            .arg(prologue + script)
            .env("EFS_FUSE_HOST_DIR", "/run/node")
            .env("EFS_FUSE_HOST_RUN", "/run/node/run")
            .env("AWS_WEB_IDENTITY_TOKEN_FILE", "/mnt/token")
            .current_dir("/");
        command
    }

    /// As the driver mounts (pkg/driver/node.go), with `options`.
    fn mount_command(&self, options: &str) -> String {
        let device = self.server.device("/");
        let port = self.server.port();
        format!("mount -t efs -o port={port}{options} {device} {VOLUME}\n")
    }

    /// A node pod that has mounted the volume and runs on.
    #[track_caller]
    fn mounted_by(&self, helper: Helper, options: &str) -> Background {
        let mount = self.mount_command(options);
        let script = format!("{mount}touch /run/mounted\nexec sleep 1000\n");
        let mut pod = self
            .host
            .spawn(self.node_pod(helper, &script))
            .expect("spawn");
        let mounted = eventually(COMMAND_LIMIT, || {
            let ended = pod.ended();
            assert!(ended.is_none(), "the node pod has not mounted: {ended:?}");
            self.run_file("mounted").exists().then_some(())
        });
        mounted.expect("a mount in time");
        pod
    }

    /// A node pod that does something and ends.
    #[track_caller]
    fn in_node_pod(&self, helper: Helper, script: &str) -> Finished {
        self.host.run(self.node_pod(helper, script), COMMAND_LIMIT)
    }

    /// A pod that has the volume, and writes to it, by an open file and by name, until it is told
    /// to stop. It ends with 0 if every write went well.
    #[track_caller]
    fn user_pod(&self) -> UserPod<'_> {
        let script = format!(
            "mount --rbind {VOLUME} /run/user\n\
             cd /\n\
             exec 3>>/run/user/open\n\
             line=0\n\
             until [ -e /run/stop ]; do\n\
                 line=$((line + 1))\n\
                 echo $line >&3\n\
                 echo $line >>/run/user/named\n\
                 sleep 0.02\n\
             done\n"
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "slave", "bash", "-euc", &script]);
        let pod = UserPod {
            node: self,
            process: self.host.spawn(command).expect("spawn"),
        };
        pod.writes_on();
        pod
    }

    /// The daemon of the volume, which has a keeper.
    #[track_caller]
    fn daemon(&self) -> i32 {
        let (init, pids) = self.host.processes();
        let mut all = living(&pids, init).into_iter();
        let keeper = all.find(|&pid| is_keeper(pid) && serves(pid, Path::new(VOLUME)));
        served_by(keeper.expect("a keeper")).expect("a daemon")
    }
}

struct UserPod<'a> {
    node: &'a Node,
    process: Background,
}

impl UserPod<'_> {
    /// How many lines each of its files has at the server.
    fn lines(&self) -> [usize; 2] {
        ["open", "named"].map(|name| {
            let text = fs::read(self.node.server.export().join(name)).unwrap_or_default();
            text.iter().filter(|&&byte| byte == b'\n').count()
        })
    }

    /// Waits until both files are longer by ten lines.
    #[track_caller]
    fn writes_on(&self) {
        let before = self.lines();
        let on = eventually(COMMAND_LIMIT, || {
            let now = self.lines();
            (now[0] >= before[0] + 10 && now[1] >= before[1] + 10).then_some(())
        });
        assert!(on.is_some(), "stands still at {before:?}");
    }

    #[track_caller]
    fn stop(mut self) {
        fs::write(self.node.run_file("stop"), "").expect("write");
        let status = self.process.wait(COMMAND_LIMIT).expect("it ends");
        assert!(status.success(), "{status}");
        for name in ["open", "named"] {
            let text = fs::read_to_string(self.node.server.export().join(name)).expect("read");
            let expected: String = (1..=text.lines().count())
                .map(|line| format!("{line}\n"))
                .collect();
            assert_eq!(text, expected, "{name}");
        }
    }
}

#[test]
fn a_daemon_in_the_node_pod_dies_with_it_and_so_does_the_volume_of_every_pod() {
    let node = Node::new();
    let _pod = node.mounted_by(Helper::Program, "");
    let mut user = node.user_pod();

    node.cgroups.kill("pod");

    let status = user.process.wait(COMMAND_LIMIT).expect("it ends");
    assert!(!status.success(), "{status}");
    let seen = node
        .host
        .command(&["sh", "-c", &format!("ls {VOLUME} 2>&1 || :")]);
    assert!(seen.contains("not connected"), "{seen}");
}

#[test]
fn a_volume_outlives_the_node_pod_that_mounted_it_and_another_one_unmounts_it() {
    let node = Node::new();
    let _pod = node.mounted_by(Helper::Wrapper, ",takeover=crash");
    let user = node.user_pod();

    node.cgroups.kill("pod");
    let gone = eventually(COMMAND_LIMIT, || node.cgroups.is_empty("pod").then_some(()));
    gone.expect("the pod's processes end");
    user.writes_on();

    // On the node there is a keeper, as everywhere.
    // SAFETY: no memory effects; found a moment ago in the host's own namespace.
    assert_eq!(unsafe { libc::kill(node.daemon(), libc::SIGKILL) }, 0);
    user.writes_on();

    // kubelet calls as often as it likes, and so does a driver that was started anew.
    let again = node.mount_command(",takeover=crash");
    let done = node
        .in_node_pod(Helper::Wrapper, &again)
        .expect_success("the same mount again");
    assert!(
        done.stdout.contains("is already mounted"),
        "{}",
        done.stdout
    );
    user.writes_on();
    user.stop();

    node.in_node_pod(Helper::Wrapper, &format!("umount {VOLUME}\n"))
        .expect_success("umount");
    let ended = eventually(DAEMON_END, || node.cgroups.is_empty("node").then_some(()));
    assert!(ended.is_some(), "keeper or daemon go on");
    let left = node
        .host
        .command(&["sh", "-c", "findmnt -n -t fuse.efs-fuse || :"]);
    assert_eq!(left, "");
}

#[test]
fn a_node_pod_that_cannot_reach_the_node_says_what_its_spec_lacks() {
    let node = Node::new();
    let mount = node.mount_command("");
    let inner = format!("unshare --pid --fork --mount-proc sh -euc '{mount}'");
    let done = node.in_node_pod(Helper::Wrapper, &inner);
    assert_ne!(done.code(), 0);
    assert!(done.stderr.contains("hostPID: true"), "{}", done.stderr);
}

#[test]
fn credentials_that_end_with_the_pod_are_not_taken_to_the_node() {
    let node = Node::new();
    let said = "the credentials are the node's";
    for (options, warned) in [("iam,notls", true), ("tls,iam", true), ("tls", false)] {
        let done = node.in_node_pod(
            Helper::Wrapper,
            &format!("mount -t efs -o {options} fs-XYZ {VOLUME}\n"),
        );
        assert_eq!(done.code(), 1, "{}", done.stderr);
        assert_eq!(
            done.stderr.contains(said),
            warned,
            "{options}: {}",
            done.stderr
        );
    }
}

#[test]
fn the_options_of_the_manifests_are_options_of_the_helper() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (helper, at) = (dir.path().join("mount.efs"), dir.path().join("at"));
    std::os::unix::fs::symlink(EFS_FUSE, &helper).expect("symlink");
    fs::create_dir(&at).expect("mkdir");
    for name in ["static.yaml", "dynamic.yaml"] {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("deploy/kubernetes")
            .join(name);
        let text = fs::read_to_string(manifest).expect("read");
        let options: Vec<_> = text
            .lines()
            .map(str::trim)
            .skip_while(|line| *line != "mountOptions:")
            .skip(1)
            .map_while(|line| line.strip_prefix("- "))
            .collect();
        assert!(options.contains(&"nosuid"), "{name}: {options:?}");
        assert!(options.contains(&"nodev"), "{name}: {options:?}");
        // The driver adds tls, and writes everything in lower case.
        let list = format!("tls,{}", options.join(",")).to_lowercase();
        let mut command = Command::new(&helper);
        command
            .args(["fs-0123abcd:/".as_ref(), at.as_os_str()])
            .args(["-f", "-o", &list]);
        run(&mut command, COMMAND_LIMIT).expect_success(name);
    }
}
