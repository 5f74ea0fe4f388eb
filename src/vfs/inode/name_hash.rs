//! Hashes of names that are remembered longer than the names themselves.
//!
//! The key is drawn once a process and not known to whoever names the files. It goes with a
//! mount that is handed over: a listing knows by these hashes what it has given out.

use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

static KEY: OnceLock<[u64; 2]> = OnceLock::new();

fn key() -> [u64; 2] {
    *KEY.get_or_init(|| {
        let random = RandomState::new();
        [random.hash_one(0), random.hash_one(1)]
    })
}

/// A name's hash; the same for the life of the mount.
pub(in crate::vfs) fn hash_name(name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    let [first, second] = key();
    hasher.write_u64(first);
    hasher.write_u64(second);
    hasher.write(name);
    hasher.finish()
}

/// The key, and what it makes of one name: the standard library may hash differently in
/// another build.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::vfs) struct NameHashKey {
    key: [u64; 2],
    proof: u64,
}

const PROOF: &[u8] = b"a name to try the key with";

impl NameHashKey {
    /// The key of this process.
    pub(in crate::vfs) fn of_this_process() -> Self {
        Self {
            key: key(),
            proof: hash_name(PROOF),
        }
    }

    /// Hashes with this key from now on. False if this process hashes differently all the
    /// same: what was remembered by hashes is not known here.
    pub(in crate::vfs) fn adopt(&self) -> bool {
        let _ = KEY.set(self.key);
        key() == self.key && hash_name(PROOF) == self.proof
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_adopted_by_who_hashes_alike_and_by_nobody_else() {
        let own = NameHashKey::of_this_process();
        assert!(own.adopt());
        assert_ne!(hash_name(b"a"), hash_name(b"b"));
        let [first, second] = own.key;
        let key = [first ^ 1, second];
        assert!(!NameHashKey { key, ..own.clone() }.adopt());
        let proof = own.proof ^ 1;
        assert!(!NameHashKey { proof, ..own }.adopt());
    }
}
