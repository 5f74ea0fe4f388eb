//! What is seen of a state.

use super::super::history::{Fd, Kind, Name, Seen, Token};
use super::{Led, NodeId, State, nowhere};

impl State {
    /// By name.
    pub(in super::super) fn seen(&self, at: Led, host: u8) -> Result<Seen, &'static [i32]> {
        let node = at.map_err(nowhere)?;
        Ok(self.seen_open(node, host))
    }

    fn seen_open(&self, at: NodeId, host: u8) -> Seen {
        let node = &self.nodes[at];
        Seen {
            kind: node.kind,
            mode: node.mode(host),
            links: self.links(at) as u32,
            size: match node.kind {
                Kind::File => node.view(host).len() as u32,
                _ => 0,
            },
        }
    }

    pub(in super::super) fn opened(&self, fd: Fd) -> Option<NodeId> {
        self.fds.get(&fd).copied()
    }

    pub(in super::super) fn seen_by(&self, fd: Fd, host: u8) -> Seen {
        self.seen_open(self.fds[&fd], host)
    }

    /// The open file has no name (any more).
    pub(in super::super) fn is_nameless(&self, fd: Fd) -> bool {
        self.is_gone(self.fds[&fd])
    }

    pub(in super::super) fn view(&self, fd: Fd, host: u8) -> Vec<Token> {
        self.nodes[self.fds[&fd]].view(host)
    }

    /// After a restart of the server, if that has lost something of the file.
    pub(in super::super) fn kept_view(&self, fd: Fd, host: u8) -> Option<Vec<Token>> {
        let node = &self.nodes[self.fds[&fd]];
        let kept = node.kept.clone()?;
        Some(node.with(kept, |pending| pending.host == host))
    }

    /// With all that any host has accepted.
    pub(in super::super) fn full_view(&self, fd: Fd) -> Vec<Token> {
        let node = &self.nodes[self.fds[&fd]];
        node.with(node.slots.clone(), |_| true)
    }

    pub(in super::super) fn names(&self, at: Led) -> Result<Vec<Name>, &'static [i32]> {
        let dir = self.directory(at)?;
        Ok(self.nodes[dir].entries.keys().copied().collect())
    }

    pub(in super::super) fn text(&self, at: Led) -> Result<Token, &'static [i32]> {
        let node = &self.nodes[at.map_err(nowhere)?];
        match node.kind {
            Kind::Symlink => Ok(node.slots[0]),
            _ => Err(&[libc::EINVAL]),
        }
    }
}
