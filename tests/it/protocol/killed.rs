//! A process that is killed in the middle of a request, and the next one, which is asked the same
//! by the kernel: what must not run twice runs once.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use efs_fuse::nfs::calls::HowToOpen;
use efs_fuse::nfs::handover::{ClientState, TakenOver, Unanswered};
use efs_fuse::nfs::proto::attrs::NewAttributes;
use efs_fuse::nfs::proto::ops::{ACCESS_READ, ACCESS_WRITE, Make};
use efs_fuse::nfs::proto::status::Status;
use efs_fuse::nfs::{Client, ClientConfig, NfsError};
use efs_fuse::rpc::auth::Credential;
use efs_fuse::rpc::caller::{self, Caller, KernelRequest};
use efs_fuse::telemetry::Metrics;
use efs_fuse::wal::{Survived, Table, Wal};

use super::rig::{client_config, connect_as, millis, once_at, seconds, within};
use crate::peer::proto::op;
use crate::peer::{Action, Peer, PeerConfig};

const UNIQUE: u64 = 4711;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Mkdir,
    Mknod,
    Symlink,
    Link,
    Unlink,
    Rmdir,
    Rename,
    Replace,
    CreateExclusive,
    Create,
    OpenByName,
    Hide,
}

const ALL: [What; 12] = [
    What::Mkdir,
    What::Mknod,
    What::Symlink,
    What::Link,
    What::Unlink,
    What::Rmdir,
    What::Rename,
    What::Replace,
    What::CreateExclusive,
    What::Create,
    What::OpenByName,
    What::Hide,
];

impl What {
    fn op(self) -> u32 {
        match self {
            Self::Mkdir | Self::Mknod | Self::Symlink => op::CREATE,
            Self::Link => op::LINK,
            Self::Unlink | Self::Rmdir => op::REMOVE,
            Self::Rename | Self::Replace | Self::Hide => op::RENAME,
            Self::CreateExclusive | Self::Create | Self::OpenByName => op::OPEN,
        }
    }

    /// Another host undoes it, or makes something of the same name.
    fn opposite(self, peer: &Arc<Peer>) {
        let fs = peer.fs();
        match self {
            Self::Mkdir | Self::Mknod | Self::Symlink => fs.remove("/made"),
            Self::Link => fs.remove("/linked"),
            Self::Unlink | Self::Hide => fs.write_file("/victim", b"another's"),
            Self::Rmdir => fs.mkdir("/empty"),
            Self::Rename | Self::Replace => fs.write_file("/from", b"another's"),
            Self::CreateExclusive | Self::Create => fs.remove("/fresh"),
            Self::OpenByName => fs.remove("/object"),
        }
        .unwrap();
    }

    async fn run(self, client: &Arc<Client>) -> Result<(), NfsError> {
        let cred = Credential::machine();
        let root = client.fs().root.clone();
        let object = async |name: &[u8]| client.lookup(&cred, &root, name).await;
        let new = NewAttributes::default();
        let make = async |make| {
            let made = client.make(&cred, &root, b"made", make, &new).await;
            made.map(drop)
        };
        let create = async |how| {
            let access = ACCESS_READ | ACCESS_WRITE;
            let created = client.create(&cred, &root, b"fresh", access, 0o644, how);
            let created = created.await?;
            assert!(created.is_new);
            client.close(&created.open).await
        };
        let rename = async |to: &[u8]| {
            let renamed = client.rename(&cred, (&root, b"from"), (&root, to), None);
            renamed.await.map(drop)
        };
        match self {
            Self::Mkdir => make(Make::Directory).await,
            Self::Mknod => make(Make::Fifo).await,
            Self::Symlink => make(Make::Symlink(b"target")).await,
            Self::Link => {
                let (handle, _) = object(b"object").await?.object.unwrap();
                let linked = client.link(&cred, &handle, &root, b"linked").await;
                linked.map(drop)
            }
            Self::Unlink => client.remove(&cred, &root, b"victim").await.map(drop),
            Self::Rmdir => client.remove(&cred, &root, b"empty").await.map(drop),
            Self::Rename => rename(b"to").await,
            Self::Replace => rename(b"old").await,
            Self::CreateExclusive => create(HowToOpen::Exclusive).await,
            Self::Create => create(HowToOpen::Existing).await,
            Self::OpenByName => {
                let opened = client.open_name(&cred, &root, b"object", ACCESS_READ);
                let opened = opened.await?.expect("it was there");
                client.close(&opened.open).await
            }
            Self::Hide => {
                // The inode is known to whoever runs it: its handle and number do not change.
                let found = match object(b".nfs1").await?.object {
                    Some(found) => found,
                    None => object(b"victim").await?.object.unwrap(),
                };
                let (handle, attrs) = found;
                let names = (&b"victim"[..], &b".nfs1"[..]);
                let hidden = client.hide_name(&cred, &root, names, (&handle, attrs.fileid));
                hidden.await.map(drop)
            }
        }
    }
}

