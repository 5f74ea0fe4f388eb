//! File handles (RFC 8881 §4): those that the server has given, and those that it is going to
//! give.
//!
//! With `writeback` an object has its place in the tree before the server has made it. Its
//! handle is *promised* until then: it can be kept, compared and put into requests like any
//! other, and a request that names it waits until the promise was kept or broken
//! ([`Compound::awaits`](super::compound::Compound::awaits)).
//!
//! Written down, a handle is its bytes, and one that is promised is a number. Whoever reads that finds
//! by it what became of the promise ([`Promises`]).

use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tokio::sync::Notify;

use super::status::Status;
use crate::xdr::{DecodeError, Decoder};

/// NFS4_FHSIZE: no file handle is longer. EFS uses all of it.
pub const FHSIZE: usize = 128;

/// A file handle: opaque, compared byte by byte, cheap to clone. A promised one is only equal to
/// itself until it is given.
#[derive(Clone)]
pub struct FileHandle(Repr);

#[derive(Clone)]
enum Repr {
    Given(Arc<[u8]>),
    Promised(Arc<Promised>),
}

struct Promised {
    number: u64,
    outcome: OnceLock<Result<Arc<[u8]>, Status>>,
    decided: Notify,
}

/// Whoever has promised a handle. Dropped, it is a promise that was broken (`NFS4ERR_IO`).
pub struct Promise(Arc<Promised>);

impl TryFrom<Bytes> for FileHandle {
    type Error = DecodeError;

    fn try_from(bytes: Bytes) -> Result<Self, DecodeError> {
        match bytes.len() {
            1..=FHSIZE => Ok(Self(Repr::Given(Arc::from(bytes.as_ref())))),
            _ => Err(DecodeError::Invalid("file handle")),
        }
    }
}

impl Serialize for FileHandle {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match &self.settled().0 {
            Repr::Given(bytes) => to.serialize_bytes(bytes),
            Repr::Promised(promised) => to.serialize_u64(promised.number),
        }
    }
}

/// One that is promised is a promise of nobody's, which [`Promises`] replace.
impl<'de> Deserialize<'de> for FileHandle {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Written;
        impl de::Visitor<'_> for Written {
            type Value = FileHandle;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a file handle, or the number of a promise")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<FileHandle, E> {
                let handle = FileHandle::try_from(Bytes::copy_from_slice(bytes));
                handle.map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<FileHandle, E> {
                Ok(FileHandle::undecided(number))
            }
        }
        from.deserialize_any(Written)
    }
}

impl FileHandle {
    /// Takes a handle off a reply.
    pub fn decode(dec: &mut Decoder) -> Result<Self, DecodeError> {
        dec.opaque("file handle", FHSIZE)?.try_into()
    }

    /// A handle that the server is going to give. No other promise has this number while this one is
    /// undecided.
    pub fn promised(number: u64) -> (Self, Promise) {
        let handle = Self::undecided(number);
        let promise = handle.promise().expect("it is undecided");
        (handle, promise)
    }

    fn undecided(number: u64) -> Self {
        Self(Repr::Promised(Arc::new(Promised {
            number,
            outcome: OnceLock::new(),
            decided: Notify::new(),
        })))
    }

    /// One that no server knows.
    pub fn unknown() -> Self {
        Self(Repr::Given(Arc::from([0_u8])))
    }

    /// Whoever makes the object decides by this whether the handle is given.
    pub fn promise(&self) -> Option<Promise> {
        match &self.0 {
            Repr::Promised(promised) if self.is_undecided() => Some(Promise(Arc::clone(promised))),
            _ => None,
        }
    }

    /// The number of the promise, as long as it is one.
    pub fn promise_number(&self) -> Option<u64> {
        match &self.0 {
            Repr::Promised(promised) if self.is_undecided() => Some(promised.number),
            _ => None,
        }
    }

    /// The opaque bytes; none of a handle that the server has not given.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Repr::Given(bytes) => bytes,
            Repr::Promised(promised) => match promised.outcome.get() {
                Some(Ok(bytes)) => bytes,
                Some(Err(_)) | None => &[],
            },
        }
    }

    /// The server has given it.
    pub fn is_given(&self) -> bool {
        !self.as_bytes().is_empty()
    }

    /// Nobody can say yet whether the server will give it.
    pub fn is_undecided(&self) -> bool {
        matches!(&self.0, Repr::Promised(promised) if promised.outcome.get().is_none())
    }

    /// Waits until the server has given it.
    ///
    /// # Errors
    /// Why it never will.
    pub async fn given(&self) -> Result<(), Status> {
        let Repr::Promised(promised) = &self.0 else {
            return Ok(());
        };
        loop {
            let decided = promised.decided.notified();
            tokio::pin!(decided);
            decided.as_mut().enable();
            if let Some(outcome) = promised.outcome.get() {
                return outcome.as_ref().map(drop).map_err(|status| *status);
            }
            decided.await;
        }
    }

    /// The same handle, without the memory of having been promised. One that will never be given is
    /// one that no server knows.
    #[must_use]
    pub fn settled(&self) -> Self {
        match &self.0 {
            Repr::Promised(promised) => match promised.outcome.get() {
                Some(Ok(bytes)) => Self(Repr::Given(Arc::clone(bytes))),
                Some(Err(_)) => Self::unknown(),
                None => self.clone(),
            },
            Repr::Given(_) => self.clone(),
        }
    }
}

