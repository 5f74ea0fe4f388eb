//! Numbers and tables for people.

/// A count with its thousands set apart.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the largest binary unit that leaves a number of at least one.
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut amount = n as f64;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{n} B")
    } else {
        format!("{amount:.1} {}", UNITS[unit])
    }
}

/// A latency given in microseconds.
pub(super) fn micros(us: f64) -> String {
    match us {
        us if us < 1_000.0 => format!("{us:.0} us"),
        us if us < 1_000_000.0 => format!("{:.1} ms", us / 1_000.0),
        us => format!("{:.1} s", us / 1_000_000.0),
    }
}

/// A time that has passed, coarser the longer it is.
pub(super) fn age(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours) {
        (0, 0) if minutes == 0 => format!("{seconds} s"),
        (0, 0) => format!("{minutes} min"),
        (0, _) => format!("{hours} h {minutes:02} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// Columns as wide as their widest cell, the first to the left, the others to
/// the right.
pub(super) fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    aligned(head, rows, |column| column > 0)
}

/// The same, all to the left: for words.
pub(super) fn list(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    aligned(head, rows, |_| false)
}

fn aligned(
    head: &[&str],
    rows: impl Iterator<Item = Vec<String>>,
    to_the_right: impl Fn(usize) -> bool,
) -> String {
    let mut lines = vec![head.iter().map(|&cell| cell.to_owned()).collect::<Vec<_>>()];
    lines.extend(rows);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, width))| match to_the_right(column) {
            true => format!("{cell:>width$}"),
            false => format!("{cell:<width$}"),
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(count(0), "0");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!(micros(12.4), "12 us");
        assert_eq!(micros(2_500.0), "2.5 ms");
        assert_eq!(micros(3_000_000.0), "3.0 s");
    }

    #[test]
    fn ages_are_told_in_one_or_two_units() {
        assert_eq!(age(59), "59 s");
        assert_eq!(age(3599), "59 min");
        assert_eq!(age(3660), "1 h 01 min");
        assert_eq!(age(90_000), "1 d 1 h");
    }

    #[test]
    fn words_stand_to_the_left_and_no_line_ends_with_blanks() {
        let rows = [vec!["a".to_owned(), "up".to_owned()]];
        assert_eq!(
            list(&["mount", "state"], rows.into_iter()),
            "mount  state\na      up\n"
        );
    }

    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["a".to_owned(), "1".to_owned()],
            vec!["bcd".to_owned(), "1000".to_owned()],
        ];
        assert_eq!(
            table(&["x", "n"], rows.into_iter()),
            "x       n\na       1\nbcd  1000\n"
        );
    }
}
