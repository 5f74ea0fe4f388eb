use super::*;

const TIMEOUTS: Timeouts = Timeouts {
    reg_min: Duration::from_secs(3),
    reg_max: Duration::from_secs(60),
    dir_min: Duration::from_secs(30),
    dir_max: Duration::from_secs(60),
};

fn attrs(change: u64, size: u64) -> Attributes {
    Attributes {
        kind: Some(FileType::Regular),
        change,
        size,
        ..Attributes::default()
    }
}

fn state(now: Instant) -> AttrState {
    AttrState::new(7, &attrs(1, 100), now, &TIMEOUTS)
}

fn own(before: u64, after: Attributes) -> PrePost {
    PrePost {
        before: Some(before),
        after: Some(after),
    }
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn attributes_are_believed_longer_the_longer_they_stay_the_same() {
    let t0 = Instant::now();
    let mut state = state(t0);
    assert_eq!(state.ttl(t0), Duration::from_secs(3));
    assert_eq!(state.ttl(t0 + Duration::from_secs(4)), Duration::ZERO);
    let mut at = t0;
    for expected in [6, 12, 24, 48, 60, 60] {
        at += Duration::from_secs(60);
        assert_eq!(state.learn(&attrs(1, 100), at, at, &TIMEOUTS), Seen::Same);
        assert_eq!(state.ttl(at), Duration::from_secs(expected));
    }
    at += MS;
    state.learn(&attrs(1, 100), at, at, &TIMEOUTS);
    assert_eq!(state.ttl(at), Duration::from_secs(60), "not stretched");
    at += MS;
    assert_eq!(
        state.learn(&attrs(2, 100), at, at, &TIMEOUTS),
        Seen::Foreign
    );
    assert_eq!(state.ttl(at), Duration::from_secs(3));
}

#[test]
fn a_reply_sent_before_our_own_change_was_answered_is_dropped() {
    let t0 = Instant::now();
    let mut state = state(t0);
    let seen = state.moved(&own(1, attrs(2, 5)), t0 + MS, t0 + 5 * MS, &TIMEOUTS);
    assert_eq!(seen, Seen::Same);
    state.learn(&attrs(1, 100), t0 + 3 * MS, t0 + 6 * MS, &TIMEOUTS);
    assert_eq!((state.stat().size, state.change()), (5, 2));
}

#[test]
fn own_changes_explain_themselves_and_foreign_ones_do_not() {
    let t0 = Instant::now();
    let mut state = state(t0);
    state.moved(&own(1, attrs(2, 5)), t0, t0 + MS, &TIMEOUTS);
    assert_eq!(
        state.learn(&attrs(2, 5), t0 + 2 * MS, t0 + 3 * MS, &TIMEOUTS),
        Seen::Same
    );
    // Somebody else moved it from 2 to 3 before our next change.
    let seen = state.moved(&own(3, attrs(4, 9)), t0 + 3 * MS, t0 + 4 * MS, &TIMEOUTS);
    assert_eq!(seen, Seen::Foreign);
    assert_eq!(
        state.learn(&attrs(4, 9), t0 + 5 * MS, t0 + 6 * MS, &TIMEOUTS),
        Seen::Same
    );
}

fn at(change: u64, ctime: i64) -> Attributes {
    Attributes {
        ctime: NfsTime {
            sec: ctime,
            nsec: 0,
        },
        ..attrs(change, change)
    }
}

/// Of two requests under way together either may have run first.
#[test]
fn replies_that_crossed_never_bring_the_older_state_back() {
    let t0 = Instant::now();
    for order in [[5, 4], [4, 5]] {
        let mut state = state(t0);
        for (index, change) in order.into_iter().enumerate() {
            let (sent, now) = (t0 + (1 + index as u32) * MS, t0 + (10 + index as u32) * MS);
            let seen = state.learn(&at(change, change as i64), sent, now, &TIMEOUTS);
            assert_eq!(seen, Seen::Foreign);
        }
        assert_eq!((state.change(), state.stat().size), (5, 5));
        assert_eq!(state.ttl(t0 + 12 * MS), Duration::ZERO, "to be asked again");
        assert_eq!(state.foreign(), 2);
    }
}

#[test]
fn what_was_set_and_the_server_does_not_know_stays_true_until_it_does() {
    let t0 = Instant::now();
    let mut state = state(t0);
    let mode = |mode| SetAttr {
        mode: Some(mode),
        ..SetAttr::default()
    };
    state.accept_set(&mode(0o700), Timestamp::default(), t0 + MS);
    state.accept_set(&mode(0o755), Timestamp::default(), t0 + 2 * MS);
    for at in [3, 5] {
        // The server knows of none, and then of the first.
        state.learn(&attrs(at, 1), t0 + 4 * MS, t0 + 4 * MS, &TIMEOUTS);
        assert_eq!(state.stat().perm, 0o755);
        state.set_answered();
    }
    state.learn(&attrs(9, 1), t0 + 6 * MS, t0 + 6 * MS, &TIMEOUTS);
    assert_eq!(state.stat().perm, 0, "what the server says");
}

#[test]
fn times_of_this_hosts_clock_are_no_reason_to_drop_what_the_server_says_of_our_own_change() {
    let t0 = Instant::now();
    let mut state = state(t0);
    state.is_promised();
    state.touch(
        Timestamp {
            sec: 1 << 40,
            nsec: 0,
        },
        t0 + 2 * MS,
    );
    // It was sent before that, and answered behind it.
    let after = Attributes {
        mode: 0o600,
        ..at(2, 100)
    };
    state.moved(&own(1, after), t0 + MS, t0 + 3 * MS, &TIMEOUTS);
    assert_eq!((state.stat().perm, state.is_expired()), (0o600, true));
    // From then on the server's times count.
    let late = attrs(3, 100);
    state.moved(&own(1, late), t0 + MS, t0 + 4 * MS, &TIMEOUTS);
    assert_eq!(state.stat().perm, 0o600);
}

#[test]
fn another_size_under_the_same_change_attribute_is_a_change() {
    let t0 = Instant::now();
    let mut state = state(t0);
    let seen = state.learn(&attrs(1, 0), t0 + MS, t0 + 2 * MS, &TIMEOUTS);
    assert_eq!((seen, state.foreign()), (Seen::Foreign, 1));
    let seen = state.learn(&attrs(1, 0), t0 + 3 * MS, t0 + 4 * MS, &TIMEOUTS);
    assert_eq!(seen, Seen::Same);
}

#[test]
fn an_open_that_is_late_and_saw_somebody_elses_change_is_heeded() {
    let t0 = Instant::now();
    let mut state = state(t0);
    state.moved(&own(1, attrs(2, 5)), t0 + MS, t0 + 5 * MS, &TIMEOUTS);
    let seen = state.learn_at_open(&attrs(2, 5), t0 + 3 * MS, t0 + 6 * MS, &TIMEOUTS);
    assert_eq!(seen, Seen::Late, "our own");
    let seen = state.learn_at_open(&attrs(9, 7), t0 + 3 * MS, t0 + 6 * MS, &TIMEOUTS);
    assert_eq!((seen, state.foreign()), (Seen::Foreign, 1));
    assert_eq!(state.ttl(t0 + 6 * MS), Duration::ZERO);
}

#[test]
fn parallel_writes_never_shrink_the_file_whatever_order_they_are_answered_in() {
    let t0 = Instant::now();
    let mut state = state(t0);
    state.moved(&own(2, attrs(3, 300)), t0, t0 + 2 * MS, &TIMEOUTS);
    state.moved(&own(1, attrs(2, 200)), t0, t0 + 3 * MS, &TIMEOUTS);
    assert_eq!(state.stat().size, 300);
    assert_eq!(state.ttl(t0 + 3 * MS), Duration::ZERO, "to be asked again");
}
