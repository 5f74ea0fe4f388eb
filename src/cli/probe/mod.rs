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
use crate::efs::tls::Agreed;
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
    // Of the session's connection, before others are made.
    let agreed = connector.agreed();
    if let Some(agreed) = &agreed {
        tls(&mut found, agreed);
    }
    for (program, answer) in connector.bind_programs().await {
        say(&mut found, &format!("bind_program_{program}"), answer);
    }
    protocol(&mut found, client);
    match times(client).await {
        Ok(times) => {
            say(&mut found, "getattr_median_us", times.getattr);
            say(&mut found, "seven_getattrs_in_one_median_us", times.seven);
            say(&mut found, "readdir_us", times.readdir);
        }
        Err(why) => say(&mut found, "getattr", why.to_string()),
    }
    match writing(client).await {
        Ok(more) => found.extend(more),
        Err(why) => say(&mut found, "writing", why.to_string()),
    }
    match listing::listing(client).await {
        Ok(more) => found.extend(more),
        Err(why) => say(&mut found, "listing", why.to_string()),
    }
    let deepest = depth::depth(client).await;
    let deepest = deepest.unwrap_or_else(|why| json!(why.to_string()));
    say(&mut found, "deepest_directory", deepest);
    // By now they have come.
    if let Some(tickets) = agreed.and_then(|agreed| agreed.tickets()) {
        say(&mut found, "tls_tickets", tickets);
    }
    Value::Object(found)
}

fn say(found: &mut Map<String, Value>, name: &str, value: impl serde::Serialize) {
    found.insert(name.to_owned(), json!(value));
}

/// What was agreed upon for TLS.
fn tls(found: &mut Map<String, Value>, agreed: &Agreed) {
    let version = format!("{} {}", agreed.version, agreed.cipher);
    say(found, "tls", version);
    let (certificates, names) = (&agreed.certificates, agreed.names.join(" "));
    say(found, "tls_certificates_of_server", certificates);
    say(found, "tls_names_of_server", names);
    let asks = agreed.asks_for_certificate;
    say(found, "tls_asks_for_certificate", asks);
}

/// Who the server says it is, what it grants a session, and what its file system has.
fn protocol(found: &mut Map<String, Value>, client: &Client) {
    let (info, server) = (client.session_info(), client.server());
    let words = |bytes: &[u8]| bytes.escape_ascii().to_string();
    say(found, "server_owner", words(&server.major));
    say(found, "server_owner_minor", server.minor);
    say(found, "server_scope", words(&server.scope));
    say(found, "exchange_id_flags", format!("{:#x}", server.flags));
    say(found, "slots", info.slots);
    say(found, "operations_per_compound", info.max_ops);
    if let Some(agreed) = info.agreed {
        say(found, "longest_request", agreed.max_request);
        say(found, "longest_reply", agreed.max_response);
        say(found, "longest_reply_kept", agreed.max_cached);
    }
    say(found, "lease_s", info.lease);
    let fs = client.fs();
    say(found, "rsize", info.rsize);
    say(found, "wsize", info.wsize);
    say(found, "longest_name", fs.max_name);
    let supported: Vec<u32> = (0..96).filter(|number| fs.supported.has(*number)).collect();
    say(found, "supported_attributes", supported);
    say(found, "handle_bytes", fs.root.as_bytes().len());
    let (major, minor) = fs.root_attrs.fsid;
    say(found, "root_fsid", format!("{major}:{minor}"));
    say(found, "root_fileid", fs.root_attrs.fileid);
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
