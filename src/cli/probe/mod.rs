//! What `doctor --probe` finds out about a server: its limits, and how it
//! treats what the protocol leaves open. It makes a file, a directory of 10,000
//! names and a deep one in the root of the mount and removes them.

mod depth;
mod listing;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::efs::ServerConnector;
use crate::nfs::calls::{HowToOpen, Locked};
use crate::nfs::proto::ops::{ACCESS_READ, ACCESS_WRITE};
use crate::nfs::proto::types::Stable;
use crate::nfs::state::OpenState;
use crate::nfs::state::ranges::{LockKind, Span};
use crate::nfs::{Client, NfsError};
use crate::rpc::auth::Credential;

const ROUNDS: u32 = 20;

/// Everything that could be found out; what failed says why.
pub(super) async fn probe(client: &Arc<Client>, connector: &ServerConnector) -> Value {
    let mut found = Map::new();
    let mut say = |name: &str, value: Value| {
        found.insert(name.to_owned(), value);
    };
    // Of the session's connection, before others are made.
    let agreed = connector.agreed();
    if let Some(agreed) = &agreed {
        say(
            "tls",
            json!(format!("{} {}", agreed.version, agreed.cipher)),
        );
        say("tls_certificates_of_server", json!(agreed.certificates));
        say("tls_names_of_server", json!(agreed.names.join(" ")));
        say(
            "tls_asks_for_certificate",
            json!(agreed.asks_for_certificate),
        );
    }
    for (program, answer) in connector.bind_programs().await {
        say(&format!("bind_program_{program}"), json!(answer));
    }
    let (info, server) = (client.session_info(), client.server());
    let words = |bytes: &[u8]| json!(bytes.escape_ascii().to_string());
    say("server_owner", words(&server.major));
    say("server_owner_minor", json!(server.minor));
    say("server_scope", words(&server.scope));
    say("exchange_id_flags", json!(format!("{:#x}", server.flags)));
    say("slots", json!(info.slots));
    say("operations_per_compound", json!(info.max_ops));
    if let Some(agreed) = info.agreed {
        say("longest_request", json!(agreed.max_request));
        say("longest_reply", json!(agreed.max_response));
        say("longest_reply_kept", json!(agreed.max_cached));
    }
    say("lease_s", json!(info.lease));
    let fs = client.fs();
    say("rsize", json!(info.rsize));
    say("wsize", json!(info.wsize));
    say("longest_name", json!(fs.max_name));
    let supported: Vec<u32> = (0..96).filter(|number| fs.supported.has(*number)).collect();
    say("supported_attributes", json!(supported));
    say("handle_bytes", json!(fs.root.as_bytes().len()));
    let (major, minor) = fs.root_attrs.fsid;
    say("root_fsid", json!(format!("{major}:{minor}")));
    say("root_fileid", json!(fs.root_attrs.fileid));
    match times(client).await {
        Ok(times) => {
            say("getattr_median_us", json!(times.getattr));
            say("seven_getattrs_in_one_median_us", json!(times.seven));
            say("readdir_us", json!(times.readdir));
        }
        Err(why) => say("getattr", json!(why.to_string())),
    }
    match writing(client).await {
        Ok(more) => found.extend(more),
        Err(why) => {
            found.insert("writing".to_owned(), json!(why.to_string()));
        }
    }
    match listing::listing(client).await {
        Ok(more) => found.extend(more),
        Err(why) => {
            found.insert("listing".to_owned(), json!(why.to_string()));
        }
    }
    let deepest = depth::depth(client).await;
    let deepest = deepest.unwrap_or_else(|why| json!(why.to_string()));
    found.insert("deepest_directory".to_owned(), deepest);
    // By now they have come.
    if let Some(tickets) = agreed.and_then(|agreed| agreed.tickets()) {
        found.insert("tls_tickets".to_owned(), json!(tickets));
    }
    Value::Object(found)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Microseconds.
struct Times {
    getattr: u64,
    seven: u64,
    readdir: u64,
}

async fn times(client: &Arc<Client>) -> Result<Times, NfsError> {
    let cred = Credential::of_process();
    let root = client.fs().root.clone();
    let (mut one, mut seven) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        client.get_attrs(&cred, &root).await?;
        one.push(micros(begun.elapsed()));
        let begun = Instant::now();
        client.get_attrs_of(&cred, &[&root; 7]).await?;
        seven.push(micros(begun.elapsed()));
    }
    let begun = Instant::now();
    client.read_dir(&cred, &root, 0, [0; 8], u32::MAX).await?;
    let readdir = micros(begun.elapsed());
    let median = |mut all: Vec<u64>| {
        all.sort_unstable();
        all[all.len() / 2]
    };
    Ok(Times {
        getattr: median(one),
        seven: median(seven),
        readdir,
    })
}

/// Whether a name that is no UTF-8 is taken.
async fn odd_name(client: &Arc<Client>, cred: &Arc<Credential>) -> Value {
    let root = client.fs().root.clone();
    let name = [
        b".efs-fuse-probe-\xff-",
        std::process::id().to_string().as_bytes(),
    ]
    .concat();
    let how = HowToOpen::Exclusive;
    match client
        .create(cred, &root, &name, ACCESS_READ, 0o600, how)
        .await
    {
        Ok(made) => {
            let closed = client.close(&made.open).await;
            let removed = client.remove(cred, &root, &name).await;
            match closed.and_then(|()| removed.map(drop)) {
                Ok(()) => json!(true),
                Err(error) => json!(error.to_string()),
            }
        }
        Err(error) => json!(error.to_string()),
    }
}

