//! Attributes of several objects set in one compound, which were accepted before the server knows of
//! them (`writeback`).
//!
//! An object is PUTFH, GETATTR of the change attribute, SETATTR and GETATTR: with EFS's sixteen operations
//! a compound takes three. They run in their order and stop at the first that fails.
//!
//! Redo rule: what was set is set once more, to the same. Nothing of this host comes between the two
//! sendings, since whoever asks about one of these objects waits for them ([`Client::shut_gate`]).

use std::sync::Arc;

use super::super::client::Client;
use super::super::fore_channel::gate::Past;
use super::super::proto::attrs::{CHANGE_ONLY, NewAttributes};
use super::super::proto::ops::Op;
use super::super::proto::reply::{NfsError, Reply};
use super::super::proto::types::{FileHandle, StateId};
use super::super::session::slots::Class;
use super::names::PrePost;
use crate::rpc::auth::Credential;

/// PUTFH, GETATTR, SETATTR, GETATTR.
const OPS_EACH: usize = 4;

/// SEQUENCE.
const IN_FRONT: usize = 1;

impl Client {
    /// How many objects go into one [`set_attrs_of_several`](Self::set_attrs_of_several).
    pub fn sets_at_once(&self) -> usize {
        let operations = (self.session_info().max_ops as usize).saturating_sub(IN_FRONT);
        (operations / OPS_EACH).max(1)
    }

    /// SETATTR of several objects, past the requests that wait for it. One round trip. Of each that
    /// was executed how it moved; the last of those may have failed, and none behind it was executed.
    ///
    /// # Errors
    /// Those of the transport: nothing was done then, as far as is known. [`NfsError::Outgrown`]: they
    /// are more than a compound of the session takes that there is now.
    pub async fn set_attrs_of_several(
        self: &Arc<Self>,
        cred: &Credential,
        sets: &[(FileHandle, NewAttributes)],
    ) -> Result<Vec<Result<PrePost, NfsError>>, NfsError> {
        let operations = IN_FRONT + OPS_EACH * sets.len();
        let mut reply = self
            .fore
            .call_past(Past::Gate, cred, Class::Metadata, |c| {
                if operations > c.most() {
                    c.outgrown();
                    return;
                }
                c.once();
                for (index, (object, new)) in sets.iter().enumerate() {
                    c.put(object);
                    if index == 0 {
                        c.then();
                    }
                    c.get_attrs(CHANGE_ONLY)
                        .set_attrs(StateId::ANONYMOUS, new)
                        .get_attrs(self.object());
                }
            })
            .await?;
        let mut each = Vec::with_capacity(sets.len());
        for _ in sets {
            let set = take_set(&mut reply);
            let is_last = !matches!(&set, Ok(PrePost { after: Some(_), .. }));
            each.push(set);
            if is_last {
                break;
            }
        }
        Ok(each)
    }
}

fn take_set(reply: &mut Reply) -> Result<PrePost, NfsError> {
    let before = reply.ok(Op::PutFh)?.attrs()?.change;
    reply.attrs_set()?;
    Ok(PrePost {
        before: Some(before),
        after: reply.attrs().ok(),
    })
}
