//! What the kernel asks and the vfs answers at once, on the thread that reads from
//! `/dev/fuse`. The vfs and its client are real, the server is in memory; nothing waits
//! for it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use efs_fuse::nfs::ClientConfig;
use efs_fuse::telemetry::Metrics;
use efs_fuse::vfs::Timeouts;
use efs_fuse::vfs::Vfs;
use efs_fuse::vfs::types::{Errno, Ino, Lookup, ROOT_INO};
use efs_fuse::wal::Wal;

use crate::Case;
use crate::peer::{Peer, PeerConfig};
use crate::rig::{Mount, client_config, connect_as};

/// Longer than any measurement here takes.
const LONG: Duration = Duration::from_secs(3600);
/// Bytes that may wait to be written.
const WINDOW: usize = 64 << 20;
/// Other files of the directory.
const FILES: usize = 100;
/// Bytes in each file.
const SIZE: usize = 8192;
const NAME: &str = "a file of this directory";
const LINK: &str = "a link";
const MISSING: &str = "no such name";

struct World {
    vfs: Arc<Vfs>,
    file: Ino,
    link: Ino,
    fh: u64,
}

async fn mounted(peer: &Arc<Peer>, name: &str, wal: Wal) -> Mount {
    let timeouts = Timeouts {
        reg_min: LONG,
        reg_max: LONG,
        dir_min: LONG,
        dir_max: LONG,
    };
    let config = ClientConfig {
        wal,
        ..client_config(name)
    };
    let client = connect_as(peer, config, Metrics::new()).await;
    Mount::over(&client, peer, timeouts, WINDOW)
}

/// Makes a directory of some files and a link.
async fn furnish(mount: &Mount) -> Result<(), Errno> {
    let others = (0..FILES).map(|number| format!("another file, number {number}"));
    for name in others.chain([NAME.to_owned()]) {
        let file = mount.create(ROOT_INO, &name, libc::O_WRONLY).await?;
        mount.write(file, 0, &[7; SIZE]).await?;
        mount.close(file).await?;
    }
    let (vfs, cred) = (&mount.vfs, &mount.cred);
    vfs.symlink(cred, ROOT_INO, LINK.as_bytes(), b"nowhere")
        .await?;
    Ok(())
}

impl World {
    async fn new(wal: Wal) -> Result<Self, Errno> {
        let peer = Peer::new(PeerConfig::default());
        furnish(&mounted(&peer, "another host", Wal::off()).await).await?;
        let mount = mounted(&peer, "this host", wal).await;
        let (file, link) = (mount.walk(NAME).await?, mount.walk(LINK).await?);
        assert_eq!(mount.walk(MISSING).await, Err(Errno(libc::ENOENT)));
        mount.vfs.readlink(&mount.cred, link).await?;
        // What comes along with this OPEN is what `read_cached` answers from.
        let opened = mount.open(file, libc::O_RDONLY).await?;
        Ok(Self {
            fh: opened.fh,
            file,
            link,
            vfs: mount.vfs,
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

/// All of them; once more with a write-ahead log (`takeover=crash`), where nothing of this costs
/// more but what counts the kernel's lookups.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = of(Wal::off(), |plain, _| plain);
    let wal = Wal::create(1 << 20).expect("memory");
    cases.extend(of(wal, |_, logged| logged));
    cases
}

/// The cases of a mount with this log. `choose` has the name of a case without one and with one.
fn of(wal: Wal, choose: fn(&'static str, &'static str) -> &'static str) -> Vec<Case> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let world = runtime.block_on(World::new(wal));
    let world = Rc::new(world.expect("files on the server in memory"));
    macro_rules! name {
        ($name:literal) => {
            choose($name, concat!($name, ", takeover=crash"))
        };
    }
    // With the runtime the tasks of the client end: nothing is to wait for them.
    vec![
        case(name!("cached LOOKUP"), &world, [3_400, 2_490], |w| {
            let found = w.vfs.lookup_cached(ROOT_INO, NAME.as_bytes());
            assert!(matches!(found, Some(Ok(Lookup::Found(entry))) if entry.ino == w.file));
            w.vfs.forget(w.file, 1);
        }),
        case(
            name!("cached LOOKUP of no name"),
            &world,
            [2_200, 1_570],
            |w| {
                let found = w.vfs.lookup_cached(ROOT_INO, MISSING.as_bytes());
                assert!(matches!(found, Some(Ok(Lookup::Missing { .. }))));
            },
        ),
        case(name!("cached GETATTR"), &world, [480, 370], |w| {
            let found = w.vfs.getattr_cached(w.file, None);
            assert!(found.is_some_and(|(stat, _)| stat.size == SIZE as u64));
        }),
        case(name!("cached READLINK"), &world, [290, 155], |w| {
            let found = w.vfs.readlink_cached(w.link);
            assert!(found.is_some_and(|text| text == "nowhere"));
        }),
        // Not to the end of the file: that would be forgotten.
        case(name!("cached READ of 4 KiB"), &world, [575, 332], |w| {
            let found = w.vfs.read_cached(w.fh, 0, 4096);
            assert!(found.is_some_and(|data| data.len() == 4096));
        }),
    ]
}
