//! The target `times`: a time as an export writes it.

use event_ingest_backfill::times::{Times, TimestampFormat};
use std::borrow::Cow;

const FORMATS: [TimestampFormat; 4] = [
    TimestampFormat::Sql,
    TimestampFormat::EpochSeconds,
    TimestampFormat::EpochMilliseconds,
    TimestampFormat::EpochMicroseconds,
];

const ZONES: [Option<&str>; 5] =
    [None, Some("UTC"), Some("+05:30"), Some("Europe/Berlin"), Some("America/Los_Angeles")];

thread_local! {
    static TIMES: [[Times; ZONES.len()]; FORMATS.len()] =
        FORMATS.map(|format| ZONES.map(|zone| Times::new(Some(format), zone).expect("a format and a zone")));
}

/// Converts a time. The result must have the form that the service requires, and the same date and time of day.
///
/// # Panics
/// If the result has another form, or is another time.
pub fn run(input: &[u8]) {
    let [how, text @ ..] = input else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let (format, zone) = (usize::from(how & 0b11), usize::from(how >> 2) % ZONES.len());
    let converted = TIMES.with(|times| times[format][zone].convert(text).map(Cow::into_owned));
    let text = text.trim();
    let Ok(converted) = converted else {
        let is_plain = (1..=9).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        assert!(format == 0 || !is_plain, "{text:?} was refused");
        return;
    };
    let time = Time::parse(&converted).unwrap_or_else(|| panic!("{text:?} became {converted:?}"));
    let expected_zone = match (format, ZONES[zone]) {
        (0, _) | (_, Some("Europe/Berlin" | "America/Los_Angeles")) => None,
        (_, None | Some("UTC")) => Some("Z"),
        (_, zone) => zone,
    };
    assert!(expected_zone.is_none_or(|zone| zone == time.zone), "{text:?} became {converted:?}");
    if format == 0 {
        let same = converted[..10] == text[..10] && converted[11..19] == text[11..19];
        assert!(same && text[19..].starts_with(time.fraction), "{text:?} became {converted:?}");
    } else {
        let (seconds, fraction) = epoch(text, 3 * (format - 1)).expect("a decimal number");
        let found = (time.seconds_since_1970(), time.fraction.trim_start_matches('.'));
        assert_eq!(found, (seconds, fraction.trim_end_matches('0')), "{text:?} became {converted:?}");
    }
}

/// Converts a number of units since 1970 to seconds and the digits of the fraction. A second has 10 to the power of
/// `decimals` units.
fn epoch(text: &str, decimals: usize) -> Option<(i64, String)> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let units: i128 = whole.parse().ok()?;
    let per_second = 10_i128.pow(u32::try_from(decimals).ok()?);
    let units_left = if decimals == 0 { String::new() } else { format!("{:0decimals$}", units.rem_euclid(per_second)) };
    Some((i64::try_from(units.div_euclid(per_second)).ok()?, units_left + part))
}

/// An RFC 3339 time.
struct Time<'a> {
    /// Year, month, day, hour, minute and second.
    numbers: [i64; 6],
    /// With its point.
    fraction: &'a str,
    zone: &'a str,
}

impl<'a> Time<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let has_shape = |text: &str, shape: &str| {
            let same = |(byte, wanted): (u8, u8)| byte == wanted || wanted == b'd' && byte.is_ascii_digit();
            text.len() == shape.len() && text.bytes().zip(shape.bytes()).all(same)
        };
        let (date_time, rest) = text.split_at_checked(19)?;
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let (fraction, zone) = rest.split_at(rest.strip_prefix('.').map_or(0, |rest| 1 + digits(rest)));
        let is_zone = zone == "Z" || has_shape(zone, "+dd:dd") || has_shape(zone, "-dd:dd");
        if !has_shape(date_time, "dddd-dd-ddTdd:dd:dd") || fraction == "." || !is_zone {
            return None;
        }
        let number = |start: usize, end: usize| date_time[start..end].parse().ok();
        let numbers = [number(0, 4)?, number(5, 7)?, number(8, 10)?, number(11, 13)?, number(14, 16)?, number(17, 19)?];
        Some(Self { numbers, fraction, zone })
    }

    /// The seconds from 1970 to this time of day, in the same time zone.
    fn seconds_since_1970(&self) -> i64 {
        const DAYS_BEFORE_MONTH: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        let [year, month, day, hour, minute, second] = self.numbers;
        let leap_days = |year: i64| year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
        let is_leap = leap_days(year) > leap_days(year - 1);
        let month_start =
            DAYS_BEFORE_MONTH[usize::try_from(month - 1).expect("a month")] + i64::from(is_leap && month > 2);
        let days = 365 * (year - 1970) + leap_days(year - 1) - leap_days(1969) + month_start + day - 1;
        86_400 * days + 3600 * hour + 60 * minute + second
    }
}
