//! Prometheus' text format (version 0.0.4) as it is written: all samples of a name stand
//! together under one heading, whichever mounts they are of.

use std::fmt::Write;

use super::histogram::Counts;

/// The lowest bucket of a histogram ends at 2^14 ns = 16 us.
const FIRST: u32 = 14;
/// The highest but infinity, at 2^36 ns = 69 s.
const LAST: u32 = 36;

/// What a metric is to Prometheus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// The metrics of several mounts, in the order in which their names came.
#[derive(Debug, Default)]
pub(super) struct Page {
    families: Vec<Family>,
}

#[derive(Debug)]
struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    samples: String,
}

impl Page {
    /// Samples of the metric `efs_fuse_NAME` from now on.
    pub(super) fn family(
        &mut self,
        name: &'static str,
        kind: Kind,
        help: &'static str,
    ) -> Samples<'_> {
        let found = self.families.iter().position(|family| family.name == name);
        let at = found.unwrap_or_else(|| {
            self.families.push(Family {
                name,
                kind,
                help,
                samples: String::new(),
            });
            self.families.len() - 1
        });
        let family = &mut self.families[at];
        Samples {
            name,
            text: &mut family.samples,
        }
    }

    /// The whole text; a name without a sample is left out.
    pub(super) fn text(self) -> String {
        let mut text = String::new();
        for family in self.families {
            if family.samples.is_empty() {
                continue;
            }
            let kind = match family.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            let (name, help) = (family.name, family.help);
            // Writing to a String does not fail.
            let _ = write!(
                text,
                "# HELP efs_fuse_{name} {help}\n# TYPE efs_fuse_{name} {kind}\n{}",
                family.samples
            );
        }
        text
    }
}

/// Where the samples of one metric go.
pub(super) struct Samples<'a> {
    name: &'static str,
    text: &'a mut String,
}

impl Samples<'_> {
    /// One sample with these labels.
    pub(super) fn add(&mut self, labels: &[(&str, &str)], value: f64) {
        self.line("", labels, value);
    }

    /// The samples of a histogram. It has a bucket for each power of two nanoseconds, which
    /// are borders of our own finer buckets, so the counts are exact; the sum is within
    /// 3.2 % ([`Counts::sum_s`]).
    pub(super) fn histogram(&mut self, labels: &[(&str, &str)], counts: &Counts) {
        let total = counts.total();
        let mut bucket = |le: &str, below: u64| {
            let labels = [labels, &[("le", le)]].concat();
            self.line("_bucket", &labels, below as f64);
        };
        for exponent in FIRST..=LAST {
            let le = (1u64 << exponent) as f64 / 1e9;
            bucket(&le.to_string(), counts.below(exponent));
        }
        bucket("+Inf", total);
        self.line("_sum", labels, counts.sum_s());
        self.line("_count", labels, total as f64);
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: f64) {
        let _ = write!(self.text, "efs_fuse_{}{suffix}", self.name);
        for (index, (key, text)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{before}{key}=\"{}\"", escaped(text));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{end} {value}");
    }
}

/// A label's value: paths may hold anything.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_samples_of_a_name_stand_together_under_one_heading() {
        let mut page = Page::default();
        for mount in ["/a", "/b"] {
            let labels = [("mountpoint", mount)];
            page.family("up", Kind::Gauge, "Up.").add(&labels, 1.0);
            page.family("x_total", Kind::Counter, "X.")
                .add(&labels, 2.5);
        }
        let _ = page.family("none", Kind::Gauge, "Never.");
        assert_eq!(
            page.text(),
            "# HELP efs_fuse_up Up.\n# TYPE efs_fuse_up gauge\n\
             efs_fuse_up{mountpoint=\"/a\"} 1\nefs_fuse_up{mountpoint=\"/b\"} 1\n\
             # HELP efs_fuse_x_total X.\n# TYPE efs_fuse_x_total counter\n\
             efs_fuse_x_total{mountpoint=\"/a\"} 2.5\nefs_fuse_x_total{mountpoint=\"/b\"} 2.5\n"
        );
    }

    #[test]
    fn a_path_cannot_break_a_label() {
        let mut page = Page::default();
        page.family("up", Kind::Gauge, "Up.")
            .add(&[("mountpoint", "/a \"b\"\n\\")], 1.0);
        assert!(page.text().contains(r#"mountpoint="/a \"b\"\n\\""#));
    }
}
