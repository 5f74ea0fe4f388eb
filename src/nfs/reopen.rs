//! Opening again what the server has dropped in a living session.

use std::sync::Arc;

use super::client::Client;
use super::proto::ops::{ACCESS_READ, Claim, Create, Op};
use super::proto::reply::NfsError;
use super::proto::status::Status;
use super::session::slots::Class;
use super::state::OpenState;
use super::{close, stateids};
use crate::rpc::caller;
use crate::telemetry::repeats::Repeats;

static OPENS_DROPPED: Repeats = Repeats::new(|count| {
    tracing::warn!(
        "the server dropped the state of open files {count} times; they are opened again"
    );
});

/// An operation on `open` failed because the server does not know its
/// state (any more); `token` came with the stateid that was used. After Ok
/// it is to be tried again with a fresh stateid.
///
/// STALE_STATEID is no exception: a server that restarted has forgotten the
/// session as well, and with that everything is reclaimed; what is stale in
/// a living session was opened while that went on.
///
/// # Errors
/// The open is lost: [`NfsError::StateLost`], or what the server said to the OPEN.
pub(super) async fn renew_state(
    client: &Client,
    open: &Arc<OpenState>,
    token: u32,
    status: Status,
) -> Result<(), NfsError> {
    // The open may be others' too: it is renewed whoever waits.
    caller::apart(renew(client, open, token, status)).await
}

async fn renew(
    client: &Client,
    open: &Arc<OpenState>,
    token: u32,
    status: Status,
) -> Result<(), NfsError> {
    if open.is_dead() {
        return Err(NfsError::StateLost);
    }
    if open.renewed_since(token) {
        return Ok(());
    }
    tracing::debug!("the server dropped the state of an open file: {status}");
    OPENS_DROPPED.happened();
    if matches!(
        status,
        Status::EXPIRED | Status::ADMIN_REVOKED | Status::DELEG_REVOKED
    ) {
        let locks = open.lock_states();
        let locks = locks.iter().filter_map(|lock| lock.stateid());
        for stateid in locks.chain(open.exact()) {
            stateids::free(&client.fore, &open.cred, stateid).await;
        }
    }
    let mut reply = client
        .call(&open.cred, Class::Metadata, |c| {
            c.put(&open.handle).once().open(
                client.open_owner(&open.owner.to_be_bytes()),
                open.access().max(ACCESS_READ),
                &Create::No,
                Claim::Handle,
            );
        })
        .await?;
    let put = reply.ok(Op::PutFh).map(|_| ());
    match put.and_then(|()| reply.open()) {
        Ok(opened) => {
            open.renewed(opened.stateid);
            open.lose_locks();
            if open.is_dead() {
                // Closed meanwhile, with the stateid that is no more.
                close::close(&client.fore, open, opened.stateid).await?;
                return Err(NfsError::StateLost);
            }
            Ok(())
        }
        Err(error) => {
            open.lose();
            open.lose_locks();
            Err(error)
        }
    }
}
