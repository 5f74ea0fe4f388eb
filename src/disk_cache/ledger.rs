//! Which slices there are, how large they are, and which goes first: a plain state machine.
//!
//! A segmented LRU. What comes is on *probation*. What is used again by another reader, once it is
//! there, is *protected*, up to [`PROTECTED_PERCENT`] of the budget; what was protected longest ago
//! goes back. The oldest one on probation is the first to go: one pass over a tree larger than the
//! cache, each file by one reader, drops only what is on probation.

use std::collections::BTreeMap;
use std::hash::Hash;

use rustc_hash::FxHashMap;

/// How much of the budget may be protected.
const PROTECTED_PERCENT: u64 = 80;

#[derive(Debug)]
struct Item {
    bytes: u64,
    protected: bool,
    /// Its place in the order.
    tick: u64,
    /// Who used it last.
    reader: u64,
}

/// See the module. `N` names a slice.
#[derive(Debug)]
pub(super) struct Ledger<N> {
    budget: u64,
    items: FxHashMap<N, Item>,
    /// The names of both segments, the oldest use first.
    probation: BTreeMap<u64, N>,
    protected: BTreeMap<u64, N>,
    bytes: u64,
    protected_bytes: u64,
    tick: u64,
}

impl<N: Copy + Eq + Hash> Ledger<N> {
    /// Nothing is there.
    pub(super) fn new(budget: u64) -> Self {
        Self {
            budget,
            items: FxHashMap::default(),
            probation: BTreeMap::new(),
            protected: BTreeMap::new(),
            bytes: 0,
            protected_bytes: 0,
            tick: 0,
        }
    }

    /// Bytes of all slices.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many slices there are.
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// All of them, in no order.
    pub(super) fn names(&self) -> impl Iterator<Item = N> {
        self.items.keys().copied()
    }

    /// It is known.
    pub(super) fn contains(&self, name: N) -> bool {
        self.items.contains_key(&name)
    }

    /// A slice that was found on the disk, used later than all that were found before. What was
    /// used last before the daemon ended is protected, as nobody knows how often it was.
    pub(super) fn found(&mut self, name: N, bytes: u64) {
        if let Some(item) = self.items.get(&name) {
            let grown = bytes.saturating_sub(item.bytes);
            let shrunk = item.bytes.saturating_sub(bytes);
            self.grow(name, grown, 0);
            self.shrink(name, shrunk);
            return;
        }
        self.grow(name, bytes, 0);
        self.protect(name);
    }

    /// `reader` has put so many bytes into a slice, which is there from now on.
    pub(super) fn grow(&mut self, name: N, bytes: u64, reader: u64) {
        self.bytes += bytes;
        if let Some(item) = self.items.get_mut(&name) {
            item.bytes += bytes;
            if item.protected {
                self.protected_bytes += bytes;
                self.demote();
            }
            return;
        }
        self.tick += 1;
        let (tick, protected) = (self.tick, false);
        self.probation.insert(tick, name);
        let item = Item {
            bytes,
            protected,
            tick,
            reader,
        };
        self.items.insert(name, item);
    }

    fn shrink(&mut self, name: N, bytes: u64) {
        if let Some(item) = self.items.get_mut(&name) {
            let bytes = bytes.min(item.bytes);
            item.bytes -= bytes;
            self.bytes -= bytes;
            if item.protected {
                self.protected_bytes -= bytes;
            }
        }
    }

    /// `reader` was given something of the slice.
    pub(super) fn used(&mut self, name: N, reader: u64) {
        let Some(item) = self.items.get_mut(&name) else {
            return;
        };
        let again = item.reader != reader;
        item.reader = reader;
        if again && !item.protected {
            self.protect(name);
            return;
        }
        self.tick += 1;
        let old = std::mem::replace(&mut item.tick, self.tick);
        let segment = match item.protected {
            true => &mut self.protected,
            false => &mut self.probation,
        };
        segment.remove(&old);
        segment.insert(self.tick, name);
    }

    fn protect(&mut self, name: N) {
        let Some(item) = self.items.get_mut(&name) else {
            return;
        };
        self.tick += 1;
        self.probation.remove(&item.tick);
        (item.protected, item.tick) = (true, self.tick);
        self.protected.insert(item.tick, name);
        self.protected_bytes += item.bytes;
        self.demote();
    }

    /// What was protected longest ago goes back on probation, as one that was just used there.
    fn demote(&mut self) {
        let most = self.budget / 100 * PROTECTED_PERCENT;
        while self.protected_bytes > most
            && let Some((_, name)) = self.protected.pop_first()
        {
            self.tick += 1;
            if let Some(item) = self.items.get_mut(&name) {
                (item.protected, item.tick) = (false, self.tick);
                self.protected_bytes -= item.bytes;
                self.probation.insert(self.tick, name);
            }
        }
    }

    /// The slice that is to go first.
    pub(super) fn first_to_go(&self) -> Option<N> {
        let mut oldest = self.probation.values().chain(self.protected.values());
        oldest.next().copied()
    }

    /// The slice is gone. Says how large it was.
    pub(super) fn remove(&mut self, name: N) -> Option<u64> {
        let item = self.items.remove(&name)?;
        self.bytes -= item.bytes;
        if item.protected {
            self.protected_bytes -= item.bytes;
            self.protected.remove(&item.tick);
        } else {
            self.probation.remove(&item.tick);
        }
        Some(item.bytes)
    }

