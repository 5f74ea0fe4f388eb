//! Making a client: the first connection, the first session, and who looks after them.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::backoff::Backoff;
use super::client::Client;
use super::config::ClientConfig;
use super::fore_channel::{ForeChannel, Upkeep};
use super::proto::reply::NfsError;
use super::proto::status::Status;
use super::session::current::CurrentSession;
use super::session::establish::{self, ChannelAttrs, ClientId, Identity};
use super::session::live::Session;
use super::{flags, lease, recovery, trunk};
use crate::rpc::Channel;
use crate::rpc::transport::Connector;
use crate::telemetry::Metrics;

/// This many first connections may come to nothing.
const FRUITLESS: u32 = 3;

/// No record of a server's is longer.
const MAX_RECORD: usize = (establish::MAX_IO + 8 * establish::OVERHEAD) as usize;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The connection could not be made.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The server was reached and refused, or talks something else.
    #[error(transparent)]
    Nfs(#[from] NfsError),
    /// Whatever accepts connections there does not answer as an NFS server.
    #[error("no NFS server: {why}")]
    NotNfs {
        /// It answered, with something else.
        garbled: bool,
        /// How the last connection ended.
        why: String,
        /// The same for programs.
        cause: Option<Arc<std::io::Error>>,
    },
}

/// What a client does about its session. A client that is gone does nothing.
struct OfClient(Weak<Client>);

impl Upkeep for OfClient {
    fn session_lost(&self, lost: Arc<Session>) -> bool {
        let client = self.0.upgrade();
        client
            .inspect(|client| recovery::begin(client, lost))
            .is_some()
    }

    fn flags_raised(&self, session: &Arc<Session>, raised: u32) {
        if let Some(client) = self.0.upgrade() {
            flags::heed(&client, session, raised);
        }
    }
}

impl Client {
    /// Connects and makes a session. RECLAIM_COMPLETE is sent: a new client
    /// has nothing to reclaim, and must say so before its first OPEN
    /// (RFC 8881 §18.51).
    ///
    /// # Errors
    /// If the server cannot be reached or does not speak NFSv4.1.
    pub async fn connect(
        connector: Arc<dyn Connector>,
        config: ClientConfig,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, ConnectError> {
        let channel = Channel::connect(
            connector,
            config.connections,
            MAX_RECORD,
            config.tolerance,
            Arc::clone(&metrics),
        )
        .await?;
        // What listens there may be no NFS server at all. A channel would try
        // for ever; a mount must not.
        let mut client_id = tokio::select! {
            biased;
            client_id = exchange_id_patiently(&channel, &config.identity) => client_id?,
            error = no_nfs(&channel, false) => return Err(error),
        };
        let wanted = ChannelAttrs::wanted(config.slots);
        let new =
            create_session_patiently(&channel, &config.identity, &mut client_id, wanted).await?;
        let session = Arc::new(Session::new(&new, 1, 0, config.suspended));
        let current = CurrentSession::new(Arc::clone(&session));
        let fore = ForeChannel::new(channel, config, metrics, current);
        let client = Self::new(Arc::clone(&fore), client_id);
        client.sessions.made(session.id);
        client.record();
        keep_up(&client);
        recovery::reclaim_complete(&fore, &session).await?;
        look_after(&fore);
        Ok(client)
    }
}

/// A channel to a server that was there before.
pub(super) fn connecting(
    connector: Arc<dyn Connector>,
    config: &ClientConfig,
    metrics: &Arc<Metrics>,
) -> std::io::Result<Channel> {
    Channel::connecting(
        connector,
        config.connections,
        MAX_RECORD,
        config.tolerance,
        Arc::clone(metrics),
    )
}

/// Gives the client who sees to its session.
pub(super) fn keep_up(client: &Arc<Client>) {
    client.fore.keep_up(OfClient(Arc::downgrade(client)));
}

/// Begins what goes on as long as the client is there.
pub(super) fn look_after(fore: &Arc<ForeChannel>) {
    trunk::offer(fore);
    let renewed = Arc::downgrade(fore);
    let renew = move || lease::renew(renewed.clone());
    fore.metrics.tasks.restarted("renew", renew);
}

/// Completes when so many connections have come to nothing that whatever is there seems to
/// be no NFS server; if `surely`, only when the last one carried something else.
pub(super) async fn no_nfs(channel: &Channel, surely: bool) -> ConnectError {
    /// Between two looks at connections that are made anew all the time.
    const LOOK: Duration = Duration::from_millis(500);
    loop {
        let link = channel.fruitless(FRUITLESS).await;
        if link.garbled || !surely {
            return ConnectError::NotNfs {
                garbled: link.garbled,
                why: link.last_error.unwrap_or_default(),
                cause: link.cause,
            };
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// EXCHANGE_ID, repeated while the server puts it off.
async fn exchange_id_patiently(
    channel: &Channel,
    identity: &Identity,
) -> Result<ClientId, NfsError> {
    let mut backoff = Backoff::new();
    loop {
        match establish::exchange_id(channel, identity).await {
            Err(NfsError::Status(_, Status::DELAY)) => backoff.pause().await,
            result => return result,
        }
    }
}

/// CREATE_SESSION, repeated under the same sequence while the server puts it
/// off.
async fn create_session_patiently(
    channel: &Channel,
    identity: &Identity,
    client_id: &mut ClientId,
    wanted: ChannelAttrs,
) -> Result<establish::NewSession, NfsError> {
    let mut backoff = Backoff::new();
    loop {
        match establish::create_session(channel, identity, client_id, wanted).await {
            Err(NfsError::Status(_, Status::DELAY)) => backoff.pause().await,
            result => return result,
        }
    }
}
