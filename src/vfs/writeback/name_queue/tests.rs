//! The queue against a server that has, of each directory, a prefix of what was accepted.

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn config() -> Config {
    Config {
        most: 8,
        linger: 3 * MS,
        patience: 7 * MS,
        crowd: 4,
    }
}

fn all<C>(waiting: &VecDeque<Queued<C>>, _: Ripe) -> Fit {
    so_many(waiting, waiting.len())
}

/// Two are as many as a request takes.
fn so_many<C>(waiting: &VecDeque<Queued<C>>, count: usize) -> Fit {
    Fit {
        count,
        is_full: waiting.len() >= 2,
    }
}

fn sent<C>(next: Next<C>) -> Batch<C> {
    match next {
        Next::Send(batch) => batch,
        Next::WakeAt(_) | Next::Nothing => panic!("nothing is sent"),
    }
}

#[test]
fn a_change_waits_for_company_and_no_longer_than_it_may() {
    let t0 = Instant::now();
    let mut queue = NameQueue::new(config());
    queue.accept(1, t0, 'a');
    assert!(matches!(queue.next(t0, all), Next::WakeAt(at) if at == t0 + 3 * MS));
    let batch = sent(queue.next(t0 + 3 * MS, all));
    assert_eq!((batch.dir, batch.changes.len()), (1, 1));
    queue.accept(1, t0 + 3 * MS, 'b');
    queue.accept(1, t0 + 3 * MS, 'c');
    let under_way = queue.next(t0 + 9 * MS, all);
    assert!(matches!(under_way, Next::Nothing), "one batch at a time");
    queue.done(1, Vec::new(), None);
    let batch = sent(queue.next(t0 + 3 * MS, all));
    assert_eq!(batch.changes.len(), 2, "as many as a request takes");
    queue.done(1, Vec::new(), None);
    assert!(queue.len() == 0 && queue.is_settled_in(1));
}

#[test]
fn what_has_room_in_its_request_waits_for_company_however_many_wait_already() {
    let t0 = Instant::now();
    let mut queue = NameQueue::new(config());
    let twelve = |waiting: &VecDeque<Queued<u8>>, _: Ripe| Fit {
        count: waiting.len(),
        is_full: waiting.len() >= 12,
    };
    for change in 0..3 {
        queue.accept(1, t0, change);
    }
    assert!(matches!(queue.next(t0, twelve), Next::WakeAt(at) if at == t0 + 3 * MS));
    assert_eq!(sent(queue.next(t0 + 3 * MS, twelve)).changes.len(), 3);
}

#[test]
fn what_is_not_ripe_yet_is_looked_at_again_when_it_is() {
    let t0 = Instant::now();
    let mut queue = NameQueue::new(config());
    queue.accept(1, t0, 'a');
    queue.accept(1, t0 + MS, 'b');
    assert!(matches!(queue.next(t0 + MS, ripe), Next::WakeAt(at) if at == t0 + 7 * MS));
    assert_eq!(sent(queue.next(t0 + 7 * MS, ripe)).changes.len(), 1);
}

fn ripe(waiting: &VecDeque<Queued<char>>, ripe: Ripe) -> Fit {
    let count = waiting.iter().take_while(|queued| ripe.is(queued)).count();
    so_many(waiting, count)
}

#[test]
fn a_crowd_does_not_wait_for_what_its_first_waits_for_and_nor_does_who_is_waited_for() {
    let t0 = Instant::now();
    let mut queue = NameQueue::new(config());
    for change in ['a', 'b', 'c'] {
        queue.accept(1, t0, change);
    }
    assert!(matches!(queue.next(t0, ripe), Next::WakeAt(_)));
    queue.accept(1, t0, 'd');
    assert_eq!(sent(queue.next(t0, ripe)).changes.len(), 4);
    queue.accept(2, t0, 'e');
    queue.hurry();
    assert_eq!(sent(queue.next(t0, ripe)).changes.len(), 1);
}

#[test]
fn whoever_waits_is_not_made_to_wait_for_company() {
    let t0 = Instant::now();
    let mut queue = NameQueue::new(config());
    queue.accept(1, t0, 'a');
    let number = queue.hurry();
    queue.accept(2, t0, 'b');
    let batch = sent(queue.next(t0, all));
    assert_eq!(batch.dir, 1);
    assert!(!queue.settled(number));
    queue.done(1, Vec::new(), None);
    assert!(queue.settled(number), "what came later does not count");
    assert!(matches!(queue.next(t0, all), Next::WakeAt(_)));
}

