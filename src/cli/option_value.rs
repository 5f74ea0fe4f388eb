//! How the values of options are written: numbers, sizes, seconds. Errors say
//! what was expected, for the end of an error line.

use std::fmt::Display;
use std::time::Duration;

use crate::disk_cache::Amount;

/// A hundred years. Longer is a mistake, and would overflow clocks.
const MAX_SECONDS: u64 = 100 * 365 * 86_400;

/// A decimal number within `min..=max`. No sign, no spaces.
pub(super) fn number<T>(text: &str, min: T, max: T) -> Result<T, String>
where
    T: TryFrom<u64> + PartialOrd + Display,
{
    let expected = || format!("expected a number from {min} to {max}");
    digits(text)
        .and_then(|number| T::try_from(number).ok())
        .filter(|number| (&min..=&max).contains(&number))
        .ok_or_else(expected)
}

/// Bytes within `min..=max`, with an optional k, m or g (powers of 1024).
pub(super) fn size(text: &str, min: u64, max: u64) -> Result<u64, String> {
    let (number, unit) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1 << 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    digits(number)
        .and_then(|number| number.checked_mul(unit))
        .filter(|bytes| (min..=max).contains(bytes))
        .ok_or_else(|| format!("expected bytes from {min} to {max}, with k, m or g if you like"))
}

/// Bytes as in [`size`], or hundredths of a disk: from 1% to 100%.
pub(super) fn amount(text: &str) -> Result<Amount, String> {
    let amount = match text.strip_suffix('%') {
        Some(percent) => number(percent, 1, 100).map(Amount::Percent),
        None => size(text, 1 << 20, 1 << 50).map(Amount::Bytes),
    };
    amount.map_err(|_| {
        "expected bytes, at least 1m, with k, m or g if you like; or 1% to 100% of the disk"
            .to_owned()
    })
}

/// Whole seconds, at least `min`.
pub(super) fn seconds(text: &str, min: u64) -> Result<Duration, String> {
    match digits(text) {
        Some(seconds) if (min..=MAX_SECONDS).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ if min == 0 => Err("expected seconds".to_owned()),
        _ => Err(format!("expected seconds, at least {min}")),
    }
}

/// `u64::from_str` would take a plus sign.
fn digits(text: &str) -> Option<u64> {
    text.bytes()
        .all(|c| c.is_ascii_digit())
        .then(|| text.parse().ok())?
}

/// How many characters must be added, removed, replaced or swapped with their
/// neighbour to make one word of the other.
pub(super) fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (
        one.chars().take(64).collect(),
        other.chars().take(64).collect(),
    );
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=other.len()).collect();
    for i in 1..=one.len() {
        let mut row = vec![i];
        for j in 1..=other.len() {
            let replaced = last[j - 1] + usize::from(one[i - 1] != other[j - 1]);
            let mut least = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1] {
                least = least.min(before[j - 2] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_digits_within_their_limits() {
        assert_eq!(number("2049", 1, u16::MAX), Ok(2049));
        for bad in [
            "",
            "0",
            "65536",
            "-1",
            "+1",
            "0x10",
            "1 ",
            "99999999999999999999",
            "1.5",
        ] {
            assert!(number(bad, 1, u16::MAX).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_have_units_of_1024() {
        assert_eq!(size("0", 0, 1 << 40), Ok(0));
        assert_eq!(size("64m", 0, 1 << 40), Ok(64 << 20));
        assert_eq!(size("1K", 0, 1 << 40), Ok(1024));
        assert_eq!(size("2g", 0, 1 << 40), Ok(2 << 30));
        for bad in ["", "k", "1kb", "-1k", "1.5m", "9999999999999g", "1t", "é"] {
            assert!(size(bad, 0, 1 << 40).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_amount_is_bytes_or_a_part_of_the_disk() {
        assert_eq!(amount("2g"), Ok(Amount::Bytes(2 << 30)));
        assert_eq!(amount("10%"), Ok(Amount::Percent(10)));
        for bad in ["", "%", "0%", "101%", "1k", "-5%", "1.5g", "5 %"] {
            assert!(amount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn seconds_have_a_least_value_and_an_end() {
        assert_eq!(seconds("0", 0), Ok(Duration::ZERO));
        assert!(seconds("0", 1).is_err_and(|why| why.contains("at least 1")));
        assert!(seconds("18446744073709551615", 0).is_err());
        assert!(seconds("1s", 0).is_err());
    }

    #[test]
    fn distance_counts_typing_mistakes() {
        assert_eq!(distance("rsize", "rsize"), 0);
        assert_eq!(distance("rszie", "rsize"), 1);
        assert_eq!(distance("rsiz", "rsize"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
