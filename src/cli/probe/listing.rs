//! How a server lists a large directory.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};
use tokio::task::JoinSet;

use super::micros;
use crate::nfs::proto::attrs::NewAttributes;
use crate::nfs::proto::ops::Make;
use crate::nfs::proto::types::FileHandle;
use crate::nfs::{Client, NfsError};
use crate::rpc::auth::Credential;
use crate::tree::Top;
use crate::tree::progress::Progress;
use crate::tree::remove::{self, Wanted};

/// As many as the question is about.
const NAMES: u64 = 10_000;
/// Names that are being made at a time.
const AT_ONCE: usize = 64;

/// Makes a directory with [`NAMES`] symbolic links (one round trip each, no opens),
/// lists it twice and removes it, whatever comes of it.
pub(super) async fn listing(client: &Arc<Client>) -> Result<Map<String, Value>, NfsError> {
    let cred = Credential::of_process();
    let root = client.fs().root.clone();
    let name = format!(".efs-fuse-probe-{}.d", std::process::id()).into_bytes();
    let new = NewAttributes {
        mode: Some(0o700),
        ..NewAttributes::default()
    };
    let made = client
        .make(&cred, &root, &name, Make::Directory, &new)
        .await?;
    let tried = filled_and_listed(client, &cred, made.handle).await;
    let mut found = Map::new();
    let begun = Instant::now();
    if let Some(top) = Top::find(client, &cred, &name).await? {
        let (wanted, progress) = (Wanted::default(), Arc::new(Progress::default()));
        if !remove::remove(Arc::clone(client), cred, &top, wanted, progress).await? {
            found.insert(
                "left_behind".to_owned(),
                json!(name.escape_ascii().to_string()),
            );
        }
    }
    found.insert("remove_10000_us".to_owned(), json!(micros(begun.elapsed())));
    found.extend(tried?);
    Ok(found)
}

async fn filled_and_listed(
    client: &Arc<Client>,
    cred: &Arc<Credential>,
    dir: FileHandle,
) -> Result<Map<String, Value>, NfsError> {
    let begun = Instant::now();
    fill(client, cred, &dir).await?;
    let filled = micros(begun.elapsed());
    let begun = Instant::now();
    let first = listed(client, cred, &dir).await?;
    let took = micros(begun.elapsed());
    let second = listed(client, cred, &dir).await?;
    let mut found = Map::new();
    let mut say = |name: &str, value: Value| {
        found.insert(name.to_owned(), value);
    };
    say("create_10000_us", json!(filled));
    say("readdir_10000_us", json!(took));
    say("readdir_10000_pages", json!(first.pages));
    say("readdir_10000_names", json!(first.entries.len()));
    say(
        "readdir_cookies_are_stable",
        json!(first.entries == second.entries),
    );
    Ok(found)
}

async fn fill(
    client: &Arc<Client>,
    cred: &Arc<Credential>,
    dir: &FileHandle,
) -> Result<(), NfsError> {
    let mut making: JoinSet<Result<(), NfsError>> = JoinSet::new();
    let mut outcome = Ok(());
    let mut numbers = 0..NAMES;
    loop {
        while outcome.is_ok()
            && making.len() < AT_ONCE
            && let Some(number) = numbers.next()
        {
            let (client, cred, dir) = (Arc::clone(client), Arc::clone(cred), dir.clone());
            making.spawn(async move {
                let name = format!("a name of some length {number}").into_bytes();
                let (make, new) = (Make::Symlink(b"nowhere"), NewAttributes::default());
                client.make(&cred, &dir, &name, make, &new).await.map(drop)
            });
        }
        // All of them end before the directory is removed.
        match making.join_next().await {
            Some(made) => outcome = outcome.and_then(|()| made.unwrap_or(Ok(()))),
            None => return outcome,
        }
    }
}

/// A whole listing.
struct WholeListing {
    pages: u32,
    /// Name and cookie.
    entries: Vec<(Vec<u8>, u64)>,
}

async fn listed(
    client: &Arc<Client>,
    cred: &Credential,
    dir: &FileHandle,
) -> Result<WholeListing, NfsError> {
    let (mut pages, mut entries) = (0, Vec::new());
    let (mut cookie, mut verifier) = (0, [0; 8]);
    loop {
        let (_, page) = client
            .read_dir(cred, dir, cookie, verifier, u32::MAX)
            .await?;
        pages += 1;
        entries.extend(page.entries.iter().map(|e| (e.name.to_vec(), e.cookie)));
        let Some(last) = page.entries.last() else {
            return Ok(WholeListing { pages, entries });
        };
        // A server whose cookies go in circles ends here too.
        if page.eof || entries.len() as u64 > 2 * NAMES {
            return Ok(WholeListing { pages, entries });
        }
        (cookie, verifier) = (last.cookie, page.verifier);
    }
}
