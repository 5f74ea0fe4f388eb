//! The time of day as signatures and certificates write it.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::telemetry::log;

/// A second in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Utc(pub u64);

impl Utc {
    /// Now, by this machine's clock.
    pub fn now() -> Self {
        Self(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
        )
    }

    /// `seconds` later, or earlier if negative; not before 1970.
    pub fn shifted(self, seconds: i64) -> Self {
        Self(self.0.saturating_add_signed(seconds))
    }

    /// From an HTTP date, `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 section 5.6.7).
    pub fn from_http(text: &str) -> Option<Self> {
        const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
        let mut words = text.split_once(", ")?.1.split(' ');
        let day: u64 = words.next()?.parse().ok()?;
        let month = words.next().filter(|month| month.len() == 3)?;
        let month = MONTHS.find(month).filter(|at| at % 3 == 0)? as u64 / 3 + 1;
        let year: u64 = words.next()?.parse().ok()?;
        let mut clock = words.next()?.split(':').map(str::parse::<u64>);
        let mut part = |limit| clock.next()?.ok().filter(|part| *part < limit);
        let (hour, minute, second) = (part(24)?, part(60)?, part(61)?);
        if !(1970..=9999).contains(&year) || !(1..=31).contains(&day) || words.next()? != "GMT" {
            return None;
        }
        // Days from civil, the years beginning in March.
        let (y, m) = if month > 2 {
            (year, month - 3)
        } else {
            (year - 1, month + 9)
        };
        let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
        Some(Self(days * 86_400 + hour * 3600 + minute * 60 + second))
    }

    /// `YYYYMMDDTHHMMSSZ`, as `X-Amz-Date` has it.
    pub fn basic(self) -> String {
        log::utc(self.0).replace(['-', ':'], "")
    }

    /// `YYYYMMDD`
    pub fn date(self) -> String {
        self.basic()[..8].to_owned()
    }

    /// `YYMMDDHHMMSSZ`, as UTCTime has it (RFC 5280 section 4.1.2.5.1: good
    /// until 2049).
    pub fn utc_time(self) -> String {
        self.basic()[2..].replace('T', "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_http_date_is_read() {
        let read = |text| Utc::from_http(text).map(|utc| utc.0);
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(read("Sat, 01 Jan 2000 12:00:00 GMT"), Some(946_728_000));
        assert_eq!(read("Thu, 29 Feb 2024 00:00:00 GMT"), Some(1_709_164_800));
        for bad in [
            "",
            "Sun, 06 Nov 1994",
            "Sun, 06 Xyz 1994 08:49:37 GMT",
            "Sun, 06 ovD 1994 08:49:37 GMT",
            "Sun, 6 Nov 1994 25:49:37 GMT",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_time_is_written_in_every_form() {
        let noon = Utc(946_728_000);
        assert_eq!(noon.basic(), "20000101T120000Z");
        assert_eq!(noon.date(), "20000101");
        assert_eq!(noon.shifted(-900).utc_time(), "000101114500Z");
        assert_eq!(noon.shifted(3 * 3600).utc_time(), "000101150000Z");
    }
}
