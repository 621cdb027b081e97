//! Timestamps and durations, parsed and formatted: RFC 3339, `3h12m`, `--since yesterday`.
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

/// From the first millisecond of year 0 to the last of year 9999: the years with four digits.
const TIMESTAMPS: std::ops::RangeInclusive<i64> = -62_167_219_200_000..=253_402_300_799_999;

/// Returns the time of the wall clock.
pub fn now_millis() -> i64 {
    let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => millis(since),
        Err(before) => -millis(before.duration()),
    }
}

/// Formats a timestamp as in RFC 3339: `2026-03-01T10:00:00.000Z`. One before year 0 or after year
/// 9999 becomes the nearest one between.
pub fn rfc3339(unix_millis: i64) -> String {
    let millis = unix_millis.clamp(*TIMESTAMPS.start(), *TIMESTAMPS.end());
    let Date { year, month, day } = Date::of(millis.div_euclid(DAY));
    let time = millis.rem_euclid(DAY);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        time / HOUR,
        time % HOUR / MINUTE,
        time % MINUTE / SECOND,
        time % SECOND
    )
}

/// Parses an RFC 3339 date-time.
///
/// Digits beyond milliseconds are dropped. A leap second, `:60`, counts as the first second of the
/// next minute, as in Unix time. The time zone is required.
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

