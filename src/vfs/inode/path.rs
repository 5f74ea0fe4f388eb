//! The path of an object, as far as it is known: for people, who are told what has become of it.

use std::sync::Arc;

use super::Inode;
use crate::quoting;
use crate::vfs::types::ROOT_INO;

/// A longer way is shown from its middle on. No way is longer that ends: a name may have been taken
/// away and given to what lies below it meanwhile.
const LONGEST: usize = 64;

impl Inode {
    /// The way from the root of the mount by the names that the object and its directories were
    /// found by last, quoted where a shell needs it. `…` stands for what is not known.
    pub(in crate::vfs) fn path(&self) -> String {
        let mut names = Vec::new();
        let mut place = self.place();
        let mut is_known = self.ino == ROOT_INO;
        while let Some(found) = place {
            is_known = found.dir.ino == ROOT_INO;
            place = found.dir.place();
            names.push(found.name);
            if is_known || names.len() == LONGEST {
                break;
            }
        }
        path_of(names.iter().rev().map(Arc::as_ref), is_known)
    }

    /// The same of a name in this directory.
    pub(in crate::vfs) fn path_of(&self, name: &[u8]) -> String {
        match &*self.path() {
            "/" => format!("/{}", quoting::name(name)),
            dir => format!("{dir}/{}", quoting::name(name)),
        }
    }
}

fn path_of<'a>(names: impl Iterator<Item = &'a [u8]>, is_known: bool) -> String {
    let mut path = String::from(if is_known { "" } else { "…" });
    for name in names {
        path.push('/');
        path.push_str(&quoting::name(name).to_string());
    }
    match path.is_empty() {
        true => "/".to_owned(),
        false => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_what_a_person_would_type_and_says_what_is_not_known() {
        let path = |names: &[&'static [u8]], known| path_of(names.iter().copied(), known);
        assert_eq!(path(&[], true), "/");
        assert_eq!(path(&[b"a", b"b c"], true), "/a/'b c'");
        assert_eq!(path(&[b"b"], false), "…/b");
        assert_eq!(path(&[], false), "…");
    }
}
