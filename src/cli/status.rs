//! `efs-fuse status`: one mount in words, several as a table.

mod words;

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::arguments::Status;
use super::exit::{self, Failure};
use super::format::{age, bytes, list};
use super::running::{Running, owner};
use crate::quoting;

pub(super) fn run(asked: &Status) -> Result<(), Failure> {
    let running = match asked.mountpoints.as_slice() {
        [] => Running::all()?,
        some => {
            let found = some.iter().map(|path| Running::at(path));
            found.collect::<Result<_, _>>()?
        }
    };
    let mounts = Running::statuses(&running);
    exit::print(
        &match (asked.json, asked.mountpoints.as_slice(), mounts.as_slice()) {
            (true, ..) => format!("{}\n", json!({"mounts": mounts})),
            (false, [_], [mount]) => words::of(mount),
            (false, _, []) => "nothing is mounted\n".to_owned(),
            (false, ..) => table(&mounts),
        },
    )
}

/// A line for each mount, and below them what each of those in trouble has met last.
fn table(mounts: &[Value]) -> String {
    let rows = mounts.iter().map(|mount| {
        let writes = &mount["write_window"];
        let (waiting, limit) = (writes["bytes"].as_u64(), writes["limit"].as_u64());
        let writes = match (waiting, limit) {
            (Some(waiting), Some(limit)) => format!("{} of {}", bytes(waiting), bytes(limit)),
            _ => "-".to_owned(),
        };
        vec![
            name(&mount["device"]),
            name(&mount["mountpoint"]),
            state(mount),
            since(mount).map_or_else(|| "-".to_owned(), age),
            text(&mount["server"]).unwrap_or_else(|| "-".to_owned()),
            writes,
        ]
    });
    let head = [
        "device",
        "mounted on",
        "state",
        "for",
        "server",
        "writes on their way",
    ];
    let mut shown = list(&head, rows);
    let troubled = mounts.iter().filter_map(|mount| {
        // What is another's is no trouble, and its state says it.
        let error = text(&mount["last_error"]).filter(|_| mount["daemon"] != "not ours")?;
        Some(format!("{}: {error}\n", name(&mount["mountpoint"])))
    });
    let troubled: Vec<_> = troubled.collect();
    if !troubled.is_empty() {
        shown.push_str("\nlast errors\n");
        shown.extend(troubled);
    }
    shown
}

/// How a mount is doing, in a word or some.
fn state(mount: &Value) -> String {
    match mount["daemon"].as_str() {
        Some("gone") => return "dead: its daemon is gone".to_owned(),
        Some("silent") => return "its daemon does not answer".to_owned(),
        Some("taking over") => return "taking over".to_owned(),
        Some("not ours") => {
            let user = mount["user"].as_u64().and_then(|user| user.try_into().ok());
            return format!("{}, who alone may ask", owner(user));
        }
        _ => {}
    }
    let link = &mount["connections"][0];
    if link["responding"] == false {
        let silent = link["silent_s"].as_f64().unwrap_or_default();
        return format!("waiting for the server, {}", age(silent as u64));
    }
    match text(&mount["session"]["state"]) {
        Some(state) => state,
        None => "unknown".to_owned(),
    }
}

/// How long ago it was mounted, in seconds.
fn since(mount: &Value) -> Option<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    Some(now.saturating_sub(mount["since"].as_u64()?))
}

/// A device or path, as `ls` would show it.
fn name(value: &Value) -> String {
    let shown = value.as_str().map(|name| quoting::name(name).to_string());
    shown.unwrap_or_else(|| "?".to_owned())
}

/// What a daemon says, which may be anybody's.
fn text(value: &Value) -> Option<String> {
    value.as_str().map(quoting::plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_mounts_are_a_table_with_a_line_each_and_their_last_errors() {
        let well = json!({
            "mountpoint": "/volumes", "device": "fs-1:/", "daemon": "answers", "server": "h:2049",
            "session": {"state": "up"}, "connections": [{"responding": true}],
            "since": 1, "write_window": {"bytes": 1024, "limit": 67_108_864},
        });
        let waiting = json!({
            "mountpoint": "/waiting", "device": "fs-2:/", "daemon": "answers",
            "session": {"state": "up"}, "connections": [{"responding": false, "silent_s": 12.5}],
            "last_error": "the server went away",
        });
        let gone = json!({"mountpoint": "/gone", "device": "h:/", "daemon": "gone", "last_error": "it is gone"});
        let foreign = json!({
            "mountpoint": "/roots", "device": "h:/r", "daemon": "not ours", "user": 0,
            "last_error": "the mount is root's",
        });
        let shown = table(&[well, waiting, gone, foreign]);
        let lines: Vec<_> = shown.lines().collect();
        assert!(lines[0].starts_with("device  mounted on  state"), "{shown}");
        assert!(lines[1].starts_with("fs-1:/  /volumes    up "), "{shown}");
        assert!(lines[1].ends_with("h:2049  1.0 KiB of 64.0 MiB"), "{shown}");
        assert!(lines[2].contains("waiting for the server, 12 s"), "{shown}");
        assert!(lines[3].contains("dead: its daemon is gone"), "{shown}");
        assert!(lines[4].contains("root's, who alone may ask"), "{shown}");
        assert_eq!(
            lines[5..],
            [
                "",
                "last errors",
                "/waiting: the server went away",
                "/gone: it is gone"
            ]
        );
    }

    #[test]
    fn nothing_that_is_shown_makes_a_line_of_its_own() {
        let odd = json!({
            "mountpoint": "/a\nh:/ on /b",
            "device": "h:/\u{1b}[2J",
            "server": "x\nh:/ on /b",
            "session": {"state": "up\nno"},
            "tls": {"version": "\u{9b}2J\n", "cipher": "\r\nkey\u{202e}"},
            "tasks": [{"name": "a\nb", "died": 1, "last": "c\nd"}],
            "options": ["x=\n"],
        });
        for (shown, lines) in [(table(std::slice::from_ref(&odd)), 2), (words::of(&odd), 5)] {
            assert_eq!(shown.lines().count(), lines, "{shown}");
            let harmless = |c: char| c == '\n' || !(c.is_control() || c == '\u{202e}');
            assert!(shown.chars().all(harmless), "{shown:?}");
        }
        for odd in [
            json!({}),
            json!({"session": 3, "connections": {}, "takeover": [], "caches": 1}),
        ] {
            assert_eq!(table(std::slice::from_ref(&odd)).lines().count(), 2);
            assert!(
                words::of(&odd).starts_with("? on ?: "),
                "{}",
                words::of(&odd)
            );
        }
    }
}
