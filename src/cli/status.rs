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
        if !matches!(key.as_str(), "device" | "mountpoint")
            && let Some(value) = flat(value)
        {
            shown.push_str(&format!("  {:<14} {value}\n", words(key)));
        }
    }
    shown
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
