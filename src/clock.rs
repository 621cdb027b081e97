//! Timestamps and durations, parsed and formatted: RFC 3339, `3h12m`, `--since 10m`.
//!
//! Timestamps are Unix milliseconds, without leap seconds. Only [`now_millis`] reads a clock, and
//! only [`parse_timestamp`] uses a time zone, the user's. Nothing here measures elapsed time: the
//! wall clock can be set back.

use std::time::{Duration, SystemTime};

use crate::sys;

const SECOND: i64 = 1_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// The first moment of year 0 and the last of year 9999: what four digits can write.
const MOMENTS: std::ops::RangeInclusive<i64> = -62_167_219_200_000..=253_402_300_799_999;

/// Now, by the wall clock.
pub fn now_millis() -> i64 {
    let millis = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => millis(since),
        Err(before) => -millis(before.duration()),
    }
}

/// `2026-03-01T10:00:00.000Z`; moments outside the years 0 to 9999 become the nearest inside. RFC
/// 3339.
pub fn rfc3339(unix_millis: i64) -> String {
    let moment = unix_millis.clamp(*MOMENTS.start(), *MOMENTS.end());
    let Date { year, month, day } = Date::of(moment.div_euclid(DAY));
    let time = moment.rem_euclid(DAY);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        time / HOUR,
        time % HOUR / MINUTE,
        time % MINUTE / SECOND,
        time % SECOND
    )
}

/// The moment that an RFC 3339 date-time names; `None` if it is none.
///
/// Digits beyond milliseconds are cut off. A leap second, `:60`, counts as the first second of the
/// next minute, as Unix time has it. The zone must be there.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    let mut text = Reader(text);
    let date = text.date()?;
    text.one_of("Tt ")?;
    let time = text.clock()? + text.seconds()? + text.fraction()?;
    let east = match text.one_of("Zz+-")? {
        '+' => text.clock()?,
        '-' => -text.clock()?,
        _ => 0,
    };
    text.end()?;
    Some(date.days() * DAY + time - east)
}

/// One token, cut off after the second unit: `45s`, `14m`, `3h12m`, `3h`, `5d4h`, `5d`.
pub fn format_duration(span: Duration) -> String {
    let minutes = span.as_secs() / 60;
    let hours = minutes / 60;
    match (span.as_secs(), minutes, hours) {
        (seconds, 0, _) => format!("{seconds}s"),
        (_, minutes, 0) => format!("{minutes}m"),
        (_, _, ..24) => two_units(hours, "h", minutes % 60, "m"),
        _ => two_units(hours / 24, "d", hours % 24, "h"),
    }
}

fn two_units(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    match small {
        0 => format!("{large}{large_unit}"),
        _ => format!("{large}{large_unit}{small}{small_unit}"),
    }
}

/// What `90s`, `10m`, `2h`, `1d` or `1h30m` say: whole numbers, each with its unit, large units
/// first.
///
/// `None` for anything else, a bare number above all, and for more than `u64` holds in seconds.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0_u64;
    for (unit, unit_seconds) in [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)] {
        let Some((count, after)) = rest.split_once(unit) else {
            continue;
        };
        // `parse` alone would take a sign.
        if !count.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let part = count.parse::<u64>().ok()?.checked_mul(unit_seconds)?;
        seconds = seconds.checked_add(part)?;
        rest = after;
    }
    (rest.is_empty() && !text.is_empty()).then_some(Duration::from_secs(seconds))
}

/// Parses a time as users type it: a duration before now (see [`parse_duration`]), an RFC 3339
/// date-time, or a local date (`2026-03-01`) or date-time (`2026-03-01 10:00[:00]`, or with a `T`).
///
/// A date is its first second. A time that the change to summer time leaves out is moved by
/// mktime(3).
pub fn parse_timestamp(text: &str, now_millis: i64) -> Option<i64> {
    if let Some(ago) = parse_duration(text) {
        return now_millis.checked_sub(i64::try_from(ago.as_millis()).ok()?);
    }
    parse_rfc3339(text).or_else(|| local(text))
}

fn local(text: &str) -> Option<i64> {
    let mut text = Reader(text);
    let date = text.date()?;
    let mut time = 0;
    if text.end().is_none() {
        text.one_of("Tt ")?;
        time = text.clock()?;
        if text.end().is_none() {
            time += text.seconds()?;
            text.end()?;
        }
    }
    let unix_seconds = sys::unix_time(&sys::WallClock {
        year: i32::try_from(date.year).ok()?,
        month: u8::try_from(date.month).ok()?,
        day: u8::try_from(date.day).ok()?,
        hour: u8::try_from(time / HOUR).ok()?,
        minute: u8::try_from(time % HOUR / MINUTE).ok()?,
        second: u8::try_from(time % MINUTE / SECOND).ok()?,
    })?;
    unix_seconds.checked_mul(SECOND)
}

