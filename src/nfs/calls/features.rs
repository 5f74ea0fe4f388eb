//! What the protocol leaves to servers, asked for one by one. For people (`doctor
//! --probe`): the client itself asks for such things as it goes, and does without
//! what is refused.

use std::sync::Arc;

use super::super::client::Client;
use super::super::proto::attrs::CHANGE_ONLY;
use super::super::proto::compound::Compound;
use super::super::proto::ops::{ACCESS_READ, Claim, Create, Op};
use super::super::proto::reply::{NfsError, Reply};
use super::super::proto::status::Status;
use super::super::proto::types::StateId;
use super::super::session::establish;
use super::super::session::slots::Class;
use super::super::state::OpenState;

/// A feature, and why it is not to be had.
pub type Feature = (&'static str, Result<(), NfsError>);

impl Client {
    /// Tries everything on a file that is open for reading. The first error of the
    /// connection ends it.
    pub async fn features(
        self: &Arc<Self>,
        open: &Arc<OpenState>,
    ) -> Result<Vec<Feature>, NfsError> {
        Ok(vec![
            // §18.16.3: OPEN of a handle.
            ("claim_fh", self.reopened(open, false).await?),
            // §16.2.3.1.2: the stateid of the OPEN before it, in one compound.
            ("current_stateid", self.reopened(open, true).await?),
            // §8.2.3: a READ that names no open.
            ("anonymous_read", self.read_anonymously(open).await?),
            // §18.15.
            ("nverify", self.nverify(open).await?),
            // §18.34: what several connections in one session take.
            ("bind_conn_to_session", self.rebound().await?),
        ])
    }

    async fn ask(
        self: &Arc<Self>,
        open: &Arc<OpenState>,
        build: impl Fn(&mut Compound) + Send + Sync,
    ) -> Result<Reply, NfsError> {
        let whole = |c: &mut Compound| {
            c.put(&open.handle);
            build(c);
        };
        let mut reply = self.call(&open.cred, Class::Metadata, whole).await?;
        reply.ok(Op::PutFh)?;
        Ok(reply)
    }

    /// OPEN by the handle, with a READ behind it if `reads`.
    async fn reopened(
        self: &Arc<Self>,
        open: &Arc<OpenState>,
        reads: bool,
    ) -> Result<Result<(), NfsError>, NfsError> {
        let owner = open.owner.to_be_bytes();
        let mut reply = self
            .ask(open, |c| {
                let owner = self.open_owner(&owner);
                c.open(owner, ACCESS_READ, &Create::No, Claim::Handle)
                    .then();
                if reads {
                    c.read(StateId::CURRENT, 0, 1);
                }
            })
            .await?;
        let opened = match reply.open() {
            Ok(opened) => opened,
            Err(error) => return Ok(Err(error)),
        };
        open.opened(opened.stateid, ACCESS_READ);
        Ok(match reads {
            true => reply.read().map(drop),
            false => Ok(()),
        })
    }

    async fn read_anonymously(
        self: &Arc<Self>,
        open: &Arc<OpenState>,
    ) -> Result<Result<(), NfsError>, NfsError> {
        let mut reply = self
            .ask(open, |c| {
                c.read(StateId::ANONYMOUS, 0, 1);
            })
            .await?;
        Ok(reply.read().map(drop))
    }

    async fn nverify(
        self: &Arc<Self>,
        open: &Arc<OpenState>,
    ) -> Result<Result<(), NfsError>, NfsError> {
        let mut reply = self
            .ask(open, |c| {
                c.get_attrs(CHANGE_ONLY);
            })
            .await?;
        let change = reply.attrs()?.change;
        let mut reply = self
            .ask(open, |c| {
                c.then().differs_from(change);
            })
            .await?;
        Ok(match reply.ok(Op::NVerify) {
            Err(NfsError::Status(_, Status::SAME)) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(NfsError::Unfit("it finds a change where there is none")),
        })
    }

    /// Binds the connection to the session it belongs to already.
    async fn rebound(self: &Arc<Self>) -> Result<Result<(), NfsError>, NfsError> {
        let session = self.session().await?;
        let Some(connection) = self
            .fore
            .channel
            .connections()
            .first()
            .map(|connection| connection.id)
        else {
            return Ok(Err(NfsError::Unfit("there is no connection")));
        };
        let identity = &self.config().identity;
        match establish::bind_connection(&self.fore.channel, connection, identity, session.id).await
        {
            Err(NfsError::Rpc(error)) => Err(error.into()),
            bound => Ok(bound),
        }
    }
}