/// More locks of one file than EFS says it gives (512).
const LOCKS: u64 = 600;

/// How many single bytes of a file can be locked, and why not more.
async fn locks(client: &Arc<Client>, open: &Arc<OpenState>) -> Result<Value, NfsError> {
    let lock = client.prepare_lock(open);
    let turn = lock.turn().await;
    let (mut had, mut why) = (0, None);
    while had < LOCKS && why.is_none() {
        // Not side by side, or they would be one.
        let byte = Span {
            start: 2 * had,
            end: 2 * had,
        };
        match client.lock(&turn, byte, LockKind::Write, false).await {
            Ok(Locked::Granted(_)) => had += 1,
            Ok(Locked::Denied(_)) => why = Some("denied".to_owned()),
            Err(error) => why = Some(error.to_string()),
        }
    }
    client.unlock(&turn, Span::ALL).await?;
    drop(turn);
    client.free_lock(&lock).await?;
    Ok(match why {
        Some(why) => json!(format!("{had}, then {why}")),
        None => json!(format!("{had} or more")),
    })
}

/// How long a denied LOCK takes: (median, longest) of some, microseconds. A server
/// that makes who polls wait shows it in the longest.
async fn denied(client: &Arc<Client>, open: &Arc<OpenState>) -> Result<(u64, u64), NfsError> {
    let (holds, asks) = (client.prepare_lock(open), client.prepare_lock(open));
    let (holder, asker) = (holds.turn().await, asks.turn().await);
    client
        .lock(&holder, Span::ALL, LockKind::Write, false)
        .await?;
    let mut times = Vec::new();
    for _ in 0..5 * ROUNDS {
        let begun = Instant::now();
        let had = client
            .lock(&asker, Span::ALL, LockKind::Write, false)
            .await?;
        times.push(micros(begun.elapsed()));
        if matches!(had, Locked::Granted(_)) {
            return Err(NfsError::Unfit("it gives an exclusive lock twice"));
        }
    }
    client.unlock(&holder, Span::ALL).await?;
    drop((holder, asker));
    client.free_lock(&holds).await?;
    times.sort_unstable();
    Ok((
        times[times.len() / 2],
        times.last().copied().unwrap_or_default(),
    ))
}

/// WRITE, COMMIT, the change attribute, and a file without a name.
async fn writing(client: &Arc<Client>) -> Result<Map<String, Value>, NfsError> {
    let cred = Credential::of_process();
    let root = client.fs().root.clone();
    let name = format!(".efs-fuse-probe-{}", std::process::id()).into_bytes();
    let access = ACCESS_READ | ACCESS_WRITE;
    let made = client
        .create(&cred, &root, &name, access, 0o600, HowToOpen::Exclusive)
        .await?;
    let open = made.open;
    let mut found = Map::new();
    let mut say = |name: &str, value: Value| {
        found.insert(name.to_owned(), value);
    };
    say("preserves_unlinked", json!(made.preserves_unlinked));
    say("change_info_is_atomic", json!(made.dir.atomic.is_some()));
    say(
        "takes_names_that_are_not_utf8",
        odd_name(client, &cred).await,
    );
    // Whatever comes of it, the file goes.
    let tried: Result<(), NfsError> = async {
        let data = [Bytes::from_static(&[7; 4096])];
        let begun = Instant::now();
        let one = client
            .write(&open, open.fence(), 0, Stable::Unstable, &data)
            .await?;
        say("write_4k_us", json!(micros(begun.elapsed())));
        say(
            "unstable_write_is",
            json!(format!("{:?}", one.result.committed)),
        );
        let two = client
            .write(&open, open.fence(), 4096, Stable::Unstable, &data)
            .await?;
        let changes = [one.moved.after.as_ref(), two.moved.after.as_ref()];
        if let [Some(one), Some(two)] = changes {
            say(
                "change_moves_with_each_write",
                json!(one.change != two.change),
            );
        }
        let begun = Instant::now();
        let (verifier, _) = client.commit(&open, 0, 0).await?;
        say("commit_us", json!(micros(begun.elapsed())));
        let same = one.result.verifier == verifier && two.result.verifier == verifier;
        say("write_verifier_is_constant", json!(same));
        say("locks_of_a_file", locks(client, &open).await?);
        let (median, longest) = denied(client, &open).await?;
        say("denied_lock_median_us", json!(median));
        say("denied_lock_longest_us", json!(longest));
        for (feature, had) in client.features(&open).await? {
            let had = had.map_or_else(|error| json!(error.to_string()), |()| json!(true));
            say(feature, had);
        }
        Ok(())
    }
    .await;
    let removed = client.remove(&cred, &root, &name).await;
    let unlinked = client.read(&open, 0, 4096).await;
    say(
        "unlinked_open_file_reads",
        json!(unlinked.is_ok_and(|read| read.data.len() == 4096)),
    );
    let closed = client.close(&open).await;
    tried?;
    removed?;
    closed?;
    Ok(found)
}