impl Promise {
    /// The server has given this handle.
    pub fn keep(&self, handle: &FileHandle) {
        if let Repr::Given(bytes) = &handle.settled().0 {
            self.decide(Ok(Arc::clone(bytes)));
        }
    }

    /// The server has refused to make the object.
    pub fn break_off(&self, status: Status) {
        self.decide(Err(status));
    }

    fn decide(&self, outcome: Result<Arc<[u8]>, Status>) {
        // The first word counts: requests have been sent by it.
        let _ = self.0.outcome.set(outcome);
        self.0.decided.notify_waiters();
    }
}

/// What became of the promises of a process that was killed, by their numbers.
#[derive(Clone, Debug, Default)]
pub struct Promises(HashMap<u64, FileHandle>);

impl Promises {
    /// The object is to be made yet.
    pub fn stand(&mut self, number: u64) {
        let handle = || FileHandle::undecided(number);
        self.0.entry(number).or_insert_with(handle);
    }

    /// The server has given this handle.
    pub fn kept(&mut self, number: u64, handle: FileHandle) {
        self.0.insert(number, handle);
    }

    /// The handle that is meant by one that was read: itself, unless it was a promise then. `None`:
    /// nobody has it, and nobody will make the object.
    pub fn find(&self, read: &FileHandle) -> Option<FileHandle> {
        match read.promise_number() {
            Some(number) => self.0.get(&number).cloned(),
            None => Some(read.clone()),
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.decide(Err(Status::IO));
    }
}

impl fmt::Debug for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Promise")
            .field(&self.0.outcome.get())
            .finish()
    }
}

impl PartialEq for FileHandle {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Repr::Given(a), Repr::Given(b)) => a == b,
            (Repr::Promised(a), Repr::Promised(b)) if Arc::ptr_eq(a, b) => true,
            _ => self.is_given() && self.as_bytes() == other.as_bytes(),
        }
    }
}

impl Eq for FileHandle {}

/// As equality needs it. A map has only handles that are given, or else what is given later is not
/// found in it.
impl Hash for FileHandle {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Debug for FileHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_undecided() {
            return f.write_str("fh:promised");
        }
        f.write_str("fh:")?;
        let mut bytes = self.as_bytes().iter();
        bytes.try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(bytes: &'static [u8]) -> FileHandle {
        Bytes::from_static(bytes).try_into().expect("a handle")
    }

    #[tokio::test]
    async fn a_promised_handle_is_itself_until_it_is_the_one_that_was_given() {
        let (handle, promise) = FileHandle::promised(1);
        let (other, broken) = FileHandle::promised(2);
        let kept = handle.clone();
        assert!(handle == kept && handle != other && handle.is_undecided());
        assert!(handle != given(b"a") && handle.as_bytes().is_empty());
        let waiting = tokio::spawn(async move { kept.given().await });
        tokio::task::yield_now().await;
        promise.keep(&given(b"a"));
        promise.break_off(Status::IO);
        assert_eq!(waiting.await.expect("a task"), Ok(()));
        assert!(handle == given(b"a") && handle == handle.settled() && handle.is_given());
        assert!(handle != given(b"b") && !handle.is_undecided());
        broken.break_off(Status::DQUOT);
        assert_eq!(other.given().await, Err(Status::DQUOT));
        assert!(!other.is_given() && !other.is_undecided() && other == other.clone());
    }

    #[tokio::test]
    async fn a_promise_that_is_dropped_is_broken() {
        let (handle, promise) = FileHandle::promised(1);
        drop(promise);
        assert_eq!(handle.given().await, Err(Status::IO));
    }

    #[test]
    fn a_promise_that_is_read_again_is_what_became_of_it() -> Result<(), Box<dyn std::error::Error>>
    {
        let (handle, promise) = FileHandle::promised(7);
        let written = rmp_serde::to_vec(&handle)?;
        let read: FileHandle = rmp_serde::from_slice(&written)?;
        assert_eq!(read.promise_number(), Some(7));
        let mut promises = Promises::default();
        assert_eq!(
            promises.find(&read),
            None,
            "its object is not going to be made"
        );
        promises.stand(7);
        let (one, other) = (promises.find(&read), promises.find(&read));
        assert!(one == other && one.is_some_and(|one| one.is_undecided()));
        promises.kept(7, given(b"a"));
        assert_eq!(promises.find(&read), Some(given(b"a")));
        promise.keep(&given(b"b"));
        let written = rmp_serde::to_vec(&handle)?;
        let read: FileHandle = rmp_serde::from_slice(&written)?;
        assert_eq!(promises.find(&read), Some(given(b"b")));
        Ok(())
    }
}
