//! How a directory's change attribute moves by our own doing: a plain state
//! machine in the directory's lock.
//!
//! What is known of a directory's names is good as long as every move of its
//! change attribute is one of our own changes, each of which is applied to
//! the names as well. Such a change brings a pair (before, after). Pairs that
//! join each other form a chain; a value that no pair leads to was made by
//! somebody else, and what was known is dropped.
//!
//! Our own changes run in parallel, and their replies overtake each other. A
//! value that is not explained yet is put aside as long as a change is under
//! way that was begun before it was seen; until it is explained nothing is
//! believed, and when the last of those has ended without explaining it, it is
//! somebody else's.
//!
//! Requests that are under way at the same time may be answered by the server in any
//! order, and their replies may come in any other. So a value that is not explained is
//! known to be newer than what was known only if its request was sent after the last
//! answer had come. Of two that crossed nobody can say which is true now: nothing
//! is known then, until an answer comes to what was asked after both.
//!
//! A server may say that a pair is atomic (change_info4, RFC 8881 §3.3.5). If
//! it does not, the pair is taken by GETATTRs around the change, and somebody
//! else's change may hide between them. Within such a pair values are taken to
//! grow (as ctime and counters do), and a chain that has one in it is believed
//! for a limited time after it only, so that a hidden change is found when the
//! cache times are over at the latest. Who opens the directory is listed it anew.

use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

/// Values put aside; more than that and nothing is believed.
const MOST_ASIDE: usize = 64;

/// What an observation came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vfs) enum Verdict {
    /// What is known stays good.
    Same,
    /// Perhaps; a change of ours that is under way will tell.
    Unsure,
    /// Somebody else has changed the directory: nothing known before is good.
    Foreign,
}

/// Values that are explained: both ends and what lies between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    from: u64,
    to: u64,
}

impl Span {
    fn holds(self, value: u64) -> bool {
        (self.from..=self.to).contains(&value)
    }
}

#[derive(Clone, Copy, Debug)]
struct Aside {
    before: u64,
    after: u64,
    atomic: bool,
    sent: Instant,
    /// Changes begun up to here may explain it.
    number: u64,
}

/// See the module.
#[derive(Debug)]
pub(in crate::vfs) struct ChangeTracker {
    span: Option<Span>,
    /// When the request left that confirmed the chain last.
    confirmed: Instant,
    /// When the last answer came.
    heard: Option<Instant>,
    /// What was asked before that tells nothing: nothing was known any more by then.
    blind: Option<Instant>,
    /// When our last change was answered.
    changed: Option<Instant>,
    /// Since when the chain has pairs in it that are not atomic.
    loose: Option<Instant>,
    /// Numbers of the changes under way, in order.
    under_way: SmallVec<[u64; 2]>,
    aside: Vec<Aside>,
    /// Changes begun and accepted so far.
    begun: u64,
    /// Changes begun, ended and accepted so far.
    steps: u64,
}

impl ChangeTracker {
    /// Nothing is known.
    pub(in crate::vfs) fn new(now: Instant) -> Self {
        Self {
            span: None,
            confirmed: now,
            heard: None,
            blind: None,
            changed: None,
            loose: None,
            under_way: SmallVec::new(),
            aside: Vec::new(),
            begun: 0,
            steps: 0,
        }
    }

    /// The value of the change attribute is explained.
    pub(in crate::vfs) fn explains(&self, change: u64) -> bool {
        self.span.is_some_and(|span| span.holds(change))
    }

    /// What a request sent then saw of a name, while the directory was at that
    /// change, is true now; with `None`, what a change of ours has just made of
    /// it is.
    pub(in crate::vfs) fn takes(&self, seen: Option<(u64, Instant)>) -> bool {
        match seen {
            None => self.span.is_some(),
            // A change of ours may have overtaken it.
            Some((change, sent)) => {
                self.explains(change) && self.changed.is_none_or(|changed| sent >= changed)
            }
        }
    }

