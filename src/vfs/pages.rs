//! Which state of a file the kernel's pages belong to: a plain state machine
//! under the file's lock.
//!
//! At open the kernel is told to keep its pages or to drop them. It drops them
//! when it has the answer, which is some time after we have given it: an open
//! that is answered in between must not have them kept, although it saw the same
//! file. So what pages there are is known again only when the kernel has come
//! back with the new handle ([`Pages::used`]); it does not before they are gone.
//!
//! Whatever the kernel reads afterwards was sent after the drop, and pages that
//! were being read at that moment are waited for and dropped as well: all of it is
//! the file as that open saw it, or newer.

/// Counts what made cached data old: foreign changes of the file, and losses. A
/// value that has moved since says that something came between.
pub type Moves = u64;

/// See the module.
#[derive(Debug, Default)]
pub struct Pages {
    /// The state that all pages are of, if there is one.
    of: Option<FileAt>,
}

/// A file as an open has seen it. An open that had the pages dropped reports it
/// once it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileAt {
    /// The change attribute.
    pub change: u64,
    /// The count that it belongs to.
    pub moves: Moves,
}

impl Pages {
    /// At open: whether the kernel may keep its pages, because `explained` says
    /// that every move of the file since they were read is our own.
    pub fn open(&mut self, file: FileAt, explained: impl FnOnce(u64) -> bool) -> bool {
        let keep = self.are_of(file, explained);
        self.of = keep.then_some(file);
        keep
    }

    /// What [`Pages::open`] would say.
    pub fn are_of(&self, file: FileAt, explained: impl FnOnce(u64) -> bool) -> bool {
        self.of.is_some_and(|pages| {
            pages.moves == file.moves && (pages.change == file.change || explained(pages.change))
        })
    }

    /// The kernel uses a handle whose open had the pages dropped; `moves` is the
    /// count by now.
    pub fn used(&mut self, opened: FileAt, moves: Moves) {
        if opened.moves == moves {
            self.of = Some(opened);
        }
    }

    /// The kernel may hold pages that nothing explains.
    pub fn lost(&mut self) {
        self.of = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_: u64) -> bool {
        false
    }

    fn at(change: u64, moves: Moves) -> FileAt {
        FileAt { change, moves }
    }

    #[test]
    fn pages_are_kept_only_after_the_kernel_has_used_the_open_that_dropped_them() {
        let mut pages = Pages::default();
        assert!(!pages.open(at(1, 0), nothing));
        assert!(!pages.open(at(1, 0), nothing), "not dropped yet");
        pages.used(at(1, 0), 0);
        assert!(pages.open(at(1, 0), nothing));
        assert!(!pages.open(at(2, 0), nothing), "moved");
        assert!(!pages.open(at(1, 0), nothing), "nor back");
    }

    #[test]
    fn own_changes_explain_the_pages_unless_others_came_between() {
        let mut pages = Pages::default();
        pages.used(at(1, 0), 0);
        assert!(pages.open(at(3, 0), |pages| pages == 1));
        assert!(pages.open(at(3, 0), nothing));
        assert!(!pages.open(at(3, 1), |_| true));
    }

    #[test]
    fn what_came_between_an_open_and_its_use_leaves_the_pages_unknown() {
        let mut pages = Pages::default();
        assert!(!pages.open(at(1, 0), nothing));
        pages.used(at(1, 0), 1);
        assert!(!pages.open(at(1, 1), nothing));
    }
}
