//! How deep directories may lie in each other.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::nfs::proto::attrs::NewAttributes;
use crate::nfs::proto::ops::Make;
use crate::nfs::{Client, NfsError};
use crate::rpc::auth::Credential;

/// Deeper than EFS says it goes (1,000).
const DEEPEST: usize = 1010;

/// Makes directories in each other, and removes them from the innermost outwards.
pub(super) async fn depth(client: &Arc<Client>) -> Result<Value, NfsError> {
    let cred = Credential::of_process();
    let outermost = format!(".efs-fuse-probe-{}.deep", std::process::id()).into_bytes();
    let name = |depth: usize| match depth {
        1 => &outermost[..],
        _ => b"d",
    };
    let new = NewAttributes {
        mode: Some(0o700),
        ..NewAttributes::default()
    };
    let mut chain = vec![client.fs().root.clone()];
    let mut why = None;
    while chain.len() <= DEEPEST && why.is_none() {
        let (parent, name) = (&chain[chain.len() - 1], name(chain.len()));
        match client
            .make(&cred, parent, name, Make::Directory, &new)
            .await
        {
            Ok(made) => chain.push(made.handle),
            Err(error) => why = Some(error),
        }
    }
    for depth in (1..chain.len()).rev() {
        client.remove(&cred, &chain[depth - 1], name(depth)).await?;
    }
    let made = chain.len() - 1;
    Ok(match why {
        Some(why) => json!(format!("{made}, then {why}")),
        None => json!(format!("{made} or more")),
    })
}
