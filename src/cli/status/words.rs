//! One mount in words: a heading, then a line for each thing that is known.

use serde_json::Value;

use super::super::format::{age, bytes, count};
use super::super::sync::late_error;
use super::{name, since, state, text};
use crate::quoting;
use crate::telemetry::log::utc;

/// The mount, as `status` has it in JSON.
pub(super) fn of(mount: &Value) -> String {
    let (device, mountpoint) = (name(&mount["device"]), name(&mount["mountpoint"]));
    let mut shown = format!("{device} on {mountpoint}: {}\n", state(mount));
    let of_all = origins(&mount["option_origins"]);
    let lines = [
        ("session", session(&mount["session"])),
        ("server", server(mount)),
        ("mounted", mounted(mount)),
        ("options", options(&mount["options"])),
        ("tls", tls(&mount["tls"])),
        ("iam", iam(&mount["iam"])),
        ("writes", writes(&mount["write_window"])),
        ("caches", caches(&mount["caches"])),
        ("disk cache", disk_cache(&mount["disk_cache"])),
        ("takeover", takeover(&mount["takeover"])),
        ("tasks", tasks(&mount["tasks"])),
        ("last error", text(&mount["last_error"])),
    ];
    for (label, line) in lines {
        let Some(line) = line else {
            continue;
        };
        shown.push_str(&format!("  {label:<10} {line}\n"));
        if label == "options" {
            for origin in &of_all {
                shown.push_str(&format!("  {:<10} {origin}\n", ""));
            }
        }
    }
    shown.push_str(&late_errors(&mount["late_errors"]));
    shown
}

/// What was answered and failed later, a line each.
fn late_errors(late: &Value) -> String {
    let last = late["last"].as_array().map_or(&[][..], Vec::as_slice);
    if last.is_empty() {
        return String::new();
    }
    let count = late["count"].as_u64().unwrap_or_default();
    let mut shown = format!("  answered, and failed later: {}\n", number(count, "error"));
    for error in last {
        let at = text(&error["at"]).unwrap_or_else(|| "?".to_owned());
        shown.push_str(&format!("    {at}  {}\n", late_error(error)));
    }
    shown
}

/// "1 slot", "2 slots".
fn number(count: u64, one: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        more => format!("{more} {one}s"),
    }
}

fn disk_cache(disk: &Value) -> Option<String> {
    let size = |key: &str| disk[key].as_u64().map(bytes);
    if size("budget").is_none() {
        return Some(format!("not used: {}", text(&disk["off"])?));
    }
    let mut shown = format!("{} of {}", size("in_use")?, size("budget")?);
    if let Some(slices) = disk["slices"].as_u64() {
        shown.push_str(&format!(" in {}", number(slices, "file")));
    }
    if disk["encrypted"] == true {
        shown.push_str(", encrypted");
    }
    if let Some(why) = text(&disk["off"]) {
        shown.push_str(&format!("; not used now: {why}"));
    }
    Some(shown)
}

fn session(session: &Value) -> Option<String> {
    let state = text(&session["state"])?;
    let mut shown = state;
    if let (Some(lease), Some(idle)) = (session["lease_s"].as_u64(), session["idle_s"].as_f64()) {
        shown.push_str(&format!("; lease of {lease} s, renewed {idle:.0} s ago"));
    }
    if let (Some(used), Some(slots)) = (session["in_use"].as_u64(), session["slots"].as_u64()) {
        shown.push_str(&format!("; {used} of {slots} slots in use"));
    }
    let size = |key: &str| session[key].as_u64().map(bytes);
    if let (Some(read), Some(written)) = (size("rsize"), size("wsize")) {
        shown.push_str(&format!("; reads of {read}, writes of {written}"));
    }
    Some(shown)
}

