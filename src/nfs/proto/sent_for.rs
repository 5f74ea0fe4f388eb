//! Which of its operations a compound was sent for: the one that its time is booked under.
//!
//! Linux books the time of a compound under the procedure that made it (`/proc/self/mountstats`),
//! which is the same but for what only we put together.

use super::compound::Compound;
use super::ops::Op;

impl Compound {
    /// The operation that it was sent for: the first that does something to an object or brings something
    /// of it. Where all only find objects and look at them, that is the one which says most: LOOKUP,
    /// then ACCESS, then GETATTR. What stands [in front](Compound::in_front) serves something else,
    /// and what follows a first one rides along with it (READ behind OPEN, COMMIT behind WRITE).
    pub fn sent_for(&self) -> Op {
        let own = self.ops().iter().enumerate();
        let own = own.filter(|(index, _)| !self.is_in_front(*index));
        // Of several that weigh the same, min_by_key takes the first.
        own.map(|(_, op)| *op)
            .min_by_key(|op| rank(*op))
            .unwrap_or(Op::Sequence)
    }
}

/// How near an operation is to the purpose of a compound that has it; 0 is the nearest.
fn rank(op: Op) -> u8 {
    match op {
        Op::Sequence => 6,
        Op::PutFh | Op::PutRootFh | Op::SaveFh | Op::RestoreFh | Op::GetFh => 5,
        Op::Verify | Op::NVerify => 4,
        Op::GetAttr => 3,
        Op::Access => 2,
        Op::Lookup | Op::LookupP => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::attrs::CHANGE_ONLY;
    use super::super::ops::{Claim, Create};
    use super::super::types::{FileHandle, Stable, StateId};
    use super::*;
    use crate::rpc::auth::Credential;

    fn sent_for(build: impl FnOnce(&mut Compound, &FileHandle)) -> Op {
        let nobody = Credential {
            uid: 0,
            gid: 0,
            gids: Vec::new(),
        };
        let handle = FileHandle::try_from(Bytes::from_static(b"h")).expect("a handle");
        let mut compound = Compound::in_session(&nobody, "");
        build(&mut compound, &handle);
        compound.sent_for()
    }

    #[test]
    fn a_compound_was_sent_for_the_first_operation_that_does_something() {
        let open = |c: &mut Compound, handle: &FileHandle| {
            let owner = (1, b"owner".as_slice());
            c.put(handle)
                .open(owner, 1, &Create::No, Claim::Handle)
                .then()
                .get_attrs(CHANGE_ONLY)
                .differs_from(7)
                .read(StateId::CURRENT, 0, 1);
        };
        assert_eq!(sent_for(open), Op::Open);
        let write = |c: &mut Compound, handle: &FileHandle| {
            c.put(handle)
                .get_attrs(CHANGE_ONLY)
                .write_fragment(StateId::ANONYMOUS, 0, Stable::Unstable, &[])
                .then()
                .commit(0, 0)
                .get_attrs(CHANGE_ONLY);
        };
        assert_eq!(sent_for(write), Op::Write);
        let remove_if_same = |c: &mut Compound, handle: &FileHandle| {
            c.put(handle).is_still(7).remove(b"name");
        };
        assert_eq!(sent_for(remove_if_same), Op::Remove);
    }

    #[test]
    fn one_that_only_looks_was_sent_for_what_says_most() {
        let lookup = |c: &mut Compound, handle: &FileHandle| {
            c.put(handle)
                .get_attrs(CHANGE_ONLY)
                .lookup(b"name")
                .get_handle()
                .get_attrs(CHANGE_ONLY)
                .access(1);
        };
        assert_eq!(sent_for(lookup), Op::Lookup);
        let access = |c: &mut Compound, handle: &FileHandle| {
            c.put(handle).access(1).then().get_attrs(CHANGE_ONLY);
        };
        assert_eq!(sent_for(access), Op::Access);
        let attrs = |c: &mut Compound, handle: &FileHandle| {
            c.put(handle).differs_from(7).get_attrs(CHANGE_ONLY);
        };
        assert_eq!(sent_for(attrs), Op::GetAttr);
        assert_eq!(sent_for(|_, _| {}), Op::Sequence);
    }

    #[test]
    fn closes_in_front_are_not_what_it_was_sent_for() {
        let behind = |c: &mut Compound, handle: &FileHandle| {
            c.put(handle).close(StateId::ANONYMOUS).in_front();
            c.put(handle).get_attrs(CHANGE_ONLY);
        };
        assert_eq!(sent_for(behind), Op::GetAttr);
        let alone = |c: &mut Compound, handle: &FileHandle| {
            c.put(handle).close(StateId::ANONYMOUS);
        };
        assert_eq!(sent_for(alone), Op::Close);
    }
}
