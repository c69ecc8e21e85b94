//! `--timestamp-format` and `--tz`: the times of an export, as the RFC 3339 times that the service requires.

use clap::ValueEnum;
use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// How an input writes times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimestampFormat {
    /// RFC 3339, such as 2025-03-01T08:00:00Z
    Rfc3339,
    /// As databases write it: 2025-03-01 08:00:00[.ffffff][±hh[:mm]| UTC]
    Sql,
    /// Seconds since 1970, such as 1740816000 or 1740816000.25
    EpochSeconds,
    /// Milliseconds since 1970
    EpochMilliseconds,
    /// Microseconds since 1970
    EpochMicroseconds,
}

/// Converts the times of an input.
#[derive(Clone, Debug)]
pub struct Times {
    format: TimestampFormat,
    zone: Option<TimeZone>,
}

/// Parses `--tz`: `UTC`, an offset such as `+01:00`, or a name such as `Europe/Berlin`.
///
/// # Errors
/// If there is no such time zone.
pub fn time_zone(text: &str) -> Result<TimeZone, String> {
    if text == "UTC" || text == "Z" {
        return Ok(TimeZone::UTC);
    }
    if let Some(offset) = offset(text) {
        let (sign, hours, minutes) = (if offset.starts_with('-') { -60 } else { 60 }, &offset[1..3], &offset[4..6]);
        let number = |digits: &str| digits.parse::<i32>().unwrap_or_default();
        let offset = Offset::from_seconds(sign * (number(hours) * 60 + number(minutes)));
        return offset.map(TimeZone::fixed).map_err(|error| error.to_string());
    }
    TimeZone::get(text).map_err(|_| "must be UTC, an offset such as +01:00, or a name such as Europe/Berlin".to_owned())
}

impl Times {
    /// With a time zone and no format, the format is `sql`.
    ///
    /// # Errors
    /// If the format and the time zone do not go together, or there is no such time zone.
    pub fn new(format: Option<TimestampFormat>, zone: Option<&str>) -> Result<Self, String> {
        let zone = zone.map(time_zone).transpose()?;
        let format = match (format, &zone) {
            (None, None) => TimestampFormat::Rfc3339,
            (None | Some(TimestampFormat::Sql), _) => TimestampFormat::Sql,
            (Some(TimestampFormat::Rfc3339), Some(_)) => {
                return Err("--tz has no effect on RFC 3339 times; leave out --timestamp-format".to_owned());
            }
            (Some(format), _) => format,
        };
        Ok(Self { format, zone })
    }