fn server(mount: &Value) -> Option<String> {
    let mut shown = text(&mount["server"])?;
    let links = mount["connections"].as_array()?;
    let up = links.iter().filter(|link| link["state"] == "up").count();
    let calls = |link: &Value| link["in_flight"].as_u64().unwrap_or_default();
    let calls = links.iter().map(calls).fold(0, u64::saturating_add);
    shown.push_str(&format!(
        "; {}, {} under way",
        number(up as u64, "connection"),
        number(calls, "call")
    ));
    let Some(first) = links.first() else {
        return Some(shown);
    };
    if let Some(made @ 2..) = first["made"].as_u64() {
        shown.push_str(&format!("; {made} were made"));
    }
    if let Some(why) = text(&first["last_error"]) {
        shown.push_str(&format!("; the last that was lost: {why}"));
    }
    Some(shown)
}

fn mounted(mount: &Value) -> Option<String> {
    let at = match (mount["since"].as_u64(), since(mount)) {
        (Some(at), Some(ago)) => format!("{}, {} ago", utc(at), age(ago)),
        // By the registry, of a daemon that does not answer.
        _ => text(&mount["since"])?,
    };
    let by = match mount["user"].as_u64() {
        Some(0) => ", by root".to_owned(),
        Some(user) => format!(", by user {user}"),
        None => String::new(),
    };
    let pid = mount["pid"].as_u64();
    let pid = pid.map_or_else(String::new, |pid| format!("; pid {pid}"));
    let version = text(&mount["version"]);
    let version = version.map_or_else(String::new, |version| format!(", efs-fuse {version}"));
    Some(format!("{at}{by}{pid}{version}"))
}

fn options(options: &Value) -> Option<String> {
    let options: Vec<_> = options.as_array()?.iter().filter_map(text).collect();
    (!options.is_empty()).then(|| options.join(","))
}

/// Where options come from that were not written for this mount, a line for each origin.
fn origins(origins: &Value) -> Vec<String> {
    let each = origins.as_array().into_iter().flatten();
    each.filter_map(|origin| {
        let (from, options) = (text(&origin["from"])?, options(&origin["options"])?);
        Some(format!("from {from}: {options}"))
    })
    .collect()
}

fn tls(tls: &Value) -> Option<String> {
    let mut shown = text(&tls["version"])?;
    if let Some(cipher) = text(&tls["cipher"]) {
        shown.push_str(&format!(", {cipher}"));
    }
    let made = tls["certificates_made"].as_u64();
    if let (Some(made), Some(at)) = (made, text(&tls["certificate_made_at"])) {
        let made = number(made, "certificate");
        shown.push_str(&format!("; {made} of ours made, the last at {at}"));
    }
    Some(shown)
}

fn iam(iam: &Value) -> Option<String> {
    let key = text(&iam["access_key_id"]).map(|key| format!("as access key {key}"));
    let point = text(&iam["access_point"]).map(|point| format!("through access point {point}"));
    let said: Vec<_> = key.into_iter().chain(point).collect();
    (!said.is_empty()).then(|| said.join(", "))
}

fn writes(window: &Value) -> Option<String> {
    let (waiting, limit) = (window["bytes"].as_u64()?, window["limit"].as_u64()?);
    Some(format!(
        "{} of {} are on their way to the server",
        bytes(waiting),
        bytes(limit)
    ))
}

/// The share of questions that each cache that was asked has answered.
fn caches(caches: &Value) -> Option<String> {
    let asked = caches.as_object()?.iter().filter_map(|(cache, counts)| {
        let (hits, misses) = (counts["hits"].as_u64()?, counts["misses"].as_u64()?);
        let all = hits.saturating_add(misses);
        let share = 100.0 * hits as f64 / all as f64;
        let cache = quoting::plain(cache);
        (all > 0).then(|| format!("{cache} {share:.0} % of {}", count(all)))
    });
    let asked: Vec<_> = asked.collect();
    (!asked.is_empty()).then(|| asked.join(", "))
}