/// Formats a duration as one word of at most two units, rounded down: `45s`, `14m`, `3h12m`, `5d`.
pub fn format_duration(duration: Duration) -> String {
    let minutes = duration.as_secs() / 60;
    let hours = minutes / 60;
    match (duration.as_secs(), minutes, hours) {
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

/// Parses `90s`, `10m`, `2h`, `1d`, `1w` or `1h30m`: whole numbers with their units, large units
/// first.
///
/// Returns `None` for others, such as a number without a unit, and for more seconds than a `u64`
/// holds.
pub fn parse_duration(text: &str) -> Option<Duration> {
    const UNITS: [(char, u64); 5] =
        [('w', 604_800), ('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];
    let mut rest = text;
    let mut seconds = 0_u64;
    for (unit, unit_seconds) in UNITS {
        let Some((count, after)) = rest.split_once(unit) else {
            continue;
        };
        // `parse` would accept a sign.
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
/// date-time, a local date (`2026-03-01`, `today`, `yesterday`) or date-time (`2026-03-01
/// 10:00[:00]`, or with a `T`), the last time of day (`10:00[:00]`), or seconds since 1970
/// (`@1772359200`).
///
/// A date means its first second. mktime(3) moves a time that daylight saving time skips.
pub fn parse_timestamp(text: &str, now_millis: i64) -> Option<i64> {
    if let Some(ago) = parse_duration(text) {
        return now_millis.checked_sub(i64::try_from(ago.as_millis()).ok()?);
    }
    if let Some(seconds) = text.strip_prefix('@') {
        // `parse` would accept a plus sign.
        let digits = seconds.strip_prefix('-').unwrap_or(seconds);
        let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
        return seconds.parse::<i64>().ok().filter(|_| all_digits)?.checked_mul(SECOND);
    }
    match text {
        "today" => local(local_date(now_millis), 0),
        "yesterday" => local(day_before(local_date(now_millis)), 0),
        _ => parse_rfc3339(text)
            .or_else(|| parse_local(text))
            .or_else(|| last_time_of_day(text, now_millis)),
    }
}

fn parse_local(text: &str) -> Option<i64> {
    let mut text = Reader(text);
    let date = text.date()?;
    if text.end().is_some() {
        return local(date, 0);
    }
    text.one_of("Tt ")?;
    local(date, text.time_of_day()?)
}

fn last_time_of_day(text: &str, now_millis: i64) -> Option<i64> {
    let (today, time) = (local_date(now_millis), Reader(text).time_of_day()?);
    let of_today = local(today, time)?;
    if of_today <= now_millis { Some(of_today) } else { local(day_before(today), time) }
}

/// Returns the date of a time in the user's time zone.
fn local_date(unix_millis: i64) -> Date {
    let shown = sys::local_time(unix_millis.div_euclid(SECOND));
    Date { year: shown.year.into(), month: shown.month.into(), day: shown.day.into() }
}

fn day_before(date: Date) -> Date {
    Date::of(date.days() - 1)
}

/// Returns the time of a local date and time of day.
fn local(date: Date, time: i64) -> Option<i64> {
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

/// A day of the proleptic Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Date {
    year: i64,
    month: i64,
    day: i64,
}

/// The days of 400 years.
const ERA: i64 = 146_097;
/// The days from 1 March of year 0 to 1 January 1970.
const EPOCH: i64 = 719_468;

// Both conversions count years from March, so that the leap day is the last day of a year and the
// days before each month are the same in every year: (153 * month + 2) / 5. The algorithms are
// civil_from_days and days_from_civil of https://howardhinnant.github.io/date_algorithms.html.
impl Date {
    /// Returns the date that is `days` after 1 January 1970.
    fn of(days: i64) -> Date {
        let (era, day) = ((days + EPOCH).div_euclid(ERA), (days + EPOCH).rem_euclid(ERA));
        // Without the leap days before it, every year has 365 days.
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        Date {
            year: 400 * era + year + month / 10,
            month: (month + 2) % 12 + 1,
            day: day - (153 * month + 2) / 5 + 1,
        }
    }

    /// Returns the days since 1 January 1970.
    fn days(self) -> i64 {
        let month = (self.month + 9) % 12;
        let year = self.year - month / 10;
        let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
        365 * year + leap_days + (153 * month + 2) / 5 + self.day - 1 - EPOCH
    }
}

/// The unread rest of a text. Times are in milliseconds.
struct Reader<'t>(&'t str);

impl Reader<'_> {
    /// Reads `2026-03-01`, if that day exists.
    fn date(&mut self) -> Option<Date> {
        let year = self.digits(4)?;
        self.one_of("-")?;
        let month = self.digits(2)?;
        self.one_of("-")?;
        let day = self.digits(2)?;
        let date = Date { year, month, day };
        (Date::of(date.days()) == date).then_some(date)
    }

    /// Reads `10:00`.
    fn clock(&mut self) -> Option<i64> {
        let hours = self.digits(2).filter(|hours| *hours < 24)?;
        self.one_of(":")?;
        let minutes = self.digits(2).filter(|minutes| *minutes < 60)?;
        Some(hours * HOUR + minutes * MINUTE)
    }

    /// Reads `:00`, up to `:60`.
    fn seconds(&mut self) -> Option<i64> {
        self.one_of(":")?;
        let seconds = self.digits(2).filter(|seconds| *seconds <= 60)?;
        Some(seconds * SECOND)
    }

    /// Reads `10:00` or `10:00:00` up to the end of the text.
    fn time_of_day(&mut self) -> Option<i64> {
        let time = self.clock()?;
        if self.end().is_some() {
            return Some(time);
        }
        let seconds = self.seconds()?;
        self.end()?;
        Some(time + seconds)
    }

    /// Reads `.5`, or returns 0 if there is no period.
    fn fraction(&mut self) -> Option<i64> {
        if self.one_of(".").is_none() {
            return Some(0);
        }
        let rest = self.0.trim_start_matches(|digit: char| digit.is_ascii_digit());
        let digits = self.0.strip_suffix(rest).filter(|digits| !digits.is_empty())?;
        self.0 = rest;
        let millis = digits.bytes().chain(*b"00").take(3);
        Some(millis.fold(0, |millis, digit| millis * 10 + i64::from(digit - b'0')))
    }

    fn digits(&mut self, count: usize) -> Option<i64> {
        let (digits, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        // `parse` would accept a sign.
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
    fn timestamps_are_formatted_in_utc() {
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (TEN, "2026-03-01T10:00:00.000Z"),
            (TEN + 12 * HOUR + 34 * MINUTE + 56_789, "2026-03-01T22:34:56.789Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (-2_203_891_200_001, "1900-02-28T23:59:59.999Z"),
            (-2_203_891_200_000, "1900-03-01T00:00:00.000Z"),
            (*TIMESTAMPS.start(), "0000-01-01T00:00:00.000Z"),
            (*TIMESTAMPS.start() - 1, "0000-01-01T00:00:00.000Z"),
            (i64::MIN, "0000-01-01T00:00:00.000Z"),
            (*TIMESTAMPS.end(), "9999-12-31T23:59:59.999Z"),
            (*TIMESTAMPS.end() + 1, "9999-12-31T23:59:59.999Z"),
            (i64::MAX, "9999-12-31T23:59:59.999Z"),
        ];
        for (millis, text) in cases {
            assert_eq!(rfc3339(millis), text);
        }
    }

    #[test]
    fn every_day_of_ten_thousand_years_follows_the_one_before() {
        let (mut year, mut month, mut day) = (0, 1, 1);
        for days in *TIMESTAMPS.start() / DAY..=*TIMESTAMPS.end() / DAY {
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
    fn a_formatted_timestamp_parses_to_itself() {
        let step = 37 * DAY + 5 * HOUR + 41 * MINUTE + 13 * SECOND + 7;
        let mut millis = *TIMESTAMPS.start();
        while millis <= *TIMESTAMPS.end() {
            assert_eq!(parse_rfc3339(&rfc3339(millis)), Some(millis));
            millis += step;
        }
    }

    #[test]
    fn every_form_of_rfc_3339_is_parsed() {
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
            ("0000-01-01T00:00:00+00:01", *TIMESTAMPS.start() - MINUTE),
        ];
        for (text, millis) in cases {
            assert_eq!(parse_rfc3339(text), Some(millis), "{text}");
        }
    }

    #[test]
    fn other_texts_are_not_rfc_3339() {
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
    fn durations_are_formatted_as_one_word() {
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
            ("1w", 604_800),
            ("2w1d", 1_296_000),
            ("007m", 420),
            ("18446744073709551615s", u64::MAX),
        ];
        for (text, seconds) in cases {
            assert_eq!(parse_duration(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        let refused = concat!(
            "10|m|10 m| 10m|10m |+10m|-10m|1.5h|10M|10min|30m1h|1h1h|1hm|1h30|10ms|w|1d1w|١m|1d d",
            "|18446744073709551616s|307445734561825861m|18446744073709551615s1s",
            "|213503982334601d25h",
        );
        for text in refused.split('|').chain([""]) {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn a_timestamp_is_a_duration_ago_or_a_date_time() {
        assert_eq!(parse_timestamp("10m", TEN), Some(TEN - 10 * MINUTE));
        assert_eq!(parse_timestamp("0s", i64::MIN), Some(i64::MIN));
        assert_eq!(parse_timestamp("1s", i64::MIN), None);
        assert_eq!(parse_timestamp("9223372036854775s", 0), Some(-9_223_372_036_854_775_000));
        assert_eq!(parse_timestamp("9223372036854776s", 0), None);
        assert_eq!(parse_timestamp("213503982334601d", TEN), None);
        assert_eq!(parse_timestamp("2026-03-01T11:00:00+01:00", 0), Some(TEN));
        for text in
            ["", "10", "tomorrow", "24:00", "9:00", "2026-02-29", "2026-03-01 ", "2026-03-01 10"]
        {
            assert_eq!(parse_timestamp(text, TEN), None, "{text}");
        }
        for text in ["2026-03-01 10:00:", "2026-03-01 10:00:61", "2026-03-01 10:00:00.5"] {
            assert_eq!(parse_timestamp(text, TEN), None, "{text}");
        }
    }

    #[test]
    fn seconds_since_1970_are_a_timestamp() {
        let seconds = [("@0", 0), ("@1772359200", TEN), ("@-1", -SECOND)];
        for (text, millis) in seconds {
            assert_eq!(parse_timestamp(text, 0), Some(millis), "{text}");
        }
        for text in ["@", "@+1", "@-", "@1.5", "@9223372036854775807", "1772359200"] {
            assert_eq!(parse_timestamp(text, 0), None, "{text}");
        }
    }

    #[test]
    fn a_day_and_a_time_of_day_are_those_before_now() {
        let at = |text: &str, now| parse_timestamp(text, now).unwrap();
        let noon = at("2026-03-02 12:00", 0);
        for (text, same) in [
            ("today", "2026-03-02"),
            ("yesterday", "2026-03-01"),
            ("11:59", "2026-03-02 11:59"),
            ("12:00", "2026-03-02 12:00"),
            ("12:00:01", "2026-03-01 12:00:01"),
            ("23:59", "2026-03-01 23:59"),
        ] {
            assert_eq!(at(text, noon), at(same, 0), "{text}");
        }
        // The first of a month and of a year.
        let new_year = at("2026-01-01 00:30", 0);
        assert_eq!(at("yesterday", new_year), at("2025-12-31", 0));
        assert_eq!(at("01:00", new_year), at("2025-12-31 01:00", 0));
    }

    #[test]
    fn a_timestamp_without_a_time_zone_is_local() {
        for (text, hour, minute, second) in [
            ("2026-03-01 10:00", 10, 0, 0),
            ("2026-03-01T10:20", 10, 20, 0),
            ("2026-03-01 10:20:30", 10, 20, 30),
        ] {
            let millis = parse_timestamp(text, 0).unwrap();
            // Every time zone is less than a day from UTC.
            assert!((millis - TEN).abs() < DAY, "{text}");
            let shown = sys::local_time(millis / SECOND);
            assert_eq!((shown.hour, shown.minute, shown.second), (hour, minute, second));
        }
        assert_eq!(parse_timestamp("2026-03-01", 0), parse_timestamp("2026-03-01 00:00:00", 0));
        // Systems that cannot express these years return `None`.
        for text in ["0000-01-01", "9999-12-31 23:59:60"] {
            drop(parse_timestamp(text, 0).map(rfc3339));
        }
    }

    #[test]
    fn the_clock_is_later_than_this_test() {
        assert!(now_millis() > TEN - 365 * DAY);
    }
}
