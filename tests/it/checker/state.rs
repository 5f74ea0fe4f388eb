//! What is true at one moment: the server's tree, and what each host has accepted and not
//! sent yet. [`State::outcomes`] is what POSIX and NFSv4.1 let a call come to then.

mod seen;

use std::collections::BTreeMap;

use super::history::{Call, Fd, Kind, Name, Path, Time, Token};

pub(super) type NodeId = usize;

/// What a walk has led to, or why to nothing (ENOENT, ENOTDIR).
pub(super) type Led = Result<NodeId, i32>;

/// Why a walk led to nothing, as an answer.
fn nowhere(why: i32) -> &'static [i32] {
    match why {
        libc::ENOTDIR => &[libc::ENOTDIR],
        _ => &[libc::ENOENT],
    }
}

/// The plot itself.
pub(super) const PLOT: NodeId = 0;

/// Accepted by a host, and seen there; not at the server yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pending {
    host: u8,
    /// Of the call that wrote it.
    pub(super) event: usize,
    ended: Time,
    what: Accepted,
    /// The host shows it on top of what the server has: not once that had it, and is to get it
    /// again.
    is_on_top: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Accepted {
    Data { slot: usize, token: Token },
    Mode(u16),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Node {
    kind: Kind,
    mode: u16,
    /// Of a file; of a symbolic link its text.
    slots: Vec<Token>,
    /// What the server has left if it loses what it is to get again, where that is something.
    kept: Option<Vec<Token>>,
    pending: Vec<Pending>,
    entries: BTreeMap<Name, NodeId>,
    /// A name went from here: an open file may be hidden in its stead.
    lost_a_name: bool,
}

impl Node {
    fn new(kind: Kind, mode: u16) -> Self {
        Self {
            kind,
            mode,
            slots: Vec::new(),
            kept: None,
            pending: Vec::new(),
            entries: BTreeMap::new(),
            lost_a_name: false,
        }
    }

    /// The content as a host sees it.
    fn view(&self, host: u8) -> Vec<Token> {
        self.with(self.slots.clone(), |pending| {
            pending.host == host && pending.is_on_top
        })
    }

    /// Data with what was accepted on top.
    fn with(&self, mut data: Vec<Token>, which: impl Fn(&Pending) -> bool) -> Vec<Token> {
        for pending in self.pending.iter().filter(|pending| which(pending)) {
            if let Accepted::Data { slot, token } = pending.what {
                put(&mut data, slot, token);
            }
        }
        data
    }

    /// The server has the data, for good or (`is_lost`) until it restarts.
    fn store(&mut self, slot: usize, token: Token, is_lost: bool) {
        match &mut self.kept {
            Some(kept) if !is_lost => put(kept, slot, token),
            None if is_lost => self.kept = Some(self.slots.clone()),
            _ => {}
        }
        put(&mut self.slots, slot, token);
        if self.pending.iter().all(|pending| pending.is_on_top) {
            self.kept = None;
        }
    }

    fn mode(&self, host: u8) -> u16 {
        let own = self.pending.iter().filter(|pending| pending.host == host);
        let mut set = own.filter_map(|pending| match pending.what {
            Accepted::Mode(mode) => Some(mode),
            Accepted::Data { .. } => None,
        });
        set.next_back().unwrap_or(self.mode)
    }
}

fn put(slots: &mut Vec<Token>, slot: usize, token: Token) {
    if slots.len() <= slot {
        slots.resize(slot + 1, 0);
    }
    slots[slot] = token;
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Lock {
    node: NodeId,
    owner: Fd,
    exclusive: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    nodes: Vec<Node>,
    fds: BTreeMap<Fd, NodeId>,
    /// Opened by making them: O_TRUNC has nothing to do.
    made: Vec<Fd>,
    locks: Vec<Lock>,
    /// What each walk may have come to ([`super::judge`] says which).
    pub(super) found: Vec<Vec<Led>>,
    /// Of each walk below a directory, what its name may have led to, by the directory:
    /// whatever that was called then.
    pub(super) below: Vec<Vec<(NodeId, Led)>>,
    /// By event: the objects that have had the attributes which a call shows.
    pub(super) shown: BTreeMap<usize, Vec<NodeId>>,
}

/// Who calls, and where the walks before the call have led.
pub(super) struct Caller<'a> {
    pub(super) host: u8,
    pub(super) event: usize,
    pub(super) began: Time,
    pub(super) ended: Time,
    /// In the order of [`Call::paths`]: the directory of the name, or what the name itself
    /// leads to where the call acts on that. Of an open both.
    pub(super) at: &'a [Led],
    pub(super) direct: bool,
    /// A change of attributes may be sent later: the file is not published.
    pub(super) waits: bool,
    /// An open that the server need not know of.
    pub(super) unasked: bool,
}

/// A change that may be made now, or the errors that are right instead.
pub(super) type Outcome = Result<State, &'static [i32]>;

impl State {
    pub(super) fn new(walks: usize) -> Self {
        Self {
            nodes: vec![Node::new(Kind::Directory, 0o755)],
            fds: BTreeMap::new(),
            made: Vec::new(),
            locks: Vec::new(),
            found: vec![Vec::new(); walks],
            below: vec![Vec::new(); walks],
            shown: BTreeMap::new(),
        }
    }

    pub(super) fn entry(&self, dir: Led, name: Name) -> Led {
        let dir = &self.nodes[dir?];
        match dir.kind {
            Kind::Directory => dir.entries.get(&name).copied().ok_or(libc::ENOENT),
            Kind::File => Err(libc::ENOTDIR),
            // Where it leads there is nothing.
            Kind::Symlink => Err(libc::ENOENT),
        }
    }

    /// How many objects there are, or were.
    pub(super) fn nodes(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn kind(&self, at: Led) -> Result<Kind, i32> {
        at.map(|node| self.nodes[node].kind)
    }

    fn child(&self, dir: NodeId, name: Name) -> Option<NodeId> {
        self.entry(Ok(dir), name).ok()
    }

    fn links(&self, node: NodeId) -> usize {
        let names = self.nodes.iter().flat_map(|node| node.entries.values());
        names.filter(|&&to| to == node).count()
    }

    /// A walk may have led to what has no name any more: the server may know it still, or
    /// not.
    pub(super) fn led_to_nothing(&self, at: &[Led]) -> bool {
        at.iter().flatten().any(|&node| self.is_gone(node))
    }

    fn is_gone(&self, node: NodeId) -> bool {
        node != PLOT && self.links(node) == 0
    }

    fn is_below(&self, node: NodeId, top: NodeId) -> bool {
        node == top
            || (self.nodes[top].entries.values())
                .any(|&child| child != top && self.is_below(node, child))
    }

    /// A directory in which a name may be made or taken.
    fn directory(&self, at: Led) -> Result<NodeId, &'static [i32]> {
        let dir = at.map_err(nowhere)?;
        match self.nodes[dir].kind {
            Kind::Symlink => Err(&[libc::ENOENT]),
            Kind::File => Err(&[libc::ENOTDIR]),
            Kind::Directory if self.is_gone(dir) => Err(&[libc::ENOENT, libc::ESTALE]),
            Kind::Directory => Ok(dir),
        }
    }

    /// What a call by path acts on, links followed.
    fn object(&self, at: Led) -> Result<NodeId, &'static [i32]> {
        let node = at.map_err(nowhere)?;
        match self.nodes[node].kind {
            Kind::Symlink => Err(&[libc::ENOENT]),
            _ => Ok(node),
        }
    }

    fn make(&self, dir: NodeId, name: Name, node: Node) -> Self {
        let mut next = self.clone();
        next.nodes.push(node);
        next.nodes[dir].entries.insert(name, self.nodes.len());
        next
    }

    fn take(&mut self, dir: NodeId, name: Name) {
        self.nodes[dir].entries.remove(&name);
        self.nodes[dir].lost_a_name = true;
    }

    fn is_full(&self, dir: NodeId) -> bool {
        !self.nodes[dir].entries.is_empty()
    }

    /// All that the host had accepted for the file before a moment is at the server.
    fn is_sent(&self, node: NodeId, host: u8, before: Time) -> bool {
        let pending = &self.nodes[node].pending;
        !pending
            .iter()
            .any(|pending| pending.host == host && pending.ended < before)
    }

    /// What is accepted goes to the server: for good, or to be sent again.
    pub(super) fn flush(&self, event: usize, is_sent_again: bool) -> Option<Self> {
        let has = |node: &Node| node.pending.iter().any(|pending| pending.event == event);
        let node = self.nodes.iter().position(has)?;
        let mut next = self.clone();
        let pending = &mut next.nodes[node].pending;
        let at = pending.iter().position(|pending| pending.event == event)?;
        let what = pending[at].what;
        match is_sent_again {
            true => pending[at].is_on_top = false,
            false => drop(pending.remove(at)),
        }
        match what {
            Accepted::Data { slot, token } => next.nodes[node].store(slot, token, is_sent_again),
            Accepted::Mode(mode) => next.nodes[node].mode = mode,
        }
        Some(next)
    }

    /// A call that changes something, or does not.
    pub(super) fn outcome(&self, call: &Call, by: &Caller<'_>) -> Outcome {
        match *call {
            Call::Mkdir(at) => self.makes(at, by, Node::new(Kind::Directory, 0o755)),
            Call::Symlink(at, token) => {
                let mut link = Node::new(Kind::Symlink, 0o777);
                link.slots = vec![token];
                self.makes(at, by, link)
            }
            Call::Rmdir(at) => self.rmdir(at, by),
            Call::Unlink(at) => {
                let dir = self.directory(by.at[0])?;
                let node = self.child(dir, at.name).ok_or(&[libc::ENOENT][..])?;
                if self.nodes[node].kind == Kind::Directory {
                    return Err(&[libc::EISDIR, libc::EPERM]);
                }
                let mut next = self.clone();
                next.take(dir, at.name);
                Ok(next)
            }
            Call::Link(_, to) => self.link(to, by),
            Call::Rename { from, to, replaces } => self.rename(from, to, replaces, by),
            Call::Chmod(_, mode) => {
                let node = self.object(by.at[0])?;
                let mut next = self.clone();
                match by.waits {
                    false => next.nodes[node].mode = mode,
                    true => next.nodes[node].pending.push(Pending {
                        host: by.host,
                        event: by.event,
                        ended: by.ended,
                        what: Accepted::Mode(mode),
                        is_on_top: true,
                    }),
                }
                Ok(next)
            }
            Call::Truncate(_) => {
                let node = self.object(by.at[0])?;
                match self.nodes[node].kind {
                    Kind::Directory => Err(&[libc::EISDIR]),
                    _ => self.cut(node, by),
                }
            }
            Call::Open { fd, .. } if self.believed(by).is_some() => {
                let mut next = self.clone();
                next.fds.extend(self.believed(by).map(|node| (fd, node)));
                next.made.retain(|made| *made != fd);
                Ok(next)
            }
            Call::Open { at, how, fd } => {
                let dir = self.directory(by.at[0])?;
                let there = self
                    .known_by_another(by)
                    .or_else(|| self.child(dir, at.name));
                let kind = there.map(|node| self.nodes[node].kind);
                let mut next = match kind {
                    None if !how.create => return Err(&[libc::ENOENT]),
                    None => self.make(dir, at.name, Node::new(Kind::File, 0o644)),
                    Some(_) if how.create && how.exclusive => return Err(&[libc::EEXIST]),
                    Some(Kind::Directory) => return Err(&[libc::EISDIR]),
                    Some(Kind::Symlink) => return Err(&[libc::ELOOP]),
                    Some(Kind::File) => self.clone(),
                };
                next.fds.insert(fd, there.unwrap_or(self.nodes.len()));
                next.made.retain(|made| *made != fd);
                if there.is_none() {
                    next.made.push(fd);
                }
                Ok(next)
            }
            Call::Write { fd, slot, token } => self.write(fd, Some(slot), token, by),
            Call::Append { fd, token } => self.write(fd, None, token, by),
            Call::Ftruncate(fd) => self.cut(self.fds[&fd], by),
            Call::Fsync(fd) => match self.is_sent(self.fds[&fd], by.host, by.began) {
                true => Ok(self.clone()),
                false => Err(&[]),
            },
            Call::Close(fd) | Call::Unlock(fd) => {
                let node = self.fds[&fd];
                if !self.is_sent(node, by.host, by.began) {
                    return Err(&[]);
                }
                let mut next = self.clone();
                next.locks.retain(|lock| lock.owner != fd);
                Ok(next)
            }
            Call::Lock { fd, exclusive } => self.lock(fd, exclusive, by),
            Call::Readlink(_) | Call::Stat(_) | Call::List(_) | Call::Read(_) | Call::Fstat(_) => {
                unreachable!("changes nothing")
            }
        }
    }

    /// The file that the walk of an open has led to, for which nobody is asked: whether it is there
    /// is found out when the server is.
    fn believed(&self, by: &Caller<'_>) -> Option<NodeId> {
        let node = by.at.get(1)?.ok()?;
        (by.unasked && self.nodes[node].kind == Kind::File).then_some(node)
    }

    /// The file that the walk of an open has led to, and that has gone to another name since:
    /// an open finds it by any. One that has no name any more the server may still have for
    /// whoever has it open.
    fn known_by_another(&self, by: &Caller<'_>) -> Option<NodeId> {
        let node = by.at.get(1)?.ok()?;
        let is_open = || self.fds.values().any(|&open| open == node);
        let is_known = !self.is_gone(node) || is_open();
        (self.nodes[node].kind == Kind::File && is_known).then_some(node)
    }

    fn makes(&self, at: Path, by: &Caller<'_>, node: Node) -> Outcome {
        let dir = self.directory(by.at[0])?;
        match self.child(dir, at.name) {
            Some(_) => Err(&[libc::EEXIST]),
            None => Ok(self.make(dir, at.name, node)),
        }
    }

    fn rmdir(&self, at: Path, by: &Caller<'_>) -> Outcome {
        let dir = self.directory(by.at[0])?;
        let node = self.child(dir, at.name).ok_or(&[libc::ENOENT][..])?;
        match self.nodes[node].kind {
            Kind::Directory if self.is_full(node) => Err(&[libc::ENOTEMPTY]),
            Kind::Directory => {
                let mut next = self.clone();
                next.take(dir, at.name);
                Ok(next)
            }
            _ => Err(&[libc::ENOTDIR]),
        }
    }

    /// REMOVE takes whatever has the name, which the host has taken for a directory, or a file:
    /// as the kernel's client.
    pub(super) fn removed_all_the_same(&self, call: &Call, at: Led) -> Option<Self> {
        let (Call::Rmdir(path) | Call::Unlink(path)) = call else {
            return None;
        };
        let dir = self.directory(at).ok()?;
        let node = self.child(dir, path.name)?;
        let mut next = self.clone();
        next.take(dir, path.name);
        (!self.is_full(node)).then_some(next)
    }

    /// An empty directory from which names went may hold another host's hidden ones.
    pub(super) fn may_hide(&self, dir: Led, name: Name) -> bool {
        let node = self.entry(dir, name);
        node.is_ok_and(|node| self.nodes[node].lost_a_name)
    }

    fn link(&self, to: Path, by: &Caller<'_>) -> Outcome {
        // One without a name may have a hidden one, by which it lives.
        let node = by.at[0].map_err(nowhere)?;
        let is_dir = self.nodes[node].kind == Kind::Directory;
        // The kernel refuses directories where it believes the other name to be free in one.
        if is_dir && self.kind(by.at[1]) == Ok(Kind::Directory) {
            return Err(&[libc::EPERM, libc::EEXIST]);
        }
        let dir = self.directory(by.at[1])?;
        match self.child(dir, to.name) {
            Some(_) if is_dir => Err(&[libc::EEXIST, libc::EPERM]),
            Some(_) => Err(&[libc::EEXIST]),
            None if is_dir => Err(&[libc::EPERM]),
            None => {
                let mut next = self.clone();
                next.nodes[dir].entries.insert(to.name, node);
                Ok(next)
            }
        }
    }

    fn rename(&self, from: Path, to: Path, replaces: bool, by: &Caller<'_>) -> Outcome {
        // Both paths are walked before the server is asked: one that leads through a file is
        // refused, whatever has become of the other's directory since.
        if self.kind(by.at[0]) == Ok(Kind::Directory) && self.kind(by.at[1]) == Ok(Kind::File) {
            return Err(&[libc::ENOTDIR]);
        }
        let source = self.directory(by.at[0])?;
        let target = self.directory(by.at[1])?;
        let there = self.child(target, to.name);
        if !replaces {
            // As the kernel's client: NFS has no rename that does not replace. Whichever
            // is found out first.
            return Err(match (self.child(source, from.name), there) {
                (Some(_), None) => &[libc::EINVAL],
                (Some(_), Some(_)) => &[libc::EEXIST, libc::EINVAL],
                (None, None) => &[libc::ENOENT, libc::EINVAL],
                (None, Some(_)) => &[libc::ENOENT, libc::EINVAL, libc::EEXIST],
            });
        }
        let node = self.child(source, from.name).ok_or(&[libc::ENOENT][..])?;
        let is_dir = self.nodes[node].kind == Kind::Directory;
        if is_dir && self.is_below(target, node) && there != Some(node) {
            return Err(&[libc::EINVAL]);
        }
        if let Some(victim) = there {
            if victim == node {
                return Ok(self.clone());
            }
            let victim_is_dir = self.nodes[victim].kind == Kind::Directory;
            match (is_dir, victim_is_dir) {
                // A server says EEXIST where the kernel did not know.
                (true, false) => return Err(&[libc::ENOTDIR, libc::EEXIST]),
                (false, true) if self.is_full(victim) => {
                    return Err(&[libc::EISDIR, libc::EEXIST, libc::ENOTEMPTY]);
                }
                (false, true) => return Err(&[libc::EISDIR, libc::EEXIST]),
                (true, true) if self.is_full(victim) => {
                    return Err(&[libc::ENOTEMPTY, libc::EEXIST]);
                }
                _ => {}
            }
        }
        let mut next = self.clone();
        next.take(source, from.name);
        next.nodes[target].lost_a_name |= there.is_some();
        next.nodes[target].entries.insert(to.name, node);
        Ok(next)
    }

    fn cut(&self, node: NodeId, by: &Caller<'_>) -> Outcome {
        if !self.is_sent(node, by.host, by.began) {
            return Err(&[]);
        }
        let mut next = self.clone();
        next.nodes[node].slots.clear();
        if let Some(kept) = &mut next.nodes[node].kept {
            kept.clear();
        }
        Ok(next)
    }

    /// What O_TRUNC does once the file is open.
    pub(super) fn cut_on_open(&self, fd: Fd, by: &Caller<'_>) -> Outcome {
        match self.made.contains(&fd) {
            true => Ok(self.clone()),
            false => self.cut(self.fds[&fd], by),
        }
    }

    fn write(&self, fd: Fd, slot: Option<u8>, token: Token, by: &Caller<'_>) -> Outcome {
        let mut next = self.clone();
        let node = &mut next.nodes[self.fds[&fd]];
        let slot = slot.map_or_else(|| node.view(by.host).len(), usize::from);
        if by.direct {
            // What this host has accepted for the same place goes first.
            let earlier = |pending: &Pending| {
                let here =
                    matches!(pending.what, Accepted::Data { slot: there, .. } if there == slot);
                pending.host == by.host && pending.ended < by.began && here
            };
            if node.pending.iter().any(earlier) {
                return Err(&[]);
            }
            node.store(slot, token, false);
        } else {
            node.pending.push(Pending {
                host: by.host,
                event: by.event,
                ended: by.ended,
                what: Accepted::Data { slot, token },
                is_on_top: true,
            });
        }
        Ok(next)
    }

    fn lock(&self, fd: Fd, exclusive: bool, by: &Caller<'_>) -> Outcome {
        let node = self.fds[&fd];
        let conflicts =
            |lock: &Lock| lock.node == node && lock.owner != fd && (lock.exclusive || exclusive);
        if self.locks.iter().any(conflicts) || !self.is_sent(node, by.host, by.began) {
            return Err(&[]);
        }
        let mut next = self.clone();
        next.locks.retain(|lock| lock.owner != fd);
        next.locks.push(Lock {
            node,
            owner: fd,
            exclusive,
        });
        Ok(next)
    }
}