    /// The RFC 3339 time. The service's rules check its ranges.
    ///
    /// # Errors
    /// The message says what the time must be.
    pub fn convert<'a>(&self, text: &'a str) -> Result<Cow<'a, str>, &'static str> {
        match self.format {
            TimestampFormat::Rfc3339 => Ok(text.into()),
            TimestampFormat::Sql => self.sql(text.trim()).map(Cow::Owned),
            TimestampFormat::EpochSeconds => self.epoch(text, 0, "must be a number of seconds since 1970"),
            TimestampFormat::EpochMilliseconds => self.epoch(text, 3, "must be a number of milliseconds since 1970"),
            TimestampFormat::EpochMicroseconds => self.epoch(text, 6, "must be a number of microseconds since 1970"),
        }
    }

    /// With a time zone, the seconds are counted from 1970 in local time, as some exports do.
    fn epoch<'a>(&self, text: &str, decimals: usize, reason: &'static str) -> Result<Cow<'a, str>, &'static str> {
        let time = epoch(text.trim(), decimals).ok_or(reason)?;
        match self.zone {
            None => Ok(time.into()),
            Some(_) => self.sql(time.trim_end_matches('Z')).map(Cow::Owned),
        }
    }

    fn sql(&self, text: &str) -> Result<String, &'static str> {
        const SHAPE: &str = "must be a time such as 2025-03-01 08:00:00.123456+01";
        let (date, time) = text.split_at_checked(10).ok_or(SHAPE)?;
        let (separator, time) = time.split_at_checked(1).ok_or(SHAPE)?;
        let (time, rest) = time.split_at_checked(8).ok_or(SHAPE)?;
        if !has_shape(date, "dddd-dd-dd") || !matches!(separator, " " | "T" | "t") || !has_shape(time, "dd:dd:dd") {
            return Err(SHAPE);
        }
        let fraction =
            rest.strip_prefix('.').map_or(0, |digits| 1 + digits.bytes().take_while(u8::is_ascii_digit).count());
        let (fraction, zone) = rest.split_at(fraction);
        if fraction == "." {
            return Err(SHAPE);
        }
        let zone: Cow<'_, str> = match zone.trim() {
            "" => self.offset_at(date, time)?.into(),
            "UTC" | "Z" | "z" | "GMT" => "Z".into(),
            zone => offset(zone).ok_or(SHAPE)?.into(),
        };
        Ok(format!("{date}T{time}{fraction}{zone}"))
    }

    /// The offset from UTC at a local time. A time that occurs twice is the earlier one, and a time that is skipped
    /// is taken as if the clock had not been changed yet.
    fn offset_at(&self, date: &str, time: &str) -> Result<String, &'static str> {
        let zone = self.zone.as_ref().ok_or("has no time zone; pass --tz, such as --tz UTC")?;
        let local: DateTime = format!("{date}T{time}").parse().map_err(|_| "is not a date and time that exists")?;
        let timestamp = zone.to_ambiguous_timestamp(local).compatible().map_err(|_| "is out of range")?;
        // For a skipped time, this is the offset before the change, so that the local time keeps its meaning.
        let offset = local.duration_since(Offset::UTC.to_datetime(timestamp)).as_secs();
        let (sign, offset) = (if offset < 0 { '-' } else { '+' }, offset.unsigned_abs());
        Ok(if offset == 0 { "Z".to_owned() } else { format!("{sign}{:02}:{:02}", offset / 3600, offset / 60 % 60) })
    }
}

/// Whether each `d` of `shape` is a digit in `text`, and everything else is the same.
fn has_shape(text: &str, shape: &str) -> bool {
    let same = |(byte, wanted): (u8, u8)| if wanted == b'd' { byte.is_ascii_digit() } else { byte == wanted };
    text.len() == shape.len() && text.bytes().zip(shape.bytes()).all(same)
}

/// An offset such as `+01`, `+0100` or `+01:00`, as `+01:00`.
fn offset(text: &str) -> Option<String> {
    let digits = text.strip_prefix(['+', '-'])?;
    let sign = &text[..1];
    let minutes = match digits {
        _ if has_shape(digits, "dd") => "00",
        _ if has_shape(digits, "dddd") || has_shape(digits, "dd:dd") => &digits[digits.len() - 2..],
        _ => return None,
    };
    Some(format!("{sign}{}:{minutes}", &digits[..2]))
}

/// The time that is `text` units after 1970, where a second has 10 to the power of `decimals` units.
fn epoch(text: &str, decimals: usize) -> Option<String> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let units: i64 = whole.parse().ok()?;
    if whole.starts_with('-') && !part.bytes().all(|byte| byte == b'0') {
        return None;
    }
    let per_second = 10_i64.pow(u32::try_from(decimals).ok()?);
    let mut fraction =
        if decimals == 0 { String::new() } else { format!("{:0decimals$}", units.rem_euclid(per_second)) };
    fraction.push_str(part);
    utc(units.div_euclid(per_second), fraction.trim_end_matches('0'))
}