/// The kernel asks for it.
async fn asked(client: &Arc<Client>, what: What, resent: bool) -> Result<(), NfsError> {
    let unique = UNIQUE;
    let request = KernelRequest { unique, resent };
    let caller = Caller::of(None, 0, request);
    let work = what.run(client);
    within(300, caller::on_behalf_of(Some(caller), work)).await
}

/// What a process has left that was killed.
struct Killed {
    peer: Arc<Peer>,
    state: ClientState,
    log: File,
}

fn config() -> ClientConfig {
    ClientConfig {
        wal: Wal::create(1 << 16).unwrap(),
        ..client_config("one")
    }
}

/// Where the process is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kill {
    Unreceived,
    Unreplied,
    Replied,
}

impl Killed {
    async fn at(kill: Kill, what: What) -> Self {
        Self::of(kill, what, false).await
    }

    /// The caller was answered before.
    async fn given_up(kill: Kill, what: What) -> Self {
        Self::of(kill, what, true).await
    }

    /// In the second attempt of a directory's removal, which was not empty at the first.
    async fn at_second(kill: Kill, what: What) -> Self {
        let (peer, client) = Self::begins().await;
        peer.fs().write_file("/empty/file", b"x").unwrap();
        let refused = asked(&client, what, false).await;
        assert_eq!(refused.unwrap_err().status(), Some(Status::NOTEMPTY));
        peer.fs().remove("/empty/file").unwrap();
        Self::while_it_runs(kill, what, false, (peer, client)).await
    }

    async fn begins() -> (Arc<Peer>, Arc<Client>) {
        let peer = Peer::new(PeerConfig::default());
        let fs = peer.fs();
        fs.write_file("/victim", b"x").unwrap();
        fs.write_file("/from", b"from").unwrap();
        fs.write_file("/old", b"old").unwrap();
        fs.write_file("/object", b"object").unwrap();
        fs.mkdir("/empty").unwrap();
        let client = connect_as(&peer, config(), Metrics::new()).await;
        (peer, client)
    }

    async fn of(kill: Kill, what: What, given_up: bool) -> Self {
        Self::while_it_runs(kill, what, given_up, Self::begins().await).await
    }

    async fn while_it_runs(
        kill: Kill,
        what: What,
        given_up: bool,
        (peer, client): (Arc<Peer>, Arc<Client>),
    ) -> Self {
        peer.clear_log();
        match kill {
            Kill::Unreceived => {
                let mut seen = false;
                peer.on_op(move |event| {
                    seen |= event.compound.contains(&what.op());
                    match seen && event.op == op::SEQUENCE {
                        true => Action::DropConnectionBefore,
                        false => Action::Pass,
                    }
                });
            }
            Kill::Unreplied => once_at(&peer, what.op(), Action::SwallowReply),
            Kill::Replied => {}
        }
        let dying = Arc::clone(&client);
        let request = tokio::spawn(async move { asked(&dying, what, false).await });
        seconds(2).await;
        if given_up {
            client.request_given_up(UNIQUE);
        }
        let killed = Self::now(&peer, &client);
        match kill {
            Kill::Replied => request.await.unwrap().expect("it went well"),
            _ => request.abort(),
        }
        client.channel().close();
        drop(client);
        millis(10).await;
        peer.clear_script();
        killed
    }

    /// What there is of it at this moment.
    fn now(peer: &Arc<Peer>, client: &Arc<Client>) -> Self {
        let state = client.hand_over();
        // Whatever is put from here on is not seen: the log is a copy.
        let memory = client.wal().memory().unwrap();
        Self {
            peer: Arc::clone(peer),
            state,
            log: copy(memory),
        }
    }

    fn log(&self) -> Survived {
        Survived::read(self.log.try_clone().unwrap()).unwrap()
    }

    async fn taken(&self) -> (Arc<Client>, TakenOver) {
        self.taken_with(Unanswered::read(&self.log()).unwrap())
            .await
    }

    async fn taken_with(&self, left: Unanswered) -> (Arc<Client>, TakenOver) {
        let (connector, state) = (self.peer.connector(), self.state.clone());
        let taken = Client::take_over_killed(connector, config(), Metrics::new(), state, left);
        within(600, taken).await.expect("the server goes on")
    }

    /// How often the server has executed it.
    fn executed(&self, what: What) -> usize {
        let is_executed = |one: &crate::peer::Executed| {
            let at = one.ops.iter().position(|number| *number == what.op());
            at.is_some_and(|at| one.statuses.get(at) == Some(&0))
        };
        self.peer
            .log()
            .iter()
            .filter(|one| is_executed(one))
            .count()
    }
}

/// The header and the log of a memory that is otherwise empty, in a file of their own.
fn copy(memory: &File) -> File {
    let to = tempfile::tempfile().unwrap();
    for at in [0, 1 << 30] {
        let mut part = vec![0; 256 << 10];
        memory.read_exact_at(&mut part, at).unwrap();
        to.write_all_at(&part, at).unwrap();
    }
    to
}