    /// Only slices that `is_there` says are left.
    pub(super) fn retain(&mut self, is_there: impl Fn(N) -> bool) {
        let gone: Vec<N> = self
            .items
            .keys()
            .copied()
            .filter(|n| !is_there(*n))
            .collect();
        for name in gone {
            self.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn order(ledger: &mut Ledger<u32>) -> Vec<u32> {
        let mut order = Vec::new();
        while let Some(name) = ledger.first_to_go() {
            order.push(name);
            ledger.remove(name);
        }
        order
    }

    #[test]
    fn the_slice_used_least_recently_goes_first() {
        let mut ledger = Ledger::new(1000);
        for name in 0..4 {
            ledger.grow(name, 10, 1);
        }
        ledger.used(0, 1);
        ledger.used(2, 1);
        assert_eq!(order(&mut ledger), [1, 3, 0, 2]);
    }

    #[test]
    fn one_pass_over_a_large_tree_leaves_what_is_used_again_and_again() {
        let mut ledger = Ledger::new(1000);
        for name in 0..7 {
            ledger.grow(name, 100, 1);
            ledger.used(name, 2);
        }
        for name in 100..200 {
            ledger.grow(name, 100, 3);
            // One reader takes it piece by piece.
            ledger.used(name, 3);
            ledger.used(name, 3);
            while ledger.bytes() > 1000 {
                let first = ledger.first_to_go();
                assert!(first.is_some_and(|first| first >= 100), "{first:?}");
                first.and_then(|first| ledger.remove(first));
            }
        }
        assert!((0..7).all(|name| ledger.contains(name)));
    }

    #[test]
    fn what_was_found_on_the_disk_goes_in_the_order_of_its_last_use() {
        let mut ledger = Ledger::new(1000);
        for name in 0..20 {
            ledger.found(name, 100);
        }
        assert_eq!(ledger.bytes(), 2000);
        let order = order(&mut ledger);
        assert_eq!(order, (0..20).collect::<Vec<_>>());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Grow(u32, u64, u64),
        Used(u32, u64),
        Found(u32, u64),
        Remove(u32),
        Evict,
    }

    fn step() -> impl Strategy<Value = Step> {
        let name = 0..12u32;
        prop_oneof![
            (name.clone(), 1..50u64, 0..4u64).prop_map(|(n, b, r)| Step::Grow(n, b, r)),
            (name.clone(), 0..4u64).prop_map(|(n, r)| Step::Used(n, r)),
            (name.clone(), 1..50u64).prop_map(|(n, b)| Step::Found(n, b)),
            name.prop_map(Step::Remove),
            Just(Step::Evict),
        ]
    }

    /// Name, bytes, and who used it last; the oldest first.
    type List = Vec<(u32, u64, u64)>;

    /// The same by two plain lists.
    #[derive(Default)]
    struct Model {
        probation: List,
        protected: List,
    }

    impl Model {
        fn find(&mut self, name: u32) -> Option<(&mut List, usize, bool)> {
            if let Some(at) = self.probation.iter().position(|item| item.0 == name) {
                return Some((&mut self.probation, at, false));
            }
            let at = self.protected.iter().position(|item| item.0 == name)?;
            Some((&mut self.protected, at, true))
        }

        fn settle(&mut self) {
            while self.protected.iter().map(|item| item.1).sum::<u64>() > 80 {
                let oldest = self.protected.remove(0);
                self.probation.push(oldest);
            }
        }

        fn step(&mut self, step: &Step) {
            match *step {
                Step::Grow(name, bytes, reader) => match self.find(name) {
                    Some((list, at, _)) => list[at].1 += bytes,
                    None => self.probation.push((name, bytes, reader)),
                },
                Step::Found(name, bytes) => match self.find(name) {
                    Some((list, at, _)) => list[at].1 = bytes,
                    None => self.protected.push((name, bytes, 0)),
                },
                Step::Used(name, reader) => {
                    if let Some((list, at, protected)) = self.find(name) {
                        let mut item = list.remove(at);
                        let again = item.2 != reader;
                        item.2 = reader;
                        if again || protected {
                            self.protected.push(item);
                        } else {
                            self.probation.push(item);
                        }
                    }
                }
                Step::Remove(name) => {
                    if let Some((list, at, _)) = self.find(name) {
                        list.remove(at);
                    }
                }
                Step::Evict => {
                    if !self.probation.is_empty() {
                        self.probation.remove(0);
                    } else if !self.protected.is_empty() {
                        self.protected.remove(0);
                    }
                }
            }
            self.settle();
        }
    }

    proptest! {
        #[test]
        fn the_ledger_does_as_two_plain_lists_do(steps in prop::collection::vec(step(), 0..200)) {
            let mut ledger = Ledger::new(100);
            let mut model = Model::default();
            for step in &steps {
                match *step {
                    Step::Grow(name, bytes, reader) => ledger.grow(name, bytes, reader),
                    Step::Used(name, reader) => ledger.used(name, reader),
                    Step::Found(name, bytes) => ledger.found(name, bytes),
                    Step::Remove(name) => { ledger.remove(name); }
                    Step::Evict => {
                        if let Some(first) = ledger.first_to_go() {
                            ledger.remove(first);
                        }
                    }
                }
                model.step(step);
                let all = model.probation.iter().chain(&model.protected);
                prop_assert_eq!(ledger.bytes(), all.clone().map(|item| item.1).sum::<u64>());
                prop_assert_eq!(ledger.len(), all.clone().count());
                let first = all.clone().next().map(|item| item.0);
                prop_assert_eq!(ledger.first_to_go(), first);
            }
            let names: Vec<u32> = model.probation.iter().chain(&model.protected).map(|i| i.0).collect();
            prop_assert_eq!(order(&mut ledger), names);
        }
    }
}