#[test]
fn what_was_not_executed_goes_first_and_after_the_rest() {
    let t0 = Instant::now();
    let mut queue = NameQueue::new(config());
    for change in ['a', 'b', 'c'] {
        queue.accept(1, t0, change);
    }
    let mut batch = sent(queue.next(t0, |waiting, _| so_many(waiting, 2)));
    batch.changes.remove(0);
    queue.done(1, batch.changes, Some(Rested(t0 + 20 * MS)));
    assert!(matches!(queue.next(t0 + 9 * MS, all), Next::WakeAt(at) if at == t0 + 20 * MS));
    let batch = sent(queue.next(t0 + 20 * MS, all));
    let changes: Vec<_> = batch.changes.iter().map(|queued| queued.change).collect();
    assert_eq!(changes, ['b', 'c']);
    assert_eq!(queue.len(), 2);
}

#[derive(Clone, Debug)]
enum Event {
    Accept(u64),
    Hurry,
    Wait(u8),
    /// The oldest batch is answered: so many were executed, and whether the rest failed for good.
    Answer(u8, bool),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..4_u64).prop_map(Event::Accept),
        1 => Just(Event::Hurry),
        2 => (0..5_u8).prop_map(Event::Wait),
        4 => (0..4_u8, any::<bool>()).prop_map(|(done, fails)| Event::Answer(done, fails)),
    ]
}

/// Whatever happens in whatever order, and wherever it ends.
fn runs(events: Vec<Event>, fits: usize) -> Result<(), TestCaseError> {
    let mut now = Instant::now();
    let mut queue = NameQueue::new(config());
    let mut accepted: BTreeMap<Ino, Vec<Number>> = BTreeMap::new();
    let mut server: BTreeMap<Ino, Vec<Number>> = BTreeMap::new();
    let mut on_their_way: VecDeque<Batch<()>> = VecDeque::new();
    let mut tickets: Vec<Number> = Vec::new();
    let ends = std::iter::repeat_n(Event::Answer(9, false), 64);
    for event in events.into_iter().chain([Event::Hurry]).chain(ends) {
        match event {
            Event::Accept(dir) if queue.has_room() => {
                let number = queue.accept(dir, now, ());
                accepted.entry(dir).or_default().push(number);
            }
            Event::Accept(_) => {}
            Event::Hurry => tickets.push(queue.hurry()),
            Event::Wait(millis) => now += MS * u32::from(millis),
            Event::Answer(done, fails) => {
                if let Some(Batch { dir, mut changes }) = on_their_way.pop_front() {
                    let done = usize::from(done).min(changes.len());
                    let mut again = changes.split_off(done);
                    if fails && !again.is_empty() {
                        // Refused for good: it counts as done, those behind it go again.
                        changes.push(again.remove(0));
                    }
                    let done = changes.iter().map(|queued| queued.number);
                    server.entry(dir).or_default().extend(done);
                    queue.done(dir, again, None);
                }
            }
        }
        while let Next::Send(batch) =
            queue.next(now, |waiting, _| so_many(waiting, waiting.len().min(fits)))
        {
            let same = |other: &Batch<()>| other.dir == batch.dir;
            prop_assert!(!on_their_way.iter().any(same), "two at a time");
            prop_assert!((1..=fits).contains(&batch.changes.len()));
            on_their_way.push_back(batch);
        }
        for (dir, has) in &server {
            prop_assert!(accepted[dir].starts_with(has), "no prefix: {has:?}");
        }
        let done: usize = server.values().map(Vec::len).sum();
        let all: usize = accepted.values().map(Vec::len).sum();
        prop_assert_eq!(queue.len(), all - done);
        for ticket in &tickets {
            let mut missing = accepted.iter().flat_map(|(dir, all)| {
                let has = server.get(dir).map_or(0, Vec::len);
                all[has..].iter().filter(|number| *number <= ticket)
            });
            prop_assert_eq!(queue.settled(*ticket), missing.next().is_none());
        }
    }
    prop_assert_eq!(queue.len(), 0, "all of it gets there");
    Ok(())
}

proptest! {
    #[test]
    fn the_server_has_a_prefix_of_each_directory_whatever_happens(
        events in prop::collection::vec(event(), 0..60),
        fits in 1..4_usize,
    ) {
        runs(events, fits)?;
    }
}
