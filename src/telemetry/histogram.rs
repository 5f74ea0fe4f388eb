//! A latency histogram that any number of threads fill without a lock.
//!
//! The buckets are log-linear: below 16 ns one bucket per nanosecond, above
//! that every power of two is cut into 16 equal parts. A bucket is therefore
//! never wider than 1/16 of its lower bound, and the middle of a bucket is
//! within 1/32 (3.2 %) of every value in it. The range ends at about 18
//! minutes; what takes longer is counted in the last bucket.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde_json::Value;

/// log2 of the number of parts a power of two is cut into.
const SUB_BITS: u32 = 4;
const SUB: usize = 1 << SUB_BITS;
/// Values of 2^MAX_BITS ns and more share the last bucket.
const MAX_BITS: u32 = 40;
/// One linear block for values below `SUB`, then one block per power of two.
const BUCKETS: usize = (MAX_BITS - SUB_BITS + 1) as usize * SUB;

/// A fixed set of buckets, 4.6 KiB, that never allocates after its creation.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

/// What a histogram says: the latencies below which the given share of the
/// events stayed, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Quantiles {
    /// Half of the events were faster.
    pub p50_us: f64,
    /// 99 % were faster.
    pub p99_us: f64,
    /// 99.9 % were faster.
    pub p999_us: f64,
}

impl Histogram {
    /// Counts one event.
    pub fn record(&self, elapsed: Duration) {
        let ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(ns)].fetch_add(1, Relaxed);
    }

    /// The number of recorded events.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Relaxed)).sum()
    }

    /// The events so far. Those recorded meanwhile may or may not be in it.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for (count, bucket) in counts.0.iter_mut().zip(&self.buckets) {
            *count = bucket.load(Relaxed);
        }
        counts
    }

    /// See [`Counts::quantiles_ns`].
    pub fn quantiles_ns<const N: usize>(&self, wanted: [f64; N]) -> [f64; N] {
        // One copy, so that all quantiles speak of the same events.
        self.counts().quantiles_ns(wanted)
    }

    /// The median and the two tails that are shown to users.
    pub fn quantiles(&self) -> Quantiles {
        self.counts().quantiles()
    }

    pub(super) fn reset(&self) {
        for bucket in &self.buckets {
            bucket.store(0, Relaxed);
        }
    }
}

/// A copy of a histogram: plain numbers that can be added up and subtracted.
#[derive(Debug, Clone)]
pub struct Counts(Box<[u64; BUCKETS]>);

impl Default for Counts {
    fn default() -> Self {
        Self(Box::new([0; BUCKETS]))
    }
}

impl Counts {
    /// The number of events.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The sum of all latencies in seconds, each taken for the middle of its
    /// bucket: within 3.2 %.
    pub fn sum_s(&self) -> f64 {
        let ns = self.0.iter().enumerate().filter(|(_, count)| **count > 0);
        ns.map(|(index, &count)| middle_of(index) * count as f64)
            .sum::<f64>()
            / 1e9
    }

    /// The number of events that took less than 2^`exponent` nanoseconds: at
    /// powers of two the buckets have a border, so this is exact.
    pub fn below(&self, exponent: u32) -> u64 {
        let end = bucket_of(1 << exponent.min(MAX_BITS - 1));
        self.0[..end].iter().sum()
    }

    /// The buckets that are not empty: number and count.
    pub fn sparse(&self) -> Vec<(usize, u64)> {
        let counts = self.0.iter().copied().enumerate();
        counts.filter(|(_, count)| *count > 0).collect()
    }

    /// The inverse of [`sparse`](Self::sparse); what is out of range counts as
    /// longer than everything.
    pub fn from_sparse(sparse: impl IntoIterator<Item = (usize, u64)>) -> Self {
        let mut counts = Self::default();
        for (index, count) in sparse {
            let sum = &mut counts.0[index.min(BUCKETS - 1)];
            *sum = sum.saturating_add(count);
        }
        counts
    }

    /// The same from JSON, `[[bucket, count], ...]`, which may be anybody's: what is no such
    /// pair is left out, and no sum of what is kept overflows.
    pub fn from_json(sparse: &[Value]) -> Self {
        let mut counts = Self::from_sparse(sparse.iter().filter_map(|pair| {
            let index = usize::try_from(pair[0].as_u64()?).ok()?;
            Some((index, pair[1].as_u64()?))
        }));
        for count in counts.0.iter_mut() {
            *count = (*count).min(u64::MAX / BUCKETS as u64);
        }
        counts
    }

    /// The events since `earlier`, an older copy of the same histogram. After a
    /// reset in between, all there are.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let reset = self.0.iter().zip(&*earlier.0).any(|(now, then)| now < then);
        if reset {
            return self.clone();
        }
        let mut rest = self.clone();
        for (now, then) in rest.0.iter_mut().zip(&*earlier.0) {
            *now -= then;
        }
        rest
    }

    /// The latencies below which the shares `wanted` (ascending, 0 to 1) of
    /// the events stayed, in nanoseconds; zeros if there were no events.
    pub fn quantiles_ns<const N: usize>(&self, wanted: [f64; N]) -> [f64; N] {
        let (counts, total) = (&self.0, self.total());
        let mut found = [0.0; N];
        if total == 0 {
            return found;
        }
        let (mut seen, mut next) = (0u64, 0);
        for (index, count) in counts.iter().enumerate() {
            seen += count;
            // The rank of quantile q is ceil(q * total), at least the first event.
            while next < N && seen >= ((wanted[next] * total as f64).ceil() as u64).clamp(1, total)
            {
                found[next] = middle_of(index);
                next += 1;
            }
        }
        found
    }

    /// The median and the two tails that are shown to users.
    pub fn quantiles(&self) -> Quantiles {
        let [p50, p99, p999] = self
            .quantiles_ns([0.5, 0.99, 0.999])
            .map(|ns| (ns / 100.0).round() / 10.0);
        Quantiles {
            p50_us: p50,
            p99_us: p99,
            p999_us: p999,
        }
    }
}