/// A day of the Gregorian calendar, extended backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Date {
    year: i64,
    month: i64,
    day: i64,
}

// Years are counted from March, so that the leap day is the last day of a year: then the days of
// 4, 100 and 400 years, and those before each month, are always the same.
const DAYS_IN_YEAR: i64 = 365;
const DAYS_IN_4_YEARS: i64 = 4 * DAYS_IN_YEAR + 1;
const DAYS_IN_CENTURY: i64 = 25 * DAYS_IN_4_YEARS - 1;
const DAYS_IN_400_YEARS: i64 = 4 * DAYS_IN_CENTURY + 1;
/// The days of a year before March, April, and so on to February.
const DAYS_BEFORE: [i64; 12] = [0, 31, 61, 92, 122, 153, 184, 214, 245, 275, 306, 337];
/// 1 January 1970, counted from 1 March of year 0.
const EPOCH: i64 = 719_468;

impl Date {
    /// The date so many days after 1 January 1970.
    fn of(days: i64) -> Date {
        let days = days + EPOCH;
        let (cycles, days) =
            (days.div_euclid(DAYS_IN_400_YEARS), days.rem_euclid(DAYS_IN_400_YEARS));
        // The leap day that only the last century, or year, of a cycle has still belongs to it.
        let centuries = (days / DAYS_IN_CENTURY).min(3);
        let days = days - centuries * DAYS_IN_CENTURY;
        let (leaps, days) = (days / DAYS_IN_4_YEARS, days % DAYS_IN_4_YEARS);
        let years = (days / DAYS_IN_YEAR).min(3);
        let days = days - years * DAYS_IN_YEAR;
        let months = DAYS_BEFORE.into_iter().zip(0_i64..);
        let (before, month) =
            months.take_while(|(before, _)| *before <= days).last().unwrap_or_default();
        Date {
            year: 400 * cycles + 100 * centuries + 4 * leaps + years + month / 10,
            month: (month + 2) % 12 + 1,
            day: days - before + 1,
        }
    }

    /// Days since 1 January 1970.
    fn days(self) -> i64 {
        let month = (self.month + 9) % 12;
        let year = self.year - month / 10;
        let before = usize::try_from(month).ok().and_then(|month| DAYS_BEFORE.get(month));
        let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
        year * DAYS_IN_YEAR + leap_days + before.unwrap_or(&0) + self.day - 1 - EPOCH
    }
}

/// What is left of a text that is read from the left. Times are in milliseconds.
struct Reader<'t>(&'t str);