/// The time `seconds` after 1970, with these digits of its fraction. `None` if the year is not from 0 to 9999.
pub fn utc(seconds: i64, fraction: &str) -> Option<String> {
    let time = Offset::UTC.to_datetime(jiff::Timestamp::from_second(seconds).ok()?);
    let point = if fraction.is_empty() { "" } else { "." };
    (time.year() >= 0).then(|| {
        let (date, clock) = (time.date(), time.time());
        format!("{date}T{:02}:{:02}:{:02}{point}{fraction}Z", clock.hour(), clock.minute(), clock.second())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(format: Option<TimestampFormat>, zone: Option<&str>) -> impl Fn(&str) -> Result<String, &'static str> {
        let times = Times::new(format, zone).unwrap();
        move |text| times.convert(text).map(Cow::into_owned)
    }

    #[test]
    fn times_of_databases_keep_their_digits_and_their_zone() {
        let convert = times(Some(TimestampFormat::Sql), None);
        for (text, expected) in [
            ("2025-03-01 08:00:00+00", "2025-03-01T08:00:00+00:00"),
            ("2025-03-01 08:00:00.123456-03", "2025-03-01T08:00:00.123456-03:00"),
            ("2025-03-01 08:00:00.1 +0530", "2025-03-01T08:00:00.1+05:30"),
            ("2025-03-01T08:00:00+05:30", "2025-03-01T08:00:00+05:30"),
            (" 2025-03-01 08:00:00.000 UTC", "2025-03-01T08:00:00.000Z"),
            ("2025-03-01T08:00:00Z", "2025-03-01T08:00:00Z"),
        ] {
            assert_eq!(convert(text).as_deref(), Ok(expected), "{text}");
        }
        assert!(convert("2025-03-01 08:00:00").unwrap_err().contains("--tz"));
        for bad in [
            "",
            "infinity",
            "2025-03-01",
            "01/03/2025 08:00:00",
            "2025-03-01 08:00",
            "2025-03-01 08:00:00.Z",
            "2025-03-01 08:00:00 CET",
            "2025-03-01 08:00:0é+0",
        ] {
            assert!(convert(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_time_without_a_zone_is_in_the_given_one() {
        let convert = |zone: &str, text: &str| times(None, Some(zone))(text).unwrap();
        assert_eq!(convert("UTC", "2025-03-01 08:00:00.5"), "2025-03-01T08:00:00.5Z");
        assert_eq!(convert("+05:30", "2025-03-01 08:00:00"), "2025-03-01T08:00:00+05:30");
        assert_eq!(convert("-03", "2025-03-01 08:00:00"), "2025-03-01T08:00:00-03:00");
        assert_eq!(convert("Europe/Berlin", "2025-03-01 08:00:00"), "2025-03-01T08:00:00+01:00");
        assert_eq!(convert("Europe/Berlin", "2025-07-01T08:00:00"), "2025-07-01T08:00:00+02:00");
        // Twice, and never.
        assert_eq!(convert("Europe/Berlin", "2025-10-26 02:30:00"), "2025-10-26T02:30:00+02:00");
        assert_eq!(convert("Europe/Berlin", "2025-03-30 02:30:00"), "2025-03-30T02:30:00+01:00");
        // A zone in the text wins.
        assert_eq!(convert("Europe/Berlin", "2025-03-01 08:00:00 UTC"), "2025-03-01T08:00:00Z");
        assert!(time_zone("Mars/Olympus").is_err());
        assert!(Times::new(Some(TimestampFormat::Rfc3339), Some("UTC")).is_err());
        let seconds = times(Some(TimestampFormat::EpochSeconds), Some("America/Los_Angeles"));
        assert_eq!(seconds("1740816000.5").unwrap(), "2025-03-01T08:00:00.5-08:00");
    }

    #[test]
    fn epoch_times_keep_their_digits() {
        use TimestampFormat::{EpochMicroseconds, EpochMilliseconds, EpochSeconds};
        for (format, text, expected) in [
            (EpochSeconds, "1740816000", "2025-03-01T08:00:00Z"),
            (EpochSeconds, "1740816000.250", "2025-03-01T08:00:00.25Z"),
            (EpochSeconds, "-1", "1969-12-31T23:59:59Z"),
            (EpochMilliseconds, "1740816000005", "2025-03-01T08:00:00.005Z"),
            (EpochMilliseconds, "1740816000005.125", "2025-03-01T08:00:00.005125Z"),
            (EpochMilliseconds, "-1", "1969-12-31T23:59:59.999Z"),
            (EpochMicroseconds, "1740816000000001", "2025-03-01T08:00:00.000001Z"),
        ] {
            assert_eq!(times(Some(format), None)(text).as_deref(), Ok(expected), "{text}");
        }
        for bad in ["", "1e9", "1.", "-1.5", "x", "99999999999999", "1 2"] {
            assert!(times(Some(EpochSeconds), None)(bad).is_err(), "{bad}");
        }
    }
}
