//! `efs-fuse status`.

use serde_json::{Value, json};

use super::arguments::Status;
use super::exit::{self, Failure};
use super::running::Running;
use crate::quoting;

pub(super) fn run(asked: &Status) -> Result<(), Failure> {
    let running = match &asked.mountpoint {
        Some(path) => vec![Running::at(path)?],
        None => Running::all()?,
    };
    let mounts = Running::statuses(&running);
    exit::print(&if asked.json {
        format!("{}\n", json!({"mounts": mounts}))
    } else if mounts.is_empty() {
        "nothing is mounted\n".to_owned()
    } else {
        mounts.iter().map(show).collect::<Vec<_>>().join("\n")
    })
}

/// A heading, then one line per thing that is known, nested objects flat.
fn show(mount: &Value) -> String {
    let text = |key: &str| quoting::name(mount[key].as_str().unwrap_or("?")).to_string();
    let mut shown = format!("{} on {}\n", text("device"), text("mountpoint"));
    let Some(fields) = mount.as_object() else {
        return shown;
    };
    for (key, value) in fields {
        let value = match key.as_str() {
            "device" | "mountpoint" => None,
            "takeover" => takeover(value),
            _ => flat(value),
        };
        if let Some(value) = value {
            shown.push_str(&format!("  {:<14} {value}\n", words(key)));
        }
    }
    shown
}

/// Who takes over, and which take-overs there were.
fn takeover(value: &Value) -> Option<String> {
    let Some(generation) = value["generation"].as_u64() else {
        return value["state"].as_str().map(quoting::plain);
    };
    let times = |kind: &str| value["takeovers"][kind].as_u64().unwrap_or_default();
    let text = |key: &str| value[key].as_str().map(quoting::plain);
    let possible = match (text("why_not"), value["survives"] == true) {
        (Some(why), _) => format!("no: {why}"),
        (None, true) => "after a crash and by upgrade".to_owned(),
        (None, false) => "by upgrade".to_owned(),
    };
    let mut shown = format!(
        "{possible}; generation {generation}: {} planned, {} after a crash",
        times("planned"),
        times("crash")
    );
    if let Some(pause) = value["pause_ms"].as_f64() {
        shown.push_str(&format!("; last pause {pause:.0} ms"));
    }
    for why in [text("died"), text("failed")].into_iter().flatten() {
        shown.push_str(&format!(": {why}"));
    }
    Some(shown)
}

/// A value on one line; `None` if there is nothing in it.
fn flat(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(quoting::plain(text)),
        Value::Array(items) => joined(items.iter().filter_map(flat), "; "),
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .filter_map(|(key, value)| Some(format!("{} {}", words(key), flat(value)?)));
            joined(fields, ", ")
        }
        other => Some(other.to_string()),
    }
}

/// A key as words. Keys too are the daemon's, which may be anybody's.
fn words(key: &str) -> String {
    quoting::plain(&key.replace('_', " "))
}

fn joined(parts: impl Iterator<Item = String>, between: &str) -> Option<String> {
    let parts: Vec<_> = parts.collect();
    (!parts.is_empty()).then(|| parts.join(between))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_shown_with_what_is_known_of_it() {
        let text = show(&json!({
            "mountpoint": "/volumes",
            "device": "h:/",
            "session": {"state": "up", "lease_s": 90, "in_use": 2},
            "connections": [{"peer": "h:2049"}, {"peer": "h:2049"}],
            "tls": null,
            "caches": {},
        }));
        assert!(text.starts_with("h:/ on /volumes\n"), "{text}");
        assert!(text.contains("in use 2, lease s 90, state up"), "{text}");
        assert!(text.contains("peer h:2049; peer h:2049"), "{text}");
        assert!(!text.contains("tls") && !text.contains("caches"), "{text}");
    }

    #[test]
    fn take_overs_are_one_line_with_how_often_how_long_and_why() {
        let line = takeover(&json!({
            "generation": 3, "keeper": 7, "why_not": null, "survives": true, "pause_ms": 312.4,
            "takeovers": {"planned": 2, "crash": 1}, "failed": null,
            "died": "the daemon before was ended by signal 9",
        }));
        assert_eq!(
            line.as_deref(),
            Some(
                "after a crash and by upgrade; generation 3: 2 planned, 1 after a crash; last \
                 pause 312 ms: the daemon before was ended by signal 9"
            )
        );
        let line = takeover(&json!({"state": "taking over"}));
        assert_eq!(line.as_deref(), Some("taking over"));
        assert_eq!(takeover(&Value::Null), None);
    }

    #[test]
    fn nothing_that_is_shown_makes_a_line_of_its_own() {
        let text = show(&json!({
            "mountpoint": "/a\nh:/ on /b",
            "device": "h:/\u{1b}[2J",
            "server": "x\nh:/ on /b",
            "tls": {"\r\nkey\u{202e}": ["\u{9b}2J"]},
        }));
        assert_eq!(text.lines().count(), 3, "{text}");
        let harmless = |c: char| c == '\n' || !(c.is_control() || c == '\u{202e}');
        assert!(text.chars().all(harmless), "{text:?}");
        assert!(
            text.starts_with("'h:/'$'\\033''[2J' on '/a'$'\\n''h:/ on /b'\n"),
            "{text}"
        );
    }
}
