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
pub(in crate::vfs) type Moves = u64;

/// See the module.
#[derive(Debug, Default)]
pub(in crate::vfs) struct Pages {
    /// The state that all pages are of, if there is one.
    of: Option<FileAt>,
}

/// A file as an open has seen it. An open that had the pages dropped reports it
/// once it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vfs) struct FileAt {
    /// The change attribute.
    pub change: u64,
    /// The count that it belongs to.
    pub moves: Moves,
}

impl Pages {
    /// At open: whether the kernel may keep its pages, because `explained` says
    /// that every move of the file since they were read is our own.
    pub(in crate::vfs) fn open(
        &mut self,
        file: FileAt,
        explained: impl FnOnce(u64) -> bool,
    ) -> bool {
        let keep = self.are_of(file, explained);
        self.of = keep.then_some(file);
        keep
    }

    /// What [`Pages::open`] would say.
    pub(super) fn are_of(&self, file: FileAt, explained: impl FnOnce(u64) -> bool) -> bool {
        self.of.is_some_and(|pages| {
            pages.moves == file.moves && (pages.change == file.change || explained(pages.change))
        })
    }

    /// The kernel uses a handle whose open had the pages dropped; `moves` is the
    /// count by now.
    pub(in crate::vfs) fn used(&mut self, opened: FileAt, moves: Moves) {
        if opened.moves == moves {
            self.of = Some(opened);
        }
    }

    /// The kernel may hold pages that nothing explains.
    pub(in crate::vfs) fn lost(&mut self) {
        self.of = None;
    }
}

/// Foreign changes of a file, looked at from time to time: once others have left it alone
/// from one look to the next, what the kernel was told of its sizes has had its effect.
#[derive(Debug)]
pub(in crate::vfs) struct LateCut {
    /// How many there were at the last look.
    looked: Moves,
    /// After how many this was said.
    said: Moves,
}

impl LateCut {
    /// Those so far do not count.
    pub(in crate::vfs) fn since(foreign: Moves) -> Self {
        Self {
            looked: foreign,
            said: foreign,
        }
    }

    /// The next look says so.
    pub(in crate::vfs) fn due(foreign: Moves) -> Self {
        Self {
            looked: foreign,
            said: foreign.wrapping_sub(1),
        }
    }

    /// A look is going to say so, if others leave the file alone.
    pub(in crate::vfs) fn is_due(&self, foreign: Moves) -> bool {
        self.said != foreign
    }

    /// There have been some, and none since the last look. Said once.
    pub(in crate::vfs) fn look(&mut self, foreign: Moves) -> bool {
        let still = std::mem::replace(&mut self.looked, foreign) == foreign;
        still && std::mem::replace(&mut self.said, foreign) != foreign
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
    fn a_file_that_others_have_left_alone_from_look_to_look_is_said_once() {
        let mut cut = LateCut::since(3);
        assert!(!cut.look(3) && !cut.look(3), "nothing has happened since");
        assert!(!cut.look(4), "just now");
        assert!(!cut.look(5), "again");
        assert!(cut.look(5));
        assert!(!cut.look(5), "once");
        assert!(!cut.look(6) && cut.look(6));
        assert!(!cut.is_due(6) && cut.is_due(7));
        let mut cut = LateCut::due(7);
        assert!(
            cut.is_due(7) && cut.look(7) && !cut.look(7),
            "for another process, too"
        );
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
