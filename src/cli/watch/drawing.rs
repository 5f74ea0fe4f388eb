//! The screen of `stats --watch`, line by line.

use std::collections::VecDeque;

use serde_json::Value;

use super::super::format::{age, bytes, count, micros};
use super::rates::{Operation, Rates, whole};
use crate::quoting;
use crate::telemetry::histogram::Quantiles;
use crate::telemetry::log::utc;

/// Intervals that the curves show.
const HISTORY: usize = 60;

/// What stands at the left of curves, bars and caches, with a space.
const LABEL: usize = 13;

/// What the curves are drawn from.
#[derive(Default)]
pub(super) struct History {
    pub(super) read: VecDeque<f64>,
    pub(super) written: VecDeque<f64>,
    pub(super) round_trips: VecDeque<f64>,
}

impl History {
    pub(super) fn add(&mut self, rates: &Rates) {
        for (curve, value) in [
            (&mut self.read, rates.read),
            (&mut self.written, rates.written),
            (&mut self.round_trips, rates.round_trips),
        ] {
            curve.push_back(value);
            if curve.len() > HISTORY {
                curve.pop_front();
            }
        }
    }
}

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const CYAN: &str = "\x1b[36m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RED: &str = "\x1b[31m";
const PLAIN: &str = "\x1b[0m";

/// The columns that a text takes, of which what only colours takes none.
fn columns_of(text: &str) -> usize {
    cells(text).map(|(_, width)| width).sum()
}

/// The characters, each with its columns.
fn cells(text: &str) -> impl Iterator<Item = (char, usize)> {
    let mut escaped = false;
    text.chars().map(move |c| {
        let width = match c {
            '\x1b' => 0,
            _ if escaped => 0,
            // From there on scripts are wide, but for symbols. One too many only makes a line shorter.
            '\u{1100}'..'\u{2000}' | '\u{2e80}'.. => 2,
            _ => 1,
        };
        escaped = c == '\x1b' || escaped && c != 'm';
        (c, width)
    })
}

/// A line, cut where it would not fit.
fn fitting(line: &str, columns: usize) -> String {
    if columns_of(line) <= columns {
        return line.to_owned();
    }
    let mut left = columns - 1;
    let mut cut = String::with_capacity(line.len());
    for (c, width) in cells(line) {
        // What colours is kept to the end, or the rest of the screen would have that colour.
        if width > left {
            left = 0;
        }
        if width <= left {
            cut.push(c);
            left -= width;
        }
    }
    cut + "…"
}

/// Parts side by side, on as many lines as it takes so that each fits. A `label` stands at
/// the left of the first, and nothing below it.
fn flow(label: &str, parts: &[String], between: &str, columns: usize) -> Vec<String> {
    let margin = match label {
        "" => 0,
        _ => LABEL,
    };
    let mut lines = vec![format!("{label:<margin$}")];
    let mut used = margin;
    for part in parts {
        let width = columns_of(part);
        let mut gap = between;
        if used == margin {
            gap = "";
        } else if used + columns_of(between) + width > columns {
            lines.push(" ".repeat(margin));
            (used, gap) = (margin, "");
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(gap);
            line.push_str(part);
            used += columns_of(gap) + width;
        }
    }
    lines
}

/// The newest values as a curve of `width` characters, as high as the highest.
pub(super) fn curve(values: &VecDeque<f64>, width: usize) -> String {
    const STEPS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let shown = values.iter().skip(values.len().saturating_sub(width));
    let top = values.iter().copied().fold(0.0, f64::max);
    let drawn: String = shown
        .map(|&value| match value {
            v if v <= 0.0 || top <= 0.0 => ' ',
            v => STEPS[((v / top * 8.0).ceil() as usize).clamp(1, 8) - 1],
        })
        .collect();
    format!("{drawn:>width$}")
}

/// How full something is.
pub(super) fn bar(part: f64, whole: f64, width: usize) -> String {
    let share = if whole > 0.0 {
        (part / whole).clamp(0.0, 1.0)
    } else {
        0.0
    };
    let full = (share * width as f64).round() as usize;
    let colour = match share {
        s if s >= 0.9 => RED,
        s if s >= 0.6 => YELLOW,
        _ => GREEN,
    };
    format!(
        "{colour}{}{PLAIN}{DIM}{}{PLAIN}",
        "█".repeat(full),
        "░".repeat(width - full)
    )
}

/// The screen, line by line; `size` is columns and rows.
pub(super) fn draw(
    rates: &Rates,
    history: &History,
    status: &Value,
    size: (usize, usize),
) -> Vec<String> {
    let (columns, rows) = (size.0.clamp(40, 200), size.1.max(10));
    let width = (columns.saturating_sub(36)).min(HISTORY);
    let mut lines = title(rates, status, columns);
    lines.push(String::new());
    lines.extend(curves(rates, history, width));
    lines.extend(bars(rates, status, (width / 2).clamp(8, 24), columns));
    lines.extend(cache_hits(rates, columns));
    // What is left of the screen is shared by the two tables.
    let room = rows.saturating_sub(lines.len() + 6);
    let of_nfs = rates
        .nfs
        .len()
        .min((room / 2).max(room.saturating_sub(rates.fuse.len())));
    let of_fuse = room.saturating_sub(of_nfs);
    for (title, list, most) in [
        ("FUSE operation", &rates.fuse, of_fuse),
        ("NFS operation", &rates.nfs, of_nfs),
    ] {
        lines.push(String::new());
        lines.extend(table(title, list, most));
    }
    lines.push(match &rates.last_error {
        Some(error) => format!("{RED}last error: {}{PLAIN}", quoting::plain(error)),
        None => format!("{DIM}q ends{PLAIN}"),
    });
    lines.iter().map(|line| fitting(line, columns)).collect()
}

/// What is mounted where, since when, and how the session is.
fn title(rates: &Rates, status: &Value, columns: usize) -> Vec<String> {
    let text = |value: &Value| quoting::plain(value.as_str().unwrap_or("?"));
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let up = now.saturating_sub(status["since"].as_u64().unwrap_or(now));
    let session = &status["session"];
    let state = text(&session["state"]);
    let colour = if state == "up" { GREEN } else { RED };
    let name = |key: &str| quoting::name(status[key].as_str().unwrap_or("?")).to_string();
    let mount = format!(
        "{BOLD}{}{PLAIN} on {BOLD}{}{PLAIN}",
        name("device"),
        name("mountpoint")
    );
    let times = format!("{DIM}{} · up {}{PLAIN}", &utc(now)[11..], age(up));
    let mut lines = flow("", &[mount, times], "   ", columns);
    let parts = [
        text(&status["server"]),
        format!("session {colour}{state}{PLAIN}"),
        format!(
            "lease {} s, {:.0} s ago",
            quoting::plain(&session["lease_s"].to_string()),
            session["idle_s"].as_f64().unwrap_or(0.0)
        ),
        format!("connections {}", rates.gauge("connections")),
        format!("reconnects {}", rates.reconnects),
        format!("recoveries {}", rates.recoveries),
        format!("slow {}", rates.slow),
    ];
    lines.extend(flow("", &parts, " · ", columns));
    lines
}

/// What was moved in the last intervals.
fn curves(rates: &Rates, history: &History, width: usize) -> impl Iterator<Item = String> {
    let per_second = |rate: f64| format!("{}/s", bytes(rate as u64));
    let rows = [
        ("read", &history.read, per_second(rates.read)),
        ("written", &history.written, per_second(rates.written)),
        (
            "round trips",
            &history.round_trips,
            format!("{}/s", whole(rates.round_trips)),
        ),
    ];
    rows.into_iter().map(move |(name, values, value)| {
        let curve = curve(values, width);
        format!("{name:<LABEL$}{CYAN}{curve}{PLAIN} {BOLD}{value:>14}{PLAIN}")
    })
}

/// What has a bound, and how full it is.
fn bars(rates: &Rates, status: &Value, width: usize, columns: usize) -> Vec<String> {
    let (window, limit) = (
        rates.gauge("window_bytes") as f64,
        status["write_window"]["limit"].as_f64().unwrap_or(0.0),
    );
    let (slots, of) = (
        rates.gauge("slots_in_use"),
        status["session"]["slots"].as_u64().unwrap_or(0),
    );
    let window = format!(
        "{:<LABEL$}{} {} of {}",
        "window",
        bar(window, limit, width),
        bytes(window.max(0.0) as u64),
        bytes(limit as u64)
    );
    let slots = format!("{} {slots} of {of}", bar(slots as f64, of as f64, width));
    let in_flight = format!(
        "{DIM}requests in flight {}, open files {}, inodes {}{PLAIN}",
        rates.gauge("fuse_in_flight"),
        rates.gauge("open_files"),
        rates.gauge("inodes"),
    );
    let mut lines = vec![window];
    lines.extend(flow("slots", &[slots, in_flight], "   ", columns));
    lines
}

fn cache_hits(rates: &Rates, columns: usize) -> Vec<String> {
    let caches: Vec<_> = rates
        .caches
        .iter()
        .map(|(name, _, ratio)| (quoting::plain(name), ratio))
        .map(|(name, ratio)| match ratio {
            Some(ratio) => format!("{name} {BOLD}{:.1} %{PLAIN}", 100.0 * ratio),
            None => format!("{DIM}{name} -{PLAIN}"),
        })
        .collect();
    flow("cache hits", &caches, "   ", columns)
}

/// The busiest operations, at most `most` of them, under their heading.
fn table(title: &str, list: &[Operation], most: usize) -> Vec<String> {
    let heading = format!(
        "{DIM}{title:<20}{:>10}{:>10}{:>10}{:>10}{:>9}{PLAIN}",
        "per s", "p50", "p99", "p99.9", "errors"
    );
    let rows = list.iter().take(most).map(|op| {
        let errors = if op.errors > 0 { RED } else { DIM };
        let latency = |of: fn(&Quantiles) -> f64| {
            let shown = op.latency.as_ref().map(of).map(micros);
            shown.unwrap_or_else(|| "-".to_owned())
        };
        format!(
            "{:<20}{BOLD}{:>10}{PLAIN}{:>10}{:>10}{:>10}{errors}{:>9}{PLAIN}",
            quoting::plain(&op.name),
            whole(op.per_second),
            latency(|all| all.p50_us),
            latency(|all| all.p99_us),
            latency(|all| all.p999_us),
            count(op.errors),
        )
    });
    std::iter::once(heading).chain(rows).collect()
}