#[tokio::test(start_paused = true)]
async fn what_a_killed_process_was_at_runs_once_and_ends_as_if_nothing_had_happened() {
    for kill in [Kill::Unreceived, Kill::Unreplied, Kill::Replied] {
        for what in ALL {
            let killed = Killed::at(kill, what).await;
            let (client, _taken) = killed.taken().await;
            let again = asked(&client, what, true).await;
            assert_eq!(again, Ok(()), "{what:?}, killed {kill:?}");
            assert_eq!(killed.executed(what), 1, "{what:?}, killed {kill:?}");
            seconds(5).await;
            assert_eq!(killed.peer.open_count(), 0, "{what:?}, killed {kill:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_another_host_has_done_since_is_left_alone() {
    for kill in [Kill::Unreplied, Kill::Replied] {
        for what in ALL {
            // It looks for its file first, which the vfs does not.
            if what == What::Hide {
                continue;
            }
            let killed = Killed::at(kill, what).await;
            what.opposite(&killed.peer);
            let names = killed.peer.fs().list("/").unwrap();
            let (client, _taken) = killed.taken().await;
            let again = asked(&client, what, true).await;
            assert_eq!(again, Ok(()), "{what:?}, killed {kill:?}");
            assert_eq!(killed.executed(what), 1, "{what:?}, killed {kill:?}");
            assert_eq!(killed.peer.fs().list("/").unwrap(), names, "{what:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn those_who_take_over_may_be_killed_as_well() {
    for kill in [Kill::Unreplied, Kill::Replied] {
        for what in ALL {
            let first = Killed::at(kill, what).await;
            // Before and after it ran the operation again.
            let (second, taken) = first.taken().await;
            let second_dies = Killed::now(&first.peer, &second);
            second.channel().close();
            drop((second, taken));
            let (third, taken) = second_dies.taken().await;
            assert_eq!(asked(&third, what, true).await, Ok(()), "{what:?}");
            let third_dies = Killed::now(&first.peer, &third);
            third.channel().close();
            drop((third, taken));
            let (fourth, _taken) = third_dies.taken().await;
            // What that one has opened it has closed as well, and the kernel has its answer.
            if what.op() != op::OPEN {
                assert_eq!(asked(&fourth, what, true).await, Ok(()), "{what:?}");
            }
            assert_eq!(first.executed(what), 1, "{what:?}, killed {kill:?}");
        }
    }
}

/// rmdir(2) of a directory with nothing but hidden names: REMOVE is refused, the names are moved
/// away, and the same REMOVE is sent once more.
#[tokio::test(start_paused = true)]
async fn what_was_refused_first_and_ran_then_has_run() {
    for kill in [Kill::Unreplied, Kill::Replied] {
        let killed = Killed::at_second(kill, What::Rmdir).await;
        let (client, _taken) = killed.taken().await;
        let again = asked(&client, What::Rmdir, true).await;
        assert_eq!(again, Ok(()), "killed {kill:?}");
        assert_eq!(killed.executed(What::Rmdir), 1, "killed {kill:?}");
    }
}

/// The planted opposite: without what was recorded a second run fails.
#[tokio::test(start_paused = true)]
async fn without_the_records_the_second_run_is_refused() {
    for what in [
        What::Mkdir,
        What::Mknod,
        What::Symlink,
        What::Link,
        What::Unlink,
        What::Rmdir,
        What::Rename,
        What::Replace,
    ] {
        let killed = Killed::at(Kill::Unreplied, what).await;
        let (client, _taken) = killed.taken_with(Unanswered::default()).await;
        assert!(asked(&client, what, true).await.is_err(), "{what:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_given_up_is_not_executed_late() {
    for kill in [Kill::Unreceived, Kill::Unreplied] {
        for what in [What::Mkdir, What::Unlink] {
            let killed = Killed::given_up(kill, what).await;
            let before = killed.executed(what);
            let (client, _taken) = killed.taken().await;
            client.outcomes_are_through();
            seconds(5).await;
            assert_eq!(killed.executed(what), before, "{what:?}, killed {kill:?}");
            assert_eq!(killed.peer.open_count(), 0, "{what:?}, killed {kill:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_answered_leaves_no_record() {
    let peer = Peer::new(PeerConfig::default());
    let client = connect_as(&peer, config(), Metrics::new()).await;
    assert_eq!(asked(&client, What::Mkdir, false).await, Ok(()));
    let left = |client| {
        let log = Killed::now(&peer, client).log();
        let sent: Vec<(u64, serde::de::IgnoredAny)> = log.table(Table::Sent).unwrap();
        sent.len()
    };
    assert_eq!(left(&client), 1);
    client.request_answered(UNIQUE);
    assert_eq!(left(&client), 0);
}
