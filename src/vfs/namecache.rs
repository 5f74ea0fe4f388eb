//! Which names lead where, and which are known to be missing.
//!
//! An entry is good while its directory is known not to have moved: it carries
//! the directory's change attribute, and the directory's attributes say until
//! when that one may be believed. Nothing is served from here past that time,
//! and nothing once the change attribute has moved by other hands.
//!
//! Bounded by the number of names; what was used least goes first.

use std::sync::Arc;

use moka::sync::Cache;

use super::inode::Inode;
use super::types::Ino;

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    dir: Ino,
    name: Box<[u8]>,
}

/// Where a name leads.
#[derive(Clone, Debug)]
pub enum Target {
    /// To this inode.
    Inode(Arc<Inode>),
    /// Nowhere.
    Missing,
}

/// What is remembered of a name.
#[derive(Clone, Debug)]
pub struct Remembered {
    /// Where it leads.
    pub target: Target,
    /// The generation and change attribute of the directory it was true for.
    pub dir: (u64, u64),
}

/// The cache.
pub struct NameCache {
    names: Cache<Key, Remembered>,
    /// Missing names are remembered too.
    missing: bool,
}

impl NameCache {
    /// A cache of at most `max` names; of those that exist, and with `missing`
    /// of those that do not.
    pub fn new(max: u64, missing: bool) -> Self {
        Self {
            names: Cache::new(max),
            missing,
        }
    }

    /// What is known of a name.
    pub fn get(&self, dir: &Inode, name: &[u8]) -> Option<Remembered> {
        self.names.get(&key(dir, name))
    }

    /// Remembers a name.
    pub fn put(&self, dir: &Inode, name: &[u8], target: Target, dir_change: u64) {
        if matches!(target, Target::Missing) && !self.missing {
            self.remove(dir, name);
            return;
        }
        let remembered = Remembered {
            target,
            dir: (dir.generation, dir_change),
        };
        self.names.insert(key(dir, name), remembered);
    }

    /// Forgets a name.
    pub fn remove(&self, dir: &Inode, name: &[u8]) {
        self.names.invalidate(&key(dir, name));
    }
}

fn key(dir: &Inode, name: &[u8]) -> Key {
    Key {
        dir: dir.ino,
        name: name.into(),
    }
}
