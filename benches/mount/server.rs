//! A private nfs-ganesha over a directory of its own, ended with its value.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::host::{Context, Result, cpu_seconds, eventually, go_on};

#[derive(Debug)]
pub(crate) struct Server {
    process: Child,
    port: u16,
    // Last: the directory goes when the process is gone.
    dir: tempfile::TempDir,
}

/// Keeps the server's allocator from handing each buffer of a READ back to the
/// system and mapping a new one, which otherwise takes half of its time, all
/// the more when it shares two processors with its clients. Every contestant
/// gets the same server.
const ALLOCATOR: [(&str, &str); 2] = [
    ("MALLOC_MMAP_THRESHOLD_", "67108864"),
    ("MALLOC_TRIM_THRESHOLD_", "536870912"),
];

impl Server {
    /// Starts one whose files lie below `parent`.
    pub(crate) fn start(parent: &Path) -> Result<Self> {
        go_on()?;
        let dir = tempfile::Builder::new()
            .prefix("efs-fuse-bench-server-")
            .tempdir_in(parent)
            .context("a directory for the server")?;
        let path = dir.path();
        for sub in ["export", "recovery"] {
            fs::create_dir(path.join(sub)).context(sub)?;
        }
        let port = free_port()?;
        fs::write(path.join("ganesha.conf"), config(path, port)).context("ganesha.conf")?;
        let process = Command::new("ganesha.nfsd")
            .arg("-F")
            .arg("-f")
            .arg(path.join("ganesha.conf"))
            .arg("-L")
            .arg(path.join("log"))
            .arg("-p")
            .arg(path.join("pid"))
            .args(["-N", "NIV_EVENT"])
            .envs(ALLOCATOR)
            .current_dir(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C at the terminal is for us: mounts go before their server.
            .process_group(0)
            .spawn()
            .context("ganesha.nfsd")?;
        let server = Self { process, port, dir };
        let up = eventually(Duration::from_secs(20), || {
            // It listens a little before it serves.
            let log = fs::read_to_string(server.dir.path().join("log")).unwrap_or_default();
            log.contains("NFS SERVER INITIALIZED") && TcpStream::connect(server.address()).is_ok()
        });
        if up {
            Ok(server)
        } else {
            Err("ganesha.nfsd did not start".into())
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The directory behind the export.
    pub(crate) fn export(&self) -> PathBuf {
        self.dir.path().join("export")
    }

    /// Stops it (SIGSTOP) until the returned value is dropped.
    pub(crate) fn stop(&self) -> Stopped<'_> {
        self.signal(libc::SIGSTOP);
        Stopped(self)
    }

    /// Processor time it has taken so far, seconds.
    pub(crate) fn cpu(&self) -> f64 {
        cpu_seconds(self.process.id())
    }

    fn signal(&self, signal: i32) {
        // SAFETY: the child is ours and not reaped before `drop`.
        unsafe { libc::kill(self.process.id().cast_signed(), signal) };
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[derive(Debug)]
pub(crate) struct Stopped<'a>(&'a Server);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.signal(libc::SIGCONT);
    }
}

/// A port below those that the kernel gives to clients.
pub(crate) fn free_port() -> Result<u16> {
    let first = 20_000 + std::process::id() as u16 % 10_000;
    (first..first + 2_000)
        .find(|&port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
        .ok_or_else(|| "no free port".into())
}

fn config(dir: &Path, port: u16) -> String {
    let dir = dir.display();
    format!(
        "NFS_CORE_PARAM {{
            Protocols = 4; Bind_Addr = 127.0.0.1; NFS_Port = {port};
            MNT_Port = 0; NLM_Port = 0; Rquota_Port = 0;
            Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false;
            MaxRPCSendBufferSize = 2097152; MaxRPCRecvBufferSize = 2097152;
            Clustered = false;
        }}
        NFSV4 {{
            Minor_Versions = 1; Lease_Lifetime = 90; Grace_Period = 5;
            RecoveryBackend = fs; RecoveryRoot = {dir}/recovery;
            Only_Numeric_Owners = true; Delegations = false; PNFS_MDS = false; PNFS_DS = false;
        }}
        EXPORT {{
            Export_Id = 1; Path = {dir}/export; Pseudo = /;
            Protocols = 4; Transports = TCP; SecType = sys; PrivilegedPort = false;
            Access_Type = RW; Squash = No_Root_Squash;
            MaxRead = 1048576; MaxWrite = 1048576; PrefRead = 1048576; PrefWrite = 1048576;
            FSAL {{ Name = VFS; }}
        }}
        LOG {{ Default_Log_Level = EVENT; }}
        "
    )
}
