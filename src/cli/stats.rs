//! `efs-fuse stats`.

use serde_json::Value;

use super::arguments::Stats;
use super::exit::{self, Failure};
use super::format::{bytes, count, micros, table};
use super::running::Running;
use super::watch;
use crate::quoting;

pub(super) fn run(asked: &Stats) -> Result<(), Failure> {
    if let Some(interval) = asked.watch {
        return watch::run(&Running::at(&asked.mountpoint)?, interval, asked.json);
    }
    // A reset answers with the last numbers before it: none is lost between.
    let command = if asked.reset { "reset" } else { "stats" };
    let numbers = Running::at(&asked.mountpoint)?.ask(command)?;
    exit::print(&if asked.json {
        format!("{numbers}\n")
    } else {
        show(&numbers, asked.price)
    })
}

/// What a cache on the disk saved, if there is one; `price` is that of a gigabyte (10^9 bytes) that is
/// read from the server, in dollars.
fn saved(disk: &Value, price: Option<f64>) -> Option<String> {
    let number = |key: &str| disk[key].as_u64();
    let (hit, miss) = (number("hit_bytes")?, number("miss_bytes")?);
    let percent = match hit + miss {
        0 => "-".to_owned(),
        all => format!("{:.1} %", 100.0 * hit as f64 / all as f64),
    };
    let mut text = format!(
        "\ndisk cache: {percent} of the bytes read; {} were not read from the server",
        bytes(hit)
    );
    if let Some(price) = price {
        text.push_str(&format!(" (${:.2})", hit as f64 / 1e9 * price));
    }
    text.push_str(&format!(
        "\n            {} on the disk, {} put there, {} not (the disk was too slow); {} evictions, {} damaged, {} errors\n",
        bytes(number("bytes").unwrap_or(0)),
        bytes(number("filled_bytes").unwrap_or(0)),
        bytes(number("dropped_bytes").unwrap_or(0)),
        count(number("evictions").unwrap_or(0)),
        count(number("damaged").unwrap_or(0)),
        count(number("errors").unwrap_or(0)),
    ));
    Some(text)
}

fn show(numbers: &Value, price: Option<f64>) -> String {
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let mut text = format!(
        "round trips {}   read {}   written {}   in {:.0} s\n",
        count(number(&numbers["round_trips"])),
        bytes(number(&numbers["bytes"]["read"])),
        bytes(number(&numbers["bytes"]["written"])),
        numbers["seconds"].as_f64().unwrap_or(0.0),
    );
    text.push_str(&operations("FUSE operation", &numbers["fuse_ops"]));
    text.push_str(&operations("NFS operation", &numbers["nfs_ops"]));
    if let Some(caches) = numbers["cache"].as_object() {
        let rows = caches.iter().map(|(name, cache)| {
            let (hits, misses) = (number(&cache["hits"]), number(&cache["misses"]));
            let ratio = match hits + misses {
                0 => "-".to_owned(),
                all => format!("{:.1} %", 100.0 * hits as f64 / all as f64),
            };
            vec![quoting::plain(name), count(hits), count(misses), ratio]
        });
        text.push('\n');
        text.push_str(&table(&["cache", "hits", "misses", "hit ratio"], rows));
    }
    text.extend(saved(&numbers["disk_cache"], price));
    let now = numbers["gauges"].as_object().into_iter().flatten();
    let events = [
        "reconnects",
        "recoveries",
        "interrupts",
        "names_left_out",
        "slow_operations",
    ]
    .map(|key| (key.to_owned(), numbers[key].clone()));
    let now = now
        .map(|(name, value)| (name.clone(), value.clone()))
        .chain(events);
    let rows = now.map(|(name, value)| vec![quoting::plain(&name), value.to_string()]);
    text.push('\n');
    text.push_str(&table(&["now", "value"], rows));
    if let Some(error) = numbers["last_error"].as_str() {
        text.push_str(&format!("\nlast error: {}\n", quoting::plain(error)));
    }
    text
}

/// A table of operations, the most frequent first. Those of NFS also say how many compounds were sent for each:
/// the latencies are those of these, and an operation that only accompanies others has none.
fn operations(title: &str, operations: &Value) -> String {
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let Some(operations) = operations.as_object().filter(|some| !some.is_empty()) else {
        return String::new();
    };
    let mut operations: Vec<_> = operations.iter().collect();
    operations.sort_by_key(|(_, numbers)| std::cmp::Reverse(number(&numbers["count"])));
    let of_compounds = |(_, numbers): &(_, &Value)| numbers["compounds"].is_u64();
    let with_compounds = operations.iter().any(of_compounds);
    let rows = operations.into_iter().map(|(name, numbers)| {
        let latency = |key: &str| numbers[key].as_f64().map_or_else(|| "-".to_owned(), micros);
        let compounds = with_compounds.then(|| count(number(&numbers["compounds"])));
        let mut row = vec![
            quoting::plain(name),
            count(number(&numbers["count"])),
            count(number(&numbers["errors"])),
        ];
        row.extend(compounds);
        row.extend(["p50_us", "p99_us", "p999_us"].map(latency));
        row
    });
    let compounds: &[&str] = if with_compounds { &["compounds"] } else { &[] };
    let head = [
        &[title, "count", "errors"],
        compounds,
        &["p50", "p99", "p99.9"],
    ]
    .concat();
    format!("\n{}", table(&head, rows))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::{Cache, FuseOp, Metrics};

    #[test]
    fn the_table_shows_what_happened() {
        let metrics = Metrics::new();
        metrics.round_trip();
        metrics.fuse_op(FuseOp::GetAttr, true, Duration::from_micros(15));
        metrics.nfs_op(25, false);
        metrics.nfs_op(22, true);
        metrics.compound(25, Duration::from_millis(3));
        metrics.cache(Cache::Attr, true);
        metrics.bytes_read(3 << 20);
        metrics.set_last_error("the server went away".to_owned());
        let text = show(&metrics.snapshot(), None);
        for expected in [
            "round trips 1",
            "getattr",
            "READ",
            "3.0 MiB",
            "100.0 %",
            "the server went away",
        ] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
        let row = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let words = line.unwrap_or_default().split_whitespace();
            words.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(row("READ")[..4], ["READ", "1", "1", "1"], "{text}");
        assert_eq!(row("PUTFH"), ["PUTFH", "1", "0", "0", "-", "-", "-"]);
        assert_eq!(row("getattr")[..3], ["getattr", "1", "0"]);
    }

    #[test]
    fn what_the_disk_cache_saved_is_bytes_and_dollars() {
        let metrics = Metrics::new();
        assert!(!show(&metrics.snapshot(), Some(0.03)).contains("disk cache"));
        let disk = metrics.disk_cache.get_or_init(Default::default);
        disk.hit_bytes.add(3_000_000_000_000);
        disk.miss_bytes.add(1_000_000_000_000);
        let text = show(&metrics.snapshot(), Some(0.03));
        for expected in ["75.0 % of the bytes", "2.7 TiB were not", "($90.00)"] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
    }

    #[test]
    fn an_odd_answer_is_shown_without_panic() {
        for odd in [
            Value::Null,
            serde_json::json!({"nfs_ops": {"READ": 3}, "cache": {"attr": []}}),
        ] {
            assert!(show(&odd, None).contains("round trips 0"));
        }
    }
}
