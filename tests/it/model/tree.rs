//! The reference: what POSIX says of names and files, for one host.

use std::collections::BTreeMap;

/// Identifies a node for ever; 0 is the root.
pub(super) type Id = usize;

pub(super) const ROOT: Id = 0;

#[derive(Debug, Clone)]
pub(super) enum Kind {
    File(Vec<u8>),
    Dir(BTreeMap<String, Id>),
    Link(String),
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) nlink: u32,
    pub(super) perm: u16,
    /// Handles.
    pub(super) opens: usize,
    /// Where it was when its last name went while it was open: a hidden name
    /// may keep that directory from being removed.
    pub(super) hidden_in: Option<Id>,
}

#[derive(Debug)]
pub(super) struct Tree {
    pub(super) nodes: Vec<Node>,
}

type Result<T> = std::result::Result<T, i32>;

impl Tree {
    pub(super) fn new() -> Self {
        let mut tree = Self { nodes: Vec::new() };
        tree.add(Kind::Dir(BTreeMap::new()), 0o755);
        tree
    }

    fn add(&mut self, kind: Kind, perm: u16) -> Id {
        self.nodes.push(Node {
            nlink: if matches!(kind, Kind::Dir(_)) { 2 } else { 1 },
            kind,
            perm,
            opens: 0,
            hidden_in: None,
        });
        self.nodes.len() - 1
    }

    pub(super) fn names(&self, dir: Id) -> Result<&BTreeMap<String, Id>> {
        match &self.nodes[dir].kind {
            Kind::Dir(names) => Ok(names),
            _ => Err(libc::ENOTDIR),
        }
    }

    fn names_mut(&mut self, dir: Id) -> &mut BTreeMap<String, Id> {
        match &mut self.nodes[dir].kind {
            Kind::Dir(names) => names,
            _ => panic!("not a directory"),
        }
    }

    pub(super) fn walk(&self, dirs: &[&str]) -> Result<Id> {
        let mut at = ROOT;
        for name in dirs {
            at = *self.names(at)?.get(*name).ok_or(libc::ENOENT)?;
        }
        self.names(at).map(|_| at)
    }

    pub(super) fn get(&self, dir: Id, name: &str) -> Result<Id> {
        self.names(dir)?.get(name).copied().ok_or(libc::ENOENT)
    }

    pub(super) fn is_dir(&self, id: Id) -> bool {
        matches!(self.nodes[id].kind, Kind::Dir(_))
    }

    pub(super) fn content(&self, id: Id) -> &Vec<u8> {
        match &self.nodes[id].kind {
            Kind::File(content) => content,
            _ => panic!("not a file"),
        }
    }

    fn content_mut(&mut self, id: Id) -> &mut Vec<u8> {
        match &mut self.nodes[id].kind {
            Kind::File(content) => content,
            _ => panic!("not a file"),
        }
    }

    pub(super) fn size(&self, id: Id) -> u64 {
        match &self.nodes[id].kind {
            Kind::File(content) => content.len() as u64,
            Kind::Link(target) => target.len() as u64,
            Kind::Dir(_) => 0,
        }
    }

    pub(super) fn make(&mut self, dir: Id, name: &str, kind: Kind, perm: u16) -> Result<Id> {
        if self.names(dir)?.contains_key(name) {
            return Err(libc::EEXIST);
        }
        let is_dir = matches!(kind, Kind::Dir(_));
        let id = self.add(kind, perm);
        self.names_mut(dir).insert(name.to_owned(), id);
        if is_dir {
            self.nodes[dir].nlink += 1;
        }
        Ok(id)
    }

    pub(super) fn link(&mut self, id: Id, dir: Id, name: &str) -> Result<()> {
        if self.names(dir)?.contains_key(name) {
            return Err(libc::EEXIST);
        }
        self.names_mut(dir).insert(name.to_owned(), id);
        self.nodes[id].nlink += 1;
        Ok(())
    }

    fn drop_name(&mut self, id: Id, dir: Id) {
        if self.is_dir(id) {
            self.nodes[id].nlink = 0;
            self.nodes[dir].nlink -= 1;
            return;
        }
        let node = &mut self.nodes[id];
        node.nlink -= 1;
        if node.nlink == 0 && node.opens > 0 {
            node.hidden_in = Some(dir);
        }
    }

    pub(super) fn remove(&mut self, dir: Id, name: &str) -> Result<()> {
        let id = self.get(dir, name)?;
        if self.names(id).is_ok_and(|names| !names.is_empty()) {
            return Err(libc::ENOTEMPTY);
        }
        self.names_mut(dir).remove(name);
        self.drop_name(id, dir);
        Ok(())
    }

    /// The kernel has checked that the kinds agree, and that no directory goes
    /// below itself.
    pub(super) fn rename(&mut self, from: (Id, &str), to: (Id, &str)) -> Result<()> {
        let id = self.get(from.0, from.1)?;
        if let Ok(victim) = self.get(to.0, to.1) {
            if victim == id {
                return Ok(());
            }
            self.remove(to.0, to.1)?;
        }
        self.names_mut(from.0).remove(from.1);
        self.names_mut(to.0).insert(to.1.to_owned(), id);
        if self.is_dir(id) {
            self.nodes[from.0].nlink -= 1;
            self.nodes[to.0].nlink += 1;
        }
        Ok(())
    }

    /// `below` is `dir` or in it.
    pub(super) fn is_below(&self, dir: Id, below: Id) -> bool {
        dir == below
            || self
                .names(dir)
                .is_ok_and(|names| names.values().any(|&child| self.is_below(child, below)))
    }

    /// Hidden names of open files are in this directory.
    pub(super) fn hides(&self, dir: Id) -> bool {
        self.nodes
            .iter()
            .any(|node| node.opens > 0 && node.hidden_in == Some(dir))
    }

    /// Files that are open and have no name.
    pub(super) fn any_orphan(&self) -> bool {
        self.nodes
            .iter()
            .any(|node| node.opens > 0 && node.nlink == 0)
    }

    pub(super) fn write(&mut self, id: Id, at: usize, data: &[u8]) {
        let content = self.content_mut(id);
        if data.is_empty() {
            return;
        }
        if content.len() < at + data.len() {
            content.resize(at + data.len(), 0);
        }
        content[at..at + data.len()].copy_from_slice(data);
    }

    pub(super) fn read(&self, id: Id, at: usize, len: usize) -> &[u8] {
        let content = self.content(id);
        let from = at.min(content.len());
        &content[from..(at + len).min(content.len())]
    }

    pub(super) fn truncate(&mut self, id: Id, size: usize) {
        self.content_mut(id).resize(size, 0);
    }
}