    /// When the request left that confirmed the chain last.
    pub(in crate::vfs) fn confirmed(&self) -> Instant {
        self.confirmed
    }

    /// No change of ours is under way. Together with an unmoved
    /// [`steps`](Self::steps): none has been meanwhile, and none was accepted.
    pub(in crate::vfs) fn is_quiet(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Changes begun and accepted so far.
    pub(in crate::vfs) fn begun(&self) -> u64 {
        self.begun
    }

    /// One of the first `begun` changes is still under way.
    pub(in crate::vfs) fn has_under_way(&self, begun: u64) -> bool {
        self.under_way.first().is_some_and(|first| *first <= begun)
    }

    /// See [`is_quiet`](Self::is_quiet).
    pub(in crate::vfs) fn steps(&self) -> u64 {
        self.steps
    }

    /// How long what is known may be believed, if a confirmation is good for
    /// `timeout`, and anything for `longest` at most.
    pub(in crate::vfs) fn good_for(
        &self,
        now: Instant,
        timeout: Duration,
        longest: Duration,
    ) -> Duration {
        if self.span.is_none() || !self.aside.is_empty() {
            return Duration::ZERO;
        }
        let mut until = self.confirmed + timeout;
        if let Some(loose) = self.loose {
            until = until.min(loose + longest);
        }
        until.saturating_duration_since(now)
    }

    /// The chain has no pair in it that is not atomic: nobody else's change hides in it.
    pub(super) fn is_sure(&self) -> bool {
        self.span.is_some() && self.loose.is_none()
    }

    /// The chain has a pair in it that is not atomic, for longer than that.
    pub(super) fn is_worn_out(&self, now: Instant, longest: Duration) -> bool {
        self.loose.is_some_and(|loose| now >= loose + longest)
    }

    /// Everything was learned anew at this value, by a request sent then.
    pub(in crate::vfs) fn start(&mut self, change: u64, sent: Instant, atomic: bool) {
        self.span = Some(Span {
            from: change,
            to: change,
        });
        self.confirmed = sent;
        self.loose = (!atomic).then_some(sent);
        self.aside.clear();
    }

    /// Nothing is known any more.
    pub(super) fn break_off(&mut self) {
        self.span = None;
        self.blind = self.heard;
        self.loose = None;
        self.aside.clear();
    }

    /// A change of ours is about to be sent. Its number is to be given back to
    /// [`end`](Self::end).
    pub(in crate::vfs) fn begin(&mut self) -> u64 {
        self.begun += 1;
        self.steps += 1;
        self.under_way.push(self.begun);
        self.begun
    }

    /// A change of ours was accepted at `now` that is to be sent later (`writeback`): what was asked
    /// for before tells nothing of it.
    pub(in crate::vfs) fn accepted(&mut self, now: Instant) {
        self.begun += 1;
        self.steps += 1;
        self.changed = Some(now);
    }

    /// The change was answered, and what it said was taken in.
    pub(in crate::vfs) fn end(&mut self, number: u64) -> Verdict {
        self.steps += 1;
        self.under_way.retain(|other| *other != number);
        let oldest = self.under_way.first().copied().unwrap_or(u64::MAX);
        if self.aside.iter().any(|aside| aside.number < oldest) {
            self.break_off();
            return Verdict::Foreign;
        }
        Verdict::Same
    }

    /// A request sent at `sent` and answered at `now` saw this value.
    pub(in crate::vfs) fn observed(&mut self, change: u64, sent: Instant, now: Instant) -> Verdict {
        let seen = Aside {
            before: change,
            after: change,
            atomic: true,
            sent,
            number: self.begun,
        };
        self.take(seen, self.under_way.len(), now)
    }

    /// A change of ours was answered at `now`.
    pub(in crate::vfs) fn answered(&mut self, now: Instant) {
        self.changed = Some(now);
    }

    /// A change of ours, sent at `sent`, came to this pair, which was told at `now`.
    pub(in crate::vfs) fn moved(
        &mut self,
        (before, after): (u64, u64),
        atomic: bool,
        sent: Instant,
        now: Instant,
    ) -> Verdict {
        let seen = Aside {
            before,
            after,
            atomic,
            sent,
            number: self.begun,
        };
        // It is under way itself.
        self.take(seen, self.under_way.len().saturating_sub(1), now)
    }

    fn take(&mut self, seen: Aside, others: usize, now: Instant) -> Verdict {
        let crossed = self.heard.is_some_and(|heard| seen.sent < heard);
        self.heard = self.heard.max(Some(now));
        if self.span.is_none() {
            if self.blind.is_none_or(|blind| seen.sent >= blind) {
                self.start(seen.after, seen.sent, true);
            }
            return Verdict::Same;
        }
        if self.join(seen) {
            while let Some(at) = self
                .aside
                .iter()
                .position(|aside| self.span.is_some_and(|span| span.holds(aside.before)))
            {
                let aside = self.aside.swap_remove(at);
                self.join(aside);
            }
            return Verdict::Same;
        }
        if others == 0 || self.aside.len() >= MOST_ASIDE {
            match crossed {
                true => self.break_off(),
                false => self.start(seen.after, seen.sent, true),
            }
            return Verdict::Foreign;
        }
        self.aside.push(seen);
        Verdict::Unsure
    }

    /// Lengthens the chain by a pair that begins in it.
    fn join(&mut self, seen: Aside) -> bool {
        let Some(span) = self.span.as_mut().filter(|span| span.holds(seen.before)) else {
            return false;
        };
        if seen.after > span.to {
            span.to = seen.after;
        } else if !span.holds(seen.after) {
            // A server whose values do not grow: only equality is left.
            *span = Span {
                from: seen.after,
                to: seen.after,
            };
        }
        self.confirmed = self.confirmed.max(seen.sent);
        if !seen.atomic && self.loose.is_none() {
            self.loose = Some(seen.sent);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const S: Duration = Duration::from_secs(1);

    fn chain(now: Instant) -> ChangeTracker {
        let mut chain = ChangeTracker::new(now);
        chain.start(10, now, true);
        chain
    }

    fn good(chain: &ChangeTracker, now: Instant) -> bool {
        !chain.good_for(now, 30 * S, 60 * S).is_zero()
    }

    #[test]
    fn our_own_changes_explain_themselves_and_others_do_not() {
        let t0 = Instant::now();
        let mut chain = chain(t0);
        let number = chain.begin();
        assert_eq!(chain.moved((10, 11), true, t0, t0), Verdict::Same);
        assert_eq!(chain.end(number), Verdict::Same);
        assert_eq!(chain.observed(11, t0 + MS, t0 + MS), Verdict::Same);
        assert!(good(&chain, t0 + MS));
        assert_eq!(
            chain.observed(12, t0 + 2 * MS, t0 + 2 * MS),
            Verdict::Foreign
        );
        assert!(!chain.explains(11), "what was known at 11 is not good");
    }

    #[test]
    fn replies_that_overtake_each_other_are_joined_when_the_missing_one_comes() {
        let t0 = Instant::now();
        let mut chain = chain(t0);
        let (a, b) = (chain.begin(), chain.begin());
        assert_eq!(chain.moved((11, 12), true, t0, t0), Verdict::Unsure);
        assert!(!good(&chain, t0), "nothing is believed meanwhile");
        assert_eq!(chain.end(b), Verdict::Same);
        assert_eq!(chain.moved((10, 11), true, t0, t0), Verdict::Same);
        assert_eq!(chain.end(a), Verdict::Same);
        assert!(chain.explains(12) && good(&chain, t0));
    }

    #[test]
    fn what_no_change_of_ours_explains_is_somebody_elses_when_they_have_ended() {
        let t0 = Instant::now();
        let mut chain = chain(t0);
        let a = chain.begin();
        assert_eq!(chain.observed(20, t0, t0), Verdict::Unsure);
        let later = chain.begin();
        assert_eq!(chain.moved((10, 11), true, t0, t0), Verdict::Same);
        assert_eq!(chain.end(a), Verdict::Foreign, "begun later does not count");
        assert!(!good(&chain, t0));
        assert_eq!(
            chain.moved((20, 21), true, t0, t0),
            Verdict::Same,
            "starts anew"
        );
        assert_eq!(chain.end(later), Verdict::Same);
    }

    #[test]
    fn of_answers_that_crossed_nobody_says_which_is_newer() {
        let t0 = Instant::now();
        // The first was asked before the second, and answered by the server after it.
        for late in [9, 11] {
            let mut chain = chain(t0);
            assert_eq!(chain.observed(10, t0 + MS, t0 + 3 * MS), Verdict::Same);
            assert_eq!(chain.observed(late, t0, t0 + 4 * MS), Verdict::Foreign);
            assert!(!good(&chain, t0 + 4 * MS) && !chain.explains(10) && !chain.explains(late));
            assert_eq!(chain.observed(10, t0 + 2 * MS, t0 + 5 * MS), Verdict::Same);
            assert!(!good(&chain, t0 + 5 * MS), "it crossed, too");
            assert_eq!(chain.observed(11, t0 + 4 * MS, t0 + 6 * MS), Verdict::Same);
            assert!(good(&chain, t0 + 6 * MS), "asked after all of them");
        }
        let mut chain = chain(t0);
        assert_eq!(chain.observed(10, t0, t0 + MS), Verdict::Same);
        assert_eq!(chain.observed(11, t0 + MS, t0 + 2 * MS), Verdict::Foreign);
        assert!(good(&chain, t0 + 2 * MS), "asked later: it is newer");
    }

    #[test]
    fn changes_that_were_under_way_together_may_see_each_others_values() {
        let t0 = Instant::now();
        let mut chain = chain(t0);
        let numbers = [chain.begin(), chain.begin(), chain.begin()];
        // The first one's "after" is the second one's; the third began between.
        assert_eq!(chain.moved((11, 13), false, t0, t0), Verdict::Unsure);
        assert_eq!(chain.moved((10, 12), false, t0, t0), Verdict::Same);
        assert_eq!(chain.moved((10, 12), false, t0, t0), Verdict::Same);
        for number in numbers {
            assert_eq!(chain.end(number), Verdict::Same);
        }
        assert!(chain.explains(13) && good(&chain, t0));
    }

    #[test]
    fn a_chain_that_is_not_atomic_is_believed_for_the_longest_time_only() {
        let t0 = Instant::now();
        let mut chain = chain(t0);
        for second in 0..100 {
            let now = t0 + second * S;
            let number = chain.begin();
            let at = 10 + u64::from(second);
            assert_eq!(chain.moved((at, at + 1), false, now, now), Verdict::Same);
            chain.end(number);
            assert_eq!(good(&chain, now), second < 60, "after {second} s");
        }
        assert!(chain.is_worn_out(t0 + 60 * S, 60 * S));
        chain.start(7, t0 + 100 * S, true);
        assert!(good(&chain, t0 + 100 * S));
    }

    #[test]
    fn values_that_do_not_grow_are_compared_for_equality() {
        let t0 = Instant::now();
        let mut chain = chain(t0);
        let number = chain.begin();
        assert_eq!(chain.moved((10, 3), true, t0, t0), Verdict::Same);
        chain.end(number);
        assert!(chain.explains(3) && !chain.explains(10) && !chain.explains(5));
        assert_eq!(chain.observed(10, t0 + MS, t0 + MS), Verdict::Foreign);
    }
}