/// Who takes over, and which take-overs there were.
fn takeover(value: &Value) -> Option<String> {
    let Some(generation) = value["generation"].as_u64() else {
        return text(&value["state"]);
    };
    let times = |kind: &str| value["takeovers"][kind].as_u64().unwrap_or_default();
    let possible = match (text(&value["why_not"]), value["survives"] == true) {
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
    for why in [text(&value["died"]), text(&value["failed"])]
        .into_iter()
        .flatten()
    {
        shown.push_str(&format!(": {why}"));
    }
    Some(shown)
}

/// Tasks that have died.
fn tasks(tasks: &Value) -> Option<String> {
    let died = tasks.as_array()?.iter().filter_map(|task| {
        let (name, times) = (text(&task["name"])?, task["died"].as_u64()?);
        let last = text(&task["last"]).unwrap_or_default();
        Some(format!("{name} died {} ({last})", number(times, "time")))
    });
    let died: Vec<_> = died.collect();
    (!died.is_empty()).then(|| died.join("; "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_mount_is_told_in_words_with_what_is_known_of_it_and_nothing_else() {
        let shown = of(&json!({
            "mountpoint": "/volumes",
            "device": "h:/",
            "daemon": "answers",
            "server": "h:2049",
            "since": 0, "user": 0, "pid": 7, "version": "0.1.0",
            "options": ["nosuid", "tls", "port=1"],
            "option_origins": [{"from": "/etc/file", "options": ["nosuid"]}],
            "session": {"state": "up", "lease_s": 90, "idle_s": 12.4, "in_use": 2, "slots": 64},
            "connections": [{"state": "up", "in_flight": 2, "made": 1}, {"state": "up", "in_flight": 1}],
            "tls": {"version": "TLSv1.3", "cipher": "AES", "certificates_made": 1, "certificate_made_at": "then"},
            "iam": {"access_key_id": "AK", "access_point": "fsap-1"},
            "write_window": {"bytes": 0, "limit": 1024},
            "caches": {"attr": {"hits": 3, "misses": 1}, "page": {"hits": 0, "misses": 0}},
            "takeover": null,
            "tasks": [{"name": "renew", "died": 2, "last": "a bug"}],
            "last_error": null,
        }));
        for line in [
            "h:/ on /volumes: up",
            "  session    up; lease of 90 s, renewed 12 s ago; 2 of 64 slots in use",
            "  server     h:2049; 2 connections, 3 calls under way",
            "  options    nosuid,tls,port=1",
            "             from /etc/file: nosuid",
            "  tls        TLSv1.3, AES; 1 certificate of ours made, the last at then",
            "  iam        as access key AK, through access point fsap-1",
            "  writes     0 B of 1.0 KiB are on their way to the server",
            "  caches     attr 75 % of 4",
            "  tasks      renew died 2 times (a bug)",
        ] {
            assert!(
                shown.lines().any(|found| found == line),
                "{line} is not in\n{shown}"
            );
        }
        let mounted = "  mounted    1970-01-01T00:00:00Z, ";
        let mounted = shown.lines().find(|line| line.starts_with(mounted));
        assert!(
            mounted.is_some_and(|line| line.ends_with(" ago, by root; pid 7, efs-fuse 0.1.0")),
            "{shown}"
        );
        assert!(
            !shown.contains("takeover") && !shown.contains("last error"),
            "{shown}"
        );
    }

    #[test]
    fn errors_that_came_late_are_a_line_each_with_their_paths() {
        let error =
            json!({"at": "then", "path": "/a/b", "what": "data", "error": "no space", "times": 2});
        let shown = late_errors(&json!({"count": 2, "last": [error]}));
        assert!(
            shown.starts_with("  answered, and failed later: 2 errors\n"),
            "{shown}"
        );
        assert!(
            shown.contains("then  data of /a/b: no space (2 times)"),
            "{shown}"
        );
        assert_eq!(late_errors(&json!({"count": 0, "last": []})), "");
        assert_eq!(late_errors(&Value::Null), "");
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
}