impl Reader<'_> {
    /// `2026-03-01`, and a day that exists.
    fn date(&mut self) -> Option<Date> {
        let year = self.digits(4)?;
        self.one_of("-")?;
        let month = self.digits(2)?;
        self.one_of("-")?;
        let day = self.digits(2)?;
        let date = Date { year, month, day };
        (Date::of(date.days()) == date).then_some(date)
    }

    /// `10:00`
    fn clock(&mut self) -> Option<i64> {
        let hours = self.digits(2).filter(|hours| *hours < 24)?;
        self.one_of(":")?;
        let minutes = self.digits(2).filter(|minutes| *minutes < 60)?;
        Some(hours * HOUR + minutes * MINUTE)
    }

    /// `:00`, up to `:60`
    fn seconds(&mut self) -> Option<i64> {
        self.one_of(":")?;
        let seconds = self.digits(2).filter(|seconds| *seconds <= 60)?;
        Some(seconds * SECOND)
    }

    /// `.5`, or nothing.
    fn fraction(&mut self) -> Option<i64> {
        if self.one_of(".").is_none() {
            return Some(0);
        }
        let rest = self.0.trim_start_matches(|digit: char| digit.is_ascii_digit());
        let digits = self.0.strip_suffix(rest).filter(|digits| !digits.is_empty())?;
        self.0 = rest;
        let millis = digits.chars().chain("00".chars()).take(3).collect::<String>();
        millis.parse().ok()
    }

    fn digits(&mut self, count: usize) -> Option<i64> {
        let (digits, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        // `parse` alone would take a sign.
        let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse().ok().filter(|_| all_digits)
    }

    fn one_of(&mut self, choices: &str) -> Option<char> {
        let first = self.0.chars().next().filter(|first| choices.contains(*first))?;
        self.0 = self.0.strip_prefix(first)?;
        Some(first)
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN: i64 = 1_772_359_200_000; // 2026-03-01T10:00:00Z

    #[test]
    fn moments_are_written_in_utc() {
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (TEN, "2026-03-01T10:00:00.000Z"),
            (TEN + 12 * HOUR + 34 * MINUTE + 56_789, "2026-03-01T22:34:56.789Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (-2_203_891_200_001, "1900-02-28T23:59:59.999Z"),
            (-2_203_891_200_000, "1900-03-01T00:00:00.000Z"),
            (*MOMENTS.start(), "0000-01-01T00:00:00.000Z"),
            (*MOMENTS.start() - 1, "0000-01-01T00:00:00.000Z"),
            (i64::MIN, "0000-01-01T00:00:00.000Z"),
            (*MOMENTS.end(), "9999-12-31T23:59:59.999Z"),
            (*MOMENTS.end() + 1, "9999-12-31T23:59:59.999Z"),
            (i64::MAX, "9999-12-31T23:59:59.999Z"),
        ];
        for (millis, text) in cases {
            assert_eq!(rfc3339(millis), text);
        }
    }

    #[test]
    fn every_day_of_ten_thousand_years_follows_the_one_before() {
        let (mut year, mut month, mut day) = (0, 1, 1);
        for days in *MOMENTS.start() / DAY..=*MOMENTS.end() / DAY {
            let date = Date { year, month, day };
            assert_eq!((Date::of(days), date.days()), (date, days));
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 if leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            (year, month, day) = match (month, day) {
                (12, 31) => (year + 1, 1, 1),
                _ if day == length => (year, month + 1, 1),
                _ => (year, month, day + 1),
            };
        }
        assert_eq!((year, month, day), (10_000, 1, 1));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let step = 37 * DAY + 5 * HOUR + 41 * MINUTE + 13 * SECOND + 7;
        let mut millis = *MOMENTS.start();
        while millis <= *MOMENTS.end() {
            assert_eq!(parse_rfc3339(&rfc3339(millis)), Some(millis));
            millis += step;
        }
    }

    #[test]
    fn rfc_3339_is_read_in_all_its_forms() {
        let cases = [
            ("2026-03-01T10:00:00Z", TEN),
            ("2026-03-01t10:00:00z", TEN),
            ("2026-03-01 10:00:00Z", TEN),
            ("2026-03-01T10:00:00.5Z", TEN + 500),
            ("2026-03-01T10:00:00.05Z", TEN + 50),
            ("2026-03-01T10:00:00.0009999999999999999999999Z", TEN),
            ("2026-03-01T10:00:00.123456789Z", TEN + 123),
            ("2026-03-01T11:00:00+01:00", TEN),
            ("2026-03-01T00:00:00-10:00", TEN),
            ("2026-02-28T22:30:00-11:30", TEN),
            ("2026-03-02T09:59:00.000+23:59", TEN),
            ("2026-03-01T10:00:00-00:00", TEN),
            ("2026-03-01T09:59:60Z", TEN),
            ("2026-03-01T09:59:60.25Z", TEN + 250),
            ("1969-12-31T23:59:59.25Z", -750),
            ("2024-02-29T00:00:00Z", 1_709_164_800_000),
            ("0000-01-01T00:00:00+00:01", *MOMENTS.start() - MINUTE),
        ];
        for (text, millis) in cases {
            assert_eq!(parse_rfc3339(text), Some(millis), "{text}");
        }
    }

    #[test]
    fn what_is_no_rfc_3339_is_refused() {
        let refused = concat!(
            "Z|2026|2026-03-01|2026-03-01T10:00Z|2026-03-01T10:00:00|2026-03-01T10:00:00 Z",
            "| 2026-03-01T10:00:00Z|2026-03-01T10:00:00Z |2026-03-01T10:00:00.Z",
            "|2026-03-01T10:00:00,5Z|2026-03-01T10:00:61Z|2026-03-01T10:60:00Z",
            "|2026-03-01T24:00:00Z|2026-03-01_10:00:00Z|2026-03-01T10:00:00+1:00",
            "|2026-03-01T10:00:00+0100|2026-03-01T10:00:00+24:00|2026-03-01T10:00:00+01:60",
            "|2026-03-01T10:00:00+01|2026-03-01T10:00:00UTC|2026-00-01T10:00:00Z|2026-13-01T10:00:00Z",
            "|2026-03-00T10:00:00Z|2026-03-32T10:00:00Z|2026-04-31T10:00:00Z",
            "|2026-02-29T10:00:00Z|2024-02-30T10:00:00Z",
            "|1900-02-29T10:00:00Z|2026-3-01T10:00:00Z|+026-03-01T10:00:00Z|2026-+3-01T10:00:00Z",
            "|-026-03-01T10:00:00Z|12026-03-01T10:00:00Z|2026-03-01T1é:00:00Z|２026-03-01T10:00:00Z",
        );
        for text in refused.split('|').chain([""]) {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }

    #[test]
    fn ages_are_one_token() {
        let cases = [
            (0, "0s"),
            (45, "45s"),
            (59, "59s"),
            (60, "1m"),
            (899, "14m"),
            (3_599, "59m"),
            (3_600, "1h"),
            (3_659, "1h"),
            (3_660, "1h1m"),
            (11_520, "3h12m"),
            (86_399, "23h59m"),
            (86_400, "1d"),
            (89_999, "1d"),
            (90_000, "1d1h"),
            (446_400, "5d4h"),
            (432_000, "5d"),
            (u64::MAX, "213503982334601d7h"),
        ];
        for (seconds, text) in cases {
            assert_eq!(format_duration(Duration::from_secs(seconds)), text);
        }
        assert_eq!(format_duration(Duration::from_millis(59_999)), "59s");
    }

    #[test]
    fn durations_need_units_in_order() {
        let cases = [
            ("90s", 90),
            ("10m", 600),
            ("2h", 7_200),
            ("1d", 86_400),
            ("1h30m", 5_400),
            ("0s", 0),
            ("1d2h3m4s", 93_784),
            ("1d1s", 86_401),
            ("007m", 420),
            ("18446744073709551615s", u64::MAX),
        ];
        for (text, seconds) in cases {
            assert_eq!(parse_duration(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        let refused = concat!(
            "10|m|10 m| 10m|10m |+10m|-10m|1.5h|10M|10min|30m1h|1h1h|1hm|1h30|10ms|1w|١m|1d d",
            "|18446744073709551616s|307445734561825861m|18446744073709551615s1s",
            "|213503982334601d25h",
        );
        for text in refused.split('|').chain([""]) {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn a_moment_is_a_span_ago_or_a_date_time() {
        assert_eq!(parse_timestamp("10m", TEN), Some(TEN - 10 * MINUTE));
        assert_eq!(parse_timestamp("0s", i64::MIN), Some(i64::MIN));
        assert_eq!(parse_timestamp("1s", i64::MIN), None);
        assert_eq!(parse_timestamp("9223372036854775s", 0), Some(-9_223_372_036_854_775_000));
        assert_eq!(parse_timestamp("9223372036854776s", 0), None);
        assert_eq!(parse_timestamp("213503982334601d", TEN), None);
        assert_eq!(parse_timestamp("2026-03-01T11:00:00+01:00", 0), Some(TEN));
        for text in ["", "10", "yesterday", "10:00", "2026-02-29", "2026-03-01 ", "2026-03-01 10"] {
            assert_eq!(parse_timestamp(text, TEN), None, "{text}");
        }
        for text in ["2026-03-01 10:00:", "2026-03-01 10:00:61", "2026-03-01 10:00:00.5"] {
            assert_eq!(parse_timestamp(text, TEN), None, "{text}");
        }
    }

    #[test]
    fn a_moment_without_a_zone_is_by_the_users_clock() {
        for (text, hour, minute, second) in [
            ("2026-03-01 10:00", 10, 0, 0),
            ("2026-03-01T10:20", 10, 20, 0),
            ("2026-03-01 10:20:30", 10, 20, 30),
        ] {
            let millis = parse_timestamp(text, 0).unwrap();
            // No zone is further than a day from UTC.
            assert!((millis - TEN).abs() < DAY, "{text}");
            let shown = sys::local_time(millis / SECOND);
            assert_eq!((shown.hour, shown.minute, shown.second), (hour, minute, second));
        }
        assert_eq!(parse_timestamp("2026-03-01", 0), parse_timestamp("2026-03-01 00:00:00", 0));
        // Years that some systems cannot express end in `None` at worst.
        for text in ["0000-01-01", "9999-12-31 23:59:60"] {
            drop(parse_timestamp(text, 0).map(rfc3339));
        }
    }

    #[test]
    fn now_is_after_this_was_written() {
        assert!(now_millis() > TEN - 365 * DAY);
    }
}