fn bucket_of(ns: u64) -> usize {
    if ns < SUB as u64 {
        return ns as usize;
    }
    let exponent = ns.ilog2();
    if exponent >= MAX_BITS {
        return BUCKETS - 1;
    }
    // The SUB_BITS bits that follow the leading one choose the part.
    let part = (ns >> (exponent - SUB_BITS)) as usize - SUB;
    (exponent - SUB_BITS + 1) as usize * SUB + part
}

/// The middle of a bucket, in nanoseconds.
fn middle_of(index: usize) -> f64 {
    let (block, part) = (index / SUB, index % SUB);
    if block == 0 {
        return part as f64;
    }
    let width = (1u64 << (block - 1)) as f64;
    let low = (SUB + part) as f64 * width;
    low + (width - 1.0) / 2.0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn counts_that_somebody_made_up_overflow_nowhere() {
        let pairs = json!([
            [0, u64::MAX],
            [0, u64::MAX],
            [7, 3],
            [1u64 << 60, u64::MAX],
            [1],
            "x",
            [2, -1]
        ]);
        let counts = Counts::from_json(pairs.as_array().expect("a list"));
        assert!(counts.total() > u64::MAX / 1000);
        assert_eq!(counts.below(3) - counts.0[0], 3);
    }

    #[test]
    fn every_value_is_within_one_32nd_of_the_middle_of_its_bucket() {
        let mut value = 1u64;
        while value < 1 << MAX_BITS {
            for probe in [value, value + value / 3, value * 2 - 1] {
                let middle = middle_of(bucket_of(probe));
                let error = (middle - probe as f64).abs() / probe as f64;
                assert!(
                    error <= 1.0 / 32.0,
                    "{probe} ns shown as {middle}, error {error}"
                );
            }
            value *= 2;
        }
    }

    #[test]
    fn buckets_are_in_order_and_none_is_out_of_range() {
        let mut last = 0;
        let mut value = 0u64;
        while value < 1 << 41 {
            let bucket = bucket_of(value);
            assert!(bucket >= last && bucket < BUCKETS, "{value} in {bucket}");
            last = bucket;
            value += 1 + value / 40;
        }
        assert_eq!(bucket_of((1 << MAX_BITS) - 1), BUCKETS - 1);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_of_a_known_distribution_are_within_four_percent() {
        let histogram = Histogram::default();
        for us in 1..=10_000 {
            histogram.record(Duration::from_micros(us));
        }
        let shown = histogram.quantiles();
        for (shown, exact) in [
            (shown.p50_us, 5_000.0),
            (shown.p99_us, 9_900.0),
            (shown.p999_us, 9_990.0),
        ] {
            let error = (shown - exact).abs() / exact;
            assert!(error < 0.04, "{exact} us shown as {shown}");
        }
        assert_eq!(histogram.count(), 10_000);
    }

    #[test]
    fn one_slow_event_among_a_hundred_is_seen_in_p99_9_but_not_in_p99() {
        let histogram = Histogram::default();
        for _ in 0..99 {
            histogram.record(Duration::from_micros(10));
        }
        histogram.record(Duration::from_secs(1));
        let shown = histogram.quantiles();
        assert!(shown.p99_us < 11.0, "{shown:?}");
        assert!(shown.p999_us > 900_000.0, "{shown:?}");
    }

    #[test]
    fn an_empty_histogram_says_zero_and_an_endless_event_is_counted() {
        let histogram = Histogram::default();
        assert_eq!(histogram.quantiles(), Quantiles::default());
        histogram.record(Duration::MAX);
        assert_eq!(histogram.count(), 1);
        assert!(histogram.quantiles().p50_us > 1e9);
        histogram.reset();
        assert_eq!(histogram.count(), 0);
    }

    #[test]
    fn powers_of_two_are_borders_and_the_sum_is_close() {
        let histogram = Histogram::default();
        for ns in [(1 << 14) - 1, 1 << 14, (1 << 15) - 1, 1 << 15, 3 << 15] {
            histogram.record(Duration::from_nanos(ns));
        }
        let counts = histogram.counts();
        assert_eq!([14, 15, 16, 17].map(|e| counts.below(e)), [1, 3, 4, 5]);
        assert_eq!((counts.below(63), counts.total()), (5, 5));
        let exact = (2 * (1 << 14) + 2 * (1 << 15) + (3 << 15) - 2) as f64 / 1e9;
        assert!((counts.sum_s() / exact - 1.0).abs() < 0.032, "{counts:?}");
    }

    #[test]
    fn two_copies_tell_what_happened_between_them_also_over_a_reset() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_millis(1));
        let before = histogram.counts();
        histogram.record(Duration::from_millis(9));
        let between = histogram.counts().since(&before);
        assert_eq!(between.total(), 1);
        assert!(between.quantiles().p50_us > 8_500.0);
        let carried = Counts::from_sparse(between.sparse());
        assert_eq!(carried.sparse(), between.sparse());
        histogram.reset();
        histogram.record(Duration::from_millis(2));
        assert_eq!(histogram.counts().since(&before).total(), 1);
        assert_eq!(Counts::from_sparse([(usize::MAX, 3)]).total(), 3);
    }
}
