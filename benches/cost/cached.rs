//! What the kernel asks and the vfs answers at once, on the thread that reads from
//! `/dev/fuse`. The mount is real, the server in memory; nothing waits for it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use efs_fuse::nfs::session::establish::Identity;
use efs_fuse::nfs::{Client, ClientConfig};
use efs_fuse::rpc::auth::Credential;
use efs_fuse::rpc::{Connections, Tolerance};
use efs_fuse::telemetry::Metrics;
use efs_fuse::vfs::attr::Timeouts;
use efs_fuse::vfs::types::{Errno, Ino, Lookup, ROOT_INO, WriteFlags};
use efs_fuse::vfs::{Vfs, VfsConfig};
use tokio::time::Instant;

use crate::Case;
use crate::peer::{Peer, PeerConfig};

/// Longer than any measurement here takes.
const LONG: Duration = Duration::from_secs(3600);
/// Other files of the directory.
const FILES: usize = 100;
/// Bytes in each file.
const SIZE: usize = 8192;
const NAME: &str = "a file of this directory";
const LINK: &str = "a link";
const MISSING: &str = "no such name";

struct World {
    vfs: Arc<Vfs>,
    cred: Arc<Credential>,
    file: Ino,
    link: Ino,
    fh: u64,
}

async fn mounted(peer: &Arc<Peer>, owner: &[u8]) -> Arc<Vfs> {
    let config = ClientConfig {
        identity: Identity {
            owner: owner.to_vec(),
            verifier: [7; 8],
            machine_name: "cost".to_owned(),
        },
        slots: 64,
        rsize: 1 << 20,
        wsize: 1 << 20,
        tolerance: Tolerance::default(),
        connections: Connections::ONE,
        suspended: || Duration::ZERO,
    };
    let client = Client::connect(peer.connector(), config, Metrics::new())
        .await
        .expect("a session");
    client
        .find_root(&Credential::machine(), b"/")
        .await
        .expect("the root");
    let config = VfsConfig {
        timeouts: Timeouts {
            reg_min: LONG,
            reg_max: LONG,
            dir_min: LONG,
            dir_max: LONG,
        },
        write_window: 64 << 20,
        read_ahead: 8 << 20,
        max_names: 10_000,
        missing_names: true,
        max_inodes: usize::MAX,
    };
    Vfs::new(client, config, Instant::now(), Metrics::new())
}

/// Makes a directory of some files and a link.
async fn furnish(vfs: &Arc<Vfs>, cred: &Arc<Credential>) -> Result<(), Errno> {
    let others = (0..FILES).map(|number| format!("another file, number {number}"));
    for name in others.chain([NAME.to_owned()]) {
        let flags = libc::O_CREAT | libc::O_WRONLY;
        let (entry, opened) = vfs
            .create(cred, ROOT_INO, name.as_bytes(), 0o644, flags)
            .await?;
        let data = vec![7; SIZE].into();
        vfs.write(entry.ino, opened.fh, 0, data, WriteFlags::default())
            .await?;
        vfs.flush(entry.ino, opened.fh, 0).await?;
        vfs.release(entry.ino, opened.fh, None).await?;
    }
    vfs.symlink(cred, ROOT_INO, LINK.as_bytes(), b"nowhere")
        .await?;
    Ok(())
}

impl World {
    async fn new() -> Result<Self, Errno> {
        let (peer, cred) = (Peer::new(PeerConfig::default()), Credential::machine());
        furnish(&mounted(&peer, b"another host").await, &cred).await?;
        let vfs = mounted(&peer, b"this host").await;
        let found = async |name: &str| match vfs.lookup(&cred, ROOT_INO, name.as_bytes()).await? {
            Lookup::Found(entry) => Ok(entry.ino),
            Lookup::Missing { .. } => Err(Errno(libc::ENOENT)),
        };
        let (file, link) = (found(NAME).await?, found(LINK).await?);
        found(MISSING).await.expect_err("a name that is missing");
        vfs.readlink(&cred, link).await?;
        // What comes along with this OPEN is what `read_cached` answers from.
        let opened = vfs.open(&cred, file, libc::O_RDONLY).await?;
        Ok(Self {
            fh: opened.fh,
            file,
            link,
            vfs,
            cred,
        })
    }
}

fn case(
    name: &'static str,
    world: &Rc<World>,
    instructions: [u64; 2],
    run: impl Fn(&World) + 'static,
) -> Case {
    let world = Rc::clone(world);
    Case {
        name,
        allocations: 0,
        bytes: 0,
        instructions,
        times: 10_000,
        run: Box::new(move || run(&world)),
    }
}

/// All of them.
pub(crate) fn cases() -> Vec<Case> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let world = runtime.block_on(World::new());
    let world = Rc::new(world.expect("files on the server in memory"));
    // With the runtime the tasks of the client end: nothing is to wait for them.
    vec![
        case("cached LOOKUP", &world, [3_610, 2_690], |w| {
            let found = w.vfs.lookup_cached(&w.cred, ROOT_INO, NAME.as_bytes());
            assert!(matches!(found, Some(Ok(Lookup::Found(entry))) if entry.ino == w.file));
            w.vfs.forget(w.file, 1);
        }),
        case("cached LOOKUP of no name", &world, [2_350, 1_740], |w| {
            let found = w.vfs.lookup_cached(&w.cred, ROOT_INO, MISSING.as_bytes());
            assert!(matches!(found, Some(Ok(Lookup::Missing { .. }))));
        }),
        case("cached GETATTR", &world, [660, 490], |w| {
            let found = w.vfs.getattr_cached(w.file, None);
            assert!(found.is_some_and(|(stat, _)| stat.size == SIZE as u64));
        }),
        case("cached READLINK", &world, [440, 305], |w| {
            let found = w.vfs.readlink_cached(w.link);
            assert!(found.is_some_and(|text| text == "nowhere"));
        }),
        // Not to the end of the file: that would be forgotten.
        case("cached READ of 4 KiB", &world, [625, 452], |w| {
            let found = w.vfs.read_cached(w.fh, 0, 4096);
            assert!(found.is_some_and(|data| data.len() == 4096));
        }),
    ]
}
