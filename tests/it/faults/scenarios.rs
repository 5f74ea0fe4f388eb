//! The scenarios that the client is to survive, and the tests that try each: on a
//! real server what a real server can be made to do, else on the scripted one.

/// Number, scenario, what a program sees of it, tests.
type Scenario = (u32, &'static str, &'static str, &'static [&'static str]);

const NOTHING: &str = "nothing but a pause";

pub(super) const SCENARIOS: &[Scenario] = &[
    (
        1,
        "server killed in mid-write",
        NOTHING,
        &[
            "faults::line::unsynced_writes_survive_a_crash_of_the_server",
            "faults::line::open_files_survive_a_reboot_of_the_server",
            "protocol::recovery::a_restart_at_any_request_of_a_copy_loses_nothing",
            "protocol::flags::a_restart_that_keeps_the_session_is_told_by_its_flag_and_everything_reclaimed",
        ],
    ),
    (
        2,
        "... with locks held",
        "nothing: they are reclaimed, and nobody comes between",
        &[
            "operations::locks::locks_survive_a_reboot_of_the_server_and_nobody_comes_between",
            "protocol::locks::locks_are_reclaimed_before_anybody_else_gets_them",
        ],
    ),
    (
        3,
        "... and again during recovery",
        NOTHING,
        &[
            "protocol::recovery::a_second_restart_in_the_middle_of_recovery_starts_it_over",
            "protocol::recovery::a_session_lost_in_the_middle_of_recovery_does_not_end_it_half_done",
        ],
    ),
    (
        4,
        "reclaim refused",
        "opens go on; who held a lock gets EIO",
        &[
            "protocol::locks::a_lock_that_the_server_does_not_give_back_is_lost",
            "protocol::recovery::opens_that_cannot_be_reclaimed_are_opened_anew",
        ],
    ),
    (
        5,
        "connection reset anywhere",
        "nothing; everything happens once",
        &[
            "faults::line::operations_that_must_not_happen_twice_happen_once_over_a_line_that_breaks",
            "faults::line::appended_bytes_arrive_once_and_in_order_over_a_line_that_breaks",
            "faults::line::reads_are_whole_and_right_over_a_line_that_breaks",
            "protocol::exactly_once::many_cuts_in_a_row_change_nothing",
        ],
    ),
    (
        6,
        "reply lost, then reset",
        "nothing; everything happens once",
        &[
            "protocol::exactly_once::a_reply_lost_with_its_connection_is_fetched_again_under_the_same_name",
            "protocol::exactly_once::a_request_lost_with_its_connection_runs_once_on_the_next",
        ],
    ),
    (
        7,
        "... and the session lost as well",
        "nothing; never the doing of another host taken for ours",
        &[
            "protocol::exactly_once::what_ran_before_its_session_was_lost_runs_once_and_is_ours_where_that_can_be_told",
            "protocol::exactly_once::what_ran_before_the_server_restarted_runs_once_and_is_ours_where_that_can_be_told",
            "protocol::exactly_once::a_session_lost_while_the_server_was_still_at_work_may_have_run_the_request",
            "protocol::exactly_once::what_another_did_meanwhile_is_never_taken_for_ours",
            "protocol::exactly_once::an_exclusive_create_is_known_for_ours_and_never_that_of_another",
        ],
    ),
    (
        8,
        "half-open connection",
        NOTHING,
        &["faults::line::a_line_that_vanished_without_a_word_is_replaced"],
    ),
    (
        9,
        "server stalls within its lease",
        "nothing; processes can be killed",
        &[
            "operations::interrupts::kill_9_ends_a_process_that_waits_on_a_stopped_server",
            "operations::interrupts::a_fatal_signal_ends_a_waiting_process_and_a_stall_alone_ends_nothing",
            "protocol::lease::a_server_that_stops_to_answer_is_said_not_to_respond_until_it_does",
        ],
    ),
    (
        10,
        "server stalls beyond its lease",
        "opens recover; who held a lock gets EIO",
        &[
            "protocol::lease::a_partition_longer_than_the_lease_costs_the_state_and_not_the_file",
            "protocol::locks::a_lock_lost_with_the_lease_makes_its_descriptor_fail_and_no_other",
        ],
    ),
    (
        11,
        "cut off beyond the lease, another takes the lock",
        "EIO; nothing of ours is written over theirs",
        &["protocol::locks::data_written_under_a_lock_that_was_lost_are_never_sent"],
    ),
    (
        12,
        "cut off within the lease",
        NOTHING,
        &["protocol::lease::a_partition_shorter_than_the_lease_is_only_a_pause"],
    ),
    (
        13,
        "session destroyed by somebody",
        NOTHING,
        &[
            "protocol::sequence::any_status_of_sequence_about_slot_or_session_once_is_not_visible",
            "protocol::exactly_once::a_request_that_met_a_lost_session_runs_once_in_the_next",
        ],
    ),
    (
        14,
        "connections must be bound",
        NOTHING,
        &[
            "protocol::sequence::a_server_that_wants_connections_bound_gets_one_bind_a_connection",
            "protocol::sequence::a_session_that_is_gone_when_a_connection_is_to_be_bound_is_replaced",
        ],
    ),
    (
        15,
        "hosts contend for one lock",
        "the exact sum",
        &["operations::hosts::a_counter_under_a_lock_ends_at_the_sum_of_three_hosts"],
    ),
    (
        16,
        "a waiter is killed as it gets the lock",
        "no lock is left",
        &[
            "protocol::locks::a_grant_that_comes_after_its_waiter_left_is_given_back",
            "operations::locks::a_signal_ends_a_wait_for_a_lock_and_nothing_is_left_of_it",
        ],
    ),
    (
        17,
        "the write verifier moves",
        "nothing; at every COMMIT: EIO from fsync",
        &[
            "protocol::data::data_lost_between_write_and_commit_are_written_again",
            "protocol::data::a_server_that_loses_data_before_every_commit_is_given_up",
        ],
    ),
    (
        18,
        "short WRITEs, and impossible counts",
        "right data; EIO",
        &[
            "protocol::data::short_counts_of_the_server_are_completed",
            "protocol::data::a_write_of_more_than_was_sent_is_an_error",
        ],
    ),
    (
        19,
        "short READs, and impossible ones",
        "right data; EIO",
        &[
            "protocol::data::short_counts_of_the_server_are_completed",
            "protocol::data::impossible_counts_of_read_are_an_error_and_not_a_loop",
        ],
    ),
    (
        20,
        "slots out of order",
        "nothing, or a new session",
        &[
            "protocol::sequence::a_slot_that_stays_misordered_is_given_up_for_another",
            "protocol::sequence::a_session_whose_every_slot_is_broken_is_replaced",
            "protocol::exactly_once::a_reply_that_the_server_did_not_keep_leaves_what_was_done_once",
        ],
    ),
    (
        21,
        "replies twice, late, under another xid",
        "nothing",
        &[
            "protocol::garbage::every_reply_may_come_twice",
            "protocol::garbage::a_reply_under_a_wrong_xid_is_not_taken_for_another_call",
            "protocol::sequence::a_reply_for_another_slot_or_session_is_never_taken",
        ],
    ),
    (
        22,
        "garbage",
        "EIO at most; the daemon lives",
        &[
            "protocol::garbage::a_reply_cut_short_anywhere_is_an_error_at_most",
            "protocol::garbage::any_word_of_a_reply_may_be_huge",
            "protocol::garbage::random_bytes_behind_the_xid_are_an_error_at_most",
            "protocol::garbage::flipped_bits_are_an_error_at_most",
            "protocol::garbage::a_reply_damaged_where_it_says_whose_it_is_never_becomes_that_of_another_call",
            "hostile::damaged_results_are_refused_whatever_was_asked_for",
        ],
    ),
    (
        23,
        "records beyond all bounds",
        "a new connection",
        &["protocol::garbage::a_record_beyond_all_bounds_ends_its_connection_and_costs_no_memory"],
    ),
    (
        24,
        "DELAY and GRACE for a minute",
        "a pause; few requests",
        &[
            "protocol::patience::an_operation_put_off_for_a_minute_is_repeated_a_few_times_and_succeeds",
            "protocol::patience::a_sequence_put_off_is_repeated_under_the_same_sequence_id",
            "protocol::patience::what_makes_a_session_is_put_off_too",
        ],
    ),
    (
        25,
        "each SEQUENCE status flag, once and for ever",
        "state is right; no loop",
        &[
            "protocol::flags::no_flag_costs_a_lock_that_the_server_still_knows",
            "protocol::flags::revoked_opens_are_found_by_the_flag_freed_and_opened_again",
            "protocol::flags::only_what_was_revoked_is_lost",
            "protocol::flags::a_session_that_must_not_be_used_is_left_when_its_last_reply_is_in",
            "protocol::flags::a_server_that_cannot_test_stateids_is_no_trouble",
            "protocol::recovery::status_flags_that_stay_up_start_no_recovery_loop",
        ],
    ),
    (
        26,
        "the slot table shrinks to one and grows",
        "nothing",
        &[
            "protocol::slots::the_table_shrinks_to_one_slot_and_grows_again_under_load",
            "protocol::slots::a_table_that_is_cut_without_a_word_is_found_out_and_got_over",
            "protocol::sequence::broken_slots_and_a_shrunken_table_together_do_not_hang",
        ],
    ),
    (
        27,
        "the server lowers each limit, also later",
        "smaller I/O",
        &[
            "protocol::limits::every_call_fits_the_limits_of_efs",
            "protocol::limits::every_call_fits_into_eight_operations",
            "protocol::limits::one_slot_small_messages_and_a_small_reply_cache_are_enough",
            "protocol::limits::a_session_that_allows_less_than_the_one_before_is_kept_to",
            "protocol::limits::a_server_that_finds_a_message_too_large_gets_smaller_ones",
            "protocol::limits::a_session_too_small_to_work_with_is_refused_with_a_word",
        ],
    ),
    (
        28,
        "callbacks",
        "there are none: no back channel, no delegation is asked for",
        &["protocol::limits::no_more_is_asked_for_than_efs_has"],
    ),
    (
        29,
        "statuses about the state of a file",
        "nothing, or EIO soon",
        &[
            "protocol::recovery::any_status_about_the_state_is_bounded_and_heals",
            "protocol::recovery::revoked_state_that_many_requests_meet_at_once_is_replaced_and_closed",
            "protocol::recovery::revoked_state_is_replaced_where_it_is_used",
        ],
    ),
    (
        30,
        "NOSPC, DQUOT, IO, ROFS after a buffered write",
        "told once to each descriptor",
        &[
            "protocol::data::a_write_error_is_told_by_the_next_write_and_once_by_fsync_or_close",
            "protocol::data::every_handle_that_was_open_hears_of_a_write_error_and_later_ones_do_not",
            "operations::data::a_write_the_server_refuses_is_reported_once_and_poisons_nothing",
        ],
    ),
    (
        31,
        "a file removed, replaced, changed by another host",
        "close-to-open",
        &[
            "operations::unlink::a_file_removed_by_another_host_stays_usable_where_it_is_open",
            "operations::coherence::an_overwrite_of_the_same_size_is_seen_at_the_next_open",
            "operations::rename::renames_of_other_hosts_are_seen_by_name",
        ],
    ),
    (
        32,
        "a directory changes while it is listed",
        "each stable name once; it ends",
        &["operations::directories::deleting_while_listing_gives_each_stable_name_once_and_ends"],
    ),
    (
        33,
        "an unlinked open file, then a reboot",
        "its content is there; nothing is left",
        &[
            "faults::line::an_unlinked_open_file_survives_a_reboot_and_leaves_nothing",
            "operations::unlink::an_unlinked_open_file_stays_readable_and_writable_and_leaves_nothing",
            "operations::rename::a_file_replaced_by_rename_stays_usable_where_it_is_open",
        ],
    ),
    (
        34,
        "idle; the machine or the daemon stopped beyond the lease",
        "nothing; a lost lock says so",
        &[
            "faults::line::a_lease_is_kept_while_nobody_works",
            "faults::daemon::a_daemon_stopped_beyond_its_lease_goes_on",
            "protocol::lease::after_the_machine_slept_the_lease_is_looked_after_at_once",
        ],
    ),
    (
        35,
        "the daemon is killed",
        "ENOTCONN until it is mounted again, which works at once; what was synced is there",
        &[
            "faults::daemon::a_killed_daemon_costs_a_clean_error_and_nothing_that_was_synced",
            "lifecycle::a_dead_daemons_mount_is_replaced_not_stacked_upon",
            "lifecycle::sigkill_of_the_daemon_ends_every_waiting_caller",
        ],
    ),
    // 36, TLS, has tests of its own.
    (
        37,
        "large packets are lost",
        "found and said, a pause while it lasts",
        &["faults::away::a_path_that_loses_large_packets_is_noticed_and_said"],
    ),
    (
        38,
        "the clock on the wall jumps",
        "nothing",
        &["faults::daemon::a_clock_that_jumps_changes_nothing"],
    ),
    (
        39,
        "many groups, owners without a name",
        "16 groups count",
        &["operations::identity::supplementary_groups_open_what_the_mode_gives_the_group"],
    ),
    (
        40,
        "unmounting with a dead server",
        "5 s with --force or --lazy, 30 s by SIGTERM",
        &[
            "faults::away::unmounting_by_force_or_lazily_takes_five_seconds_at_most",
            "lifecycle::sigterm_with_a_dead_server_ends_within_thirty_seconds",
        ],
    ),
    (
        41,
        "a caller is killed in the middle of a change",
        "nothing of it after whoever comes next has begun, on this host or another",
        &[
            "protocol::abandoned::what_was_not_sent_when_its_caller_died_never_takes_effect",
            "protocol::abandoned::what_was_lost_with_its_connection_is_not_sent_again_for_a_caller_that_died",
            "protocol::abandoned::what_is_still_on_its_way_takes_effect_before_anything_that_begins_later",
            "protocol::lockers::who_is_killed_while_a_lock_is_on_its_way_leaves_no_lock_and_no_open",
        ],
    ),
    (
        42,
        "a background task of the daemon dies",
        "EIO at fsync for what a write of it was; else nothing, or the daemon ends",
        &[
            "faults::tasks::fsync_tells_of_a_write_whose_task_died_and_readers_of_it_do_not_hang",
            "faults::tasks::fsync_tells_of_a_commit_whose_task_died",
            "faults::tasks::a_recovery_that_died_is_begun_again",
            "faults::tasks::a_recovery_that_is_dead_ends_the_daemon_and_leaves_a_dead_mount",
        ],
    ),
];
