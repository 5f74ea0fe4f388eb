//! Several connections in one session (RFC 8881 §2.10.5, session trunking).
//!
//! Each connection beside the first is bound by BIND_CONN_TO_SESSION (§18.34) before
//! it carries anything else. That says more than is needed where a server binds a
//! connection at its first SEQUENCE: a server that does not know the session is
//! another one, behind the same name, and its connection is not used. So what comes
//! over any connection later is about the session, and not about the connection.
//!
//! When the session is lost, the further connections are let go, and come again when
//! there is a new one to bind them to.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::fore_channel::ForeChannel;
use super::proto::reply::{NfsError, Reply};
use super::proto::status::Status;
use super::session::establish;
use crate::rpc::{Greeting, GreetingRefused, Pause, RpcError};

/// After BADSESSION: perhaps one of several servers behind a name.
const ELSEWHERE: Duration = Duration::from_secs(30);

/// Lets the channel have further connections, as many as the configuration allows.
pub(super) fn offer(fore: &Arc<ForeChannel>) {
    let connections = fore.config.connections;
    if connections.most.max(connections.least) > 1 {
        let weak = Arc::downgrade(fore);
        fore.channel.greet_with(move || greeting(&weak));
    }
}

/// Binds a connection to the session of this moment.
fn greeting(fore: &Weak<ForeChannel>) -> Option<Greeting> {
    let fore = fore.upgrade()?;
    let session = fore.session.up()?;
    let compound = establish::bind(&fore.config.identity, session.id);
    let call = compound.finish(None);
    let fore = Arc::downgrade(&fore);
    let generation = session.generation;
    let judge = move |reply: Result<_, RpcError>| {
        let bound = reply
            .map_err(NfsError::from)
            .and_then(|body| Reply::parse(body, compound.ops()))
            .and_then(establish::bound);
        let Some(fore) = fore.upgrade() else {
            return Err(refused("the client is gone", Pause::Forever));
        };
        let now = fore.session.up();
        if now.is_none_or(|now| now.generation != generation) {
            return Err(refused("the session is another one by now", Pause::Growing));
        }
        judge(bound, fore.channel.vouched())
    };
    Some(Greeting {
        call,
        judge: Box::new(judge),
    })
}

fn refused(why: impl std::fmt::Display, pause: Pause) -> GreetingRefused {
    GreetingRefused {
        why: why.to_string(),
        pause,
    }
}

/// What the answer to BIND_CONN_TO_SESSION means. `vouched`: the server has said
/// already that this connection belongs to the others.
fn judge(bound: Result<(), NfsError>, vouched: bool) -> Result<(), GreetingRefused> {
    let Err(error) = bound else { return Ok(()) };
    match error.status() {
        Some(Status::NOTSUPP | Status::OP_ILLEGAL) if vouched => Ok(()),
        Some(Status::BADSESSION | Status::DEADSESSION) => Err(refused(
            format_args!("it does not know the session ({error})"),
            Pause::For(ELSEWHERE),
        )),
        Some(Status::DELAY) | None => Err(refused(error, Pause::Growing)),
        Some(_) => Err(refused(
            format_args!("it cannot be bound to the session ({error})"),
            Pause::Forever,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nfs::proto::ops::Op;

    fn pause_after(status: Status, vouched: bool) -> Option<Pause> {
        let error = NfsError::Status(Op::BindConnToSession, status);
        judge(Err(error), vouched)
            .err()
            .map(|refused| refused.pause)
    }

    #[test]
    fn a_server_that_cannot_bind_is_asked_once_unless_it_vouched_for_the_connection() {
        for status in [Status::NOTSUPP, Status::OP_ILLEGAL] {
            assert_eq!(pause_after(status, false), Some(Pause::Forever));
            assert_eq!(pause_after(status, true), None);
        }
        assert_eq!(pause_after(Status::ACCESS, true), Some(Pause::Forever));
    }

    #[test]
    fn a_reply_that_makes_no_sense_is_the_fault_of_that_connection() {
        let error = NfsError::Rpc(RpcError::Failed("SYSTEM_ERR"));
        let refused = judge(Err(error), false).expect_err("not bound");
        assert_eq!(refused.pause, Pause::Growing);
    }

    #[test]
    fn another_server_behind_the_same_name_is_never_used() {
        for vouched in [false, true] {
            let pause = pause_after(Status::BADSESSION, vouched);
            assert_eq!(pause, Some(Pause::For(ELSEWHERE)));
            assert_eq!(pause_after(Status::DELAY, vouched), Some(Pause::Growing));
        }
    }
}
