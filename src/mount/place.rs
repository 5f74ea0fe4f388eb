//! The canonical name of a mount point, without touching what is mounted there.
//!
//! `realpath` and `stat` ask the mounted file system, which hangs when its
//! server does or fails with ENOTCONN when its daemon is gone, and those are
//! the very mounts that people want to unmount. So the directory above is
//! made canonical, and the last component is only followed with readlink(2),
//! which the kernel answers for a mounted root by itself.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// As the kernel allows in one path walk.
const MAX_LINKS: usize = 40;

/// The canonical form of `path`. The last component need not exist; what is
/// mounted on it is not asked.
///
/// # Errors
/// The directory above does not exist or cannot be searched; too many links.
pub fn canonical(path: &Path) -> io::Result<PathBuf> {
    let mut path = std::path::absolute(path)?;
    for _ in 0..MAX_LINKS {
        let (Some(above), Some(Component::Normal(name))) =
            (path.parent(), path.components().next_back())
        else {
            // "/" or something that ends in "..": no name to spare.
            return fs::canonicalize(&path);
        };
        let above = fs::canonicalize(above)?;
        let full = above.join(name);
        match fs::read_link(&full) {
            Ok(target) => path = above.join(target),
            // EINVAL: no link. Anything else is for the caller to find out.
            Err(_) => return Ok(full),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_and_dots_are_followed_and_the_last_component_may_be_missing() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().canonicalize()?;
        fs::create_dir(root.join("a"))?;
        symlink("a", root.join("to_a"))?;
        symlink("to_a", root.join("twice"))?;
        for written in ["a", "a/", "./a/.", "a/../a", "to_a", "twice/"] {
            assert_eq!(canonical(&root.join(written))?, root.join("a"), "{written}");
        }
        assert_eq!(canonical(&root.join("a/.."))?, root);
        assert_eq!(canonical(&root.join("to_a/new"))?, root.join("a/new"));
        assert_eq!(canonical(Path::new("/"))?, Path::new("/"));
        Ok(())
    }

    #[test]
    fn a_circle_of_links_and_a_missing_directory_are_errors() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        symlink("me", dir.path().join("me"))?;
        let circle = canonical(&dir.path().join("me"));
        assert_eq!(
            circle.err().and_then(|why| why.raw_os_error()),
            Some(libc::ELOOP)
        );
        assert!(canonical(&dir.path().join("no/where")).is_err());
        Ok(())
    }
}
