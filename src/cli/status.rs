//! `efs-fuse status`.

use serde_json::{Value, json};

use super::arguments::Status;
use super::exit::{self, Failure};
use super::running::Running;

pub(super) fn run(asked: &Status) -> Result<(), Failure> {
    let running = match &asked.mountpoint {
        Some(path) => vec![Running::at(path)?],
        None => Running::all()?,
    };
    let mounts: Vec<Value> = running.iter().map(Running::status).collect();
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
    let text = |key: &str| mount[key].as_str().unwrap_or("?").to_owned();
    let mut shown = format!("{} on {}\n", text("device"), text("mountpoint"));
    let Some(fields) = mount.as_object() else {
        return shown;
    };
    for (key, value) in fields {
        if !matches!(key.as_str(), "device" | "mountpoint")
            && let Some(value) = flat(value)
        {
            shown.push_str(&format!("  {:<14} {value}\n", key.replace('_', " ")));
        }
    }
    shown
}

/// A value on one line; `None` if there is nothing in it.
fn flat(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Array(items) => joined(items.iter().filter_map(flat), "; "),
        Value::Object(fields) => {
            let fields = fields.iter().filter_map(|(key, value)| {
                Some(format!("{} {}", key.replace('_', " "), flat(value)?))
            });
            joined(fields, ", ")
        }
        other => Some(other.to_string()),
    }
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
}
