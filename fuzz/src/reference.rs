//! Section 1 of the contract, for a body and for headers, as slowly and plainly as it reads.
//!
//! It shares no code with the function, and none of its parser: see `tape`. Where both are wrong,
//! both are wrong for reasons of their own.

use super::ports::{READ_ONLY_KEY, REVOKED_KEY};
use super::tape::Tape;
use std::collections::BTreeMap;

/// What a body is.
pub enum Verdict<'body> {
    /// 400.
    Malformed,
    /// 422: each place at fault, in order.
    Invalid(Vec<Violation>),
    /// Valid: the text of each event.
    Events(Vec<&'body str>),
}

/// One place at fault.
#[derive(Debug)]
pub struct Violation {
    /// As in the answer.
    pub field: Option<String>,
    /// Every rule broken there. The answer's message says one of these.
    pub says: Vec<&'static str>,
}

/// The member at fault; `None` is the event itself.
type Member = Option<&'static str>;

const MEMBERS: [&str; 4] = ["external_user_id", "name", "properties", "timestamp"];

/// The body of `POST /api/v1/events/batch`.
pub fn batch(body: &[u8]) -> Verdict<'_> {
    let Some(tape) = read(body) else { return Verdict::Malformed };
    let on_batch = |says| Verdict::Invalid(vec![Violation { field: Some("events".to_owned()), says: vec![says] }]);
    if tape.entry(0).kind != b'{' {
        return on_batch("must be an object");
    }
    let members = tape.members(0);
    let mut named_events = members.iter().filter(|(name, _)| tape.string(*name).as_deref() == Some("events"));
    let Some(&(_, events)) = named_events.next() else { return on_batch("is required") };
    if tape.entry(events).kind != b'[' {
        return on_batch("must be an array");
    }
    if named_events.next().is_some() {
        return on_batch("duplicate field `events`");
    }
    let events = tape.children(events);
    if events.is_empty() {
        return on_batch("at least 1 event");
    }
    let mut faults = Vec::new();
    if events.len() > 500 {
        faults.push(Violation { field: Some("events".to_owned()), says: vec!["at most 500 events"] });
    }
    for (index, &event) in events.iter().take(500).enumerate() {
        for (member, says) in event_faults(&tape, event) {
            let field = member.map_or_else(|| format!("events[{index}]"), |name| format!("events[{index}].{name}"));
            faults.push(Violation { field: Some(field), says });
        }
    }
    faults.truncate(100);
    if faults.is_empty() {
        return Verdict::Events(events.into_iter().map(|event| tape.text(event)).collect());
    }
    Verdict::Invalid(faults)
}

/// The body of `POST /api/v1/events`.
pub fn single(body: &[u8]) -> Verdict<'_> {
    let Some(tape) = read(body) else { return Verdict::Malformed };
    let faults = event_faults(&tape, 0);
    if faults.is_empty() {
        return Verdict::Events(vec![tape.text(0)]);
    }
    let named = |(member, says): (Member, _)| Violation { field: member.map(str::to_owned), says };
    Verdict::Invalid(faults.into_iter().map(named).collect())
}

fn read(body: &[u8]) -> Option<Tape<'_>> {
    Tape::read(std::str::from_utf8(body).ok()?)
}

/// What breaks a rule, by member: the event itself first, then as the contract lists them.
fn event_faults(tape: &Tape<'_>, event: usize) -> Vec<(Member, Vec<&'static str>)> {
    let mut faults: BTreeMap<usize, Vec<&'static str>> = BTreeMap::new();
    let mut note = |member: Member, says: &'static str| {
        let place = member.map_or(0, |name| 1 + MEMBERS.iter().position(|known| *known == name).unwrap_or_default());
        faults.entry(place).or_default().push(says);
    };
    if in_message(tape.text(event)).len() > 1_047_552 {
        note(None, "at most 1047552 bytes");
    }
    if tape.entry(event).kind == b'{' {
        let mut count = [0; MEMBERS.len()];
        for (name, value) in tape.members(event) {
            let Some(key) = tape.string(name) else {
                note(None, "surrogate");
                check_any(tape, value, event, &mut |says| note(None, says));
                continue;
            };
            let member = MEMBERS.iter().position(|known| *known == key);
            let named = member.map(|at| MEMBERS[at]);
            check_any(tape, value, event, &mut |says| note(named, says));
            if let Some(at) = member {
                check_member(tape, at, value, &mut |says| note(named, says));
                count[at] += 1;
                if count[at] > 1 {
                    note(named, DUPLICATES[at]);
                }
            }
        }
        for required in [0, 1] {
            if count[required] == 0 {
                note(Some(MEMBERS[required]), "is required");
            }
        }
    } else {
        note(None, "must be an object");
        check_any(tape, event, event, &mut |says| note(None, says));
    }
    let member = |place: usize| place.checked_sub(1).map(|at| MEMBERS[at]);
    faults.into_iter().map(|(place, says)| (member(place), says)).collect()
}

const DUPLICATES: [&str; MEMBERS.len()] = [
    "duplicate field `external_user_id`",
    "duplicate field `name`",
    "duplicate field `properties`",
    "duplicate field `timestamp`",
];

/// What holds for every value in an event.
fn check_any(tape: &Tape<'_>, value: usize, event: usize, note: &mut impl FnMut(&'static str)) {
    // The event itself counts 1, wherever in the body it lies.
    let around = tape.entry(event).depth - usize::from(matches!(tape.entry(event).kind, b'[' | b'{'));
    for at in tape.within(value) {
        let entry = tape.entry(at);
        match entry.kind {
            b'"' if tape.string(at).is_none() => note("surrogate"),
            b'-' | b'0'..=b'9' if tape.text(at).parse().is_ok_and(f64::is_infinite) => note("64-bit float"),
            b'[' | b'{' if entry.depth - around > 32 => note("32 levels"),
            _ => {}
        }
    }
}

fn check_member(tape: &Tape<'_>, member: usize, value: usize, note: &mut impl FnMut(&'static str)) {
    let text = tape.text(value);
    match (MEMBERS[member], tape.entry(value).kind) {
        ("external_user_id" | "name", b'"') => {
            if tape.string(value).is_some_and(|text| !(1..=1024).contains(&text.chars().count())) {
                note("1 to 1024 characters");
            }
        }
        ("external_user_id" | "name", _) => note("must be a string"),
        ("properties", b'{') => {
            if tape.members(value).len() > 100 {
                note("at most 100 keys");
            }
            if text.len() > 1_000_000 {
                note("at most 1000000 bytes");
            }
        }
        ("properties" | "timestamp", b'n') => {}
        ("properties", _) => {
            note("must be an object");
            note("at most 1000000 bytes");
        }
        (_, b'"') => {
            if tape.string(value).is_some_and(|text| !is_rfc_3339(text.as_bytes())) {
                note("RFC 3339");
            }
        }
        _ => note("RFC 3339"),
    }
}

/// An event's text as it stands in a message: SQS refuses two characters.
pub fn in_message(event: &str) -> String {
    event.replace('\u{FFFE}', "\\ufffe").replace('\u{FFFF}', "\\uffff")
}

/// `1985-04-12T23:20:50.52Z`, or with an offset; the seconds are 60 only at the end of a month.
fn is_rfc_3339(text: &[u8]) -> bool {
    fn number(digits: &[u8]) -> Option<u32> {
        let all = digits.iter().all(u8::is_ascii_digit);
        all.then(|| digits.iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0')))
    }
    fn parse(text: &[u8]) -> Option<bool> {
        let (date_time, rest) = text.split_at_checked(19)?;
        let separators = [4, 7, 10, 13, 16].map(|at| date_time[at]);
        if !matches!(separators, [b'-', b'-', b'T' | b't', b':', b':']) {
            return None;
        }
        let [year, month, day] = [number(&text[..4])?, number(&text[5..7])?, number(&text[8..10])?];
        let [hour, minute, second] = [number(&text[11..13])?, number(&text[14..16])?, number(&text[17..19])?];
        let rest = match rest {
            [b'.', fraction @ ..] => {
                let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
                (digits > 0).then(|| &fraction[digits..])?
            }
            whole => whole,
        };
        // Minutes that local time is ahead of UTC.
        let ahead = match rest {
            [b'Z' | b'z'] => 0,
            [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
                let (hours, minutes) = (number(&[*h1, *h2])?, number(&[*m1, *m2])?);
                let offset = i64::from(hours * 60 + minutes);
                (hours < 24 && minutes < 60).then_some(if *sign == b'+' { offset } else { -offset })?
            }
            _ => return None,
        };
        let is_leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        let month_days = match month {
            2 => 28 + u32::from(is_leap),
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => return None,
        };
        // A leap second is the last of a month in UTC: on its last day here, or on the first of the next.
        let utc_minute = i64::from(hour * 60 + minute) - ahead;
        let ends_month = match utc_minute {
            1439 => day == month_days,
            -1 => day == 1,
            _ => false,
        };
        let seconds = if ends_month { 60 } else { 59 };
        let is_date = (1..=month_days).contains(&day);
        Some(is_date && hour < 24 && minute < 60 && second <= seconds)
    }
    parse(text).unwrap_or(false)
}

/// The headers that count, each already joined from its repeats.
#[derive(Default)]
pub struct Headers<'a> {
    /// `Authorization`
    pub authorization: Option<&'a str>,
    /// `Content-Type`
    pub content_type: Option<&'a str>,
    /// `Content-Encoding`
    pub content_encoding: Option<&'a str>,
    /// `Idempotency-Key`
    pub idempotency_key: Option<&'a str>,
}

impl Headers<'_> {
    /// The answer to these headers, where all else is right.
    pub fn answer(&self) -> (u16, Option<&'static str>) {
        match self.authorization.filter(|value| is_authorization(value)).map(|value| &value[7..]) {
            None | Some(REVOKED_KEY) => return (401, Some("auth_required")),
            Some(READ_ONLY_KEY) => return (403, Some("forbidden")),
            Some(_) => {}
        }
        let encoding = self.content_encoding.unwrap_or("identity").to_ascii_lowercase();
        let media_type = self.content_type.unwrap_or("").to_ascii_lowercase();
        let media_type = media_type.split(';').next().unwrap_or("").trim();
        let is_media_type = match (encoding.as_str(), media_type) {
            ("identity" | "gzip", "application/json") => true,
            ("gzip", other) => ["application/gzip", "application/octet-stream"].contains(&other),
            _ => false,
        };
        if !is_media_type {
            return (415, Some("unsupported_media_type"));
        }
        match self.idempotency_key {
            None => (400, Some("idempotency_key_required")),
            Some(key) if !is_idempotency_key(key) => (400, Some("idempotency_key_invalid")),
            Some(_) => (202, None),
        }
    }
}

/// `Bearer`, one space, a key.
pub fn is_authorization(value: &str) -> bool {
    let bytes = value.as_bytes();
    let is_bearer = bytes.len() > 15 && bytes[..7].eq_ignore_ascii_case(b"bearer ");
    is_bearer
        && matches!(&bytes[7..15], b"sk_live_" | b"sk_test_")
        && (15 + 32..=15 + 128).contains(&bytes.len())
        && bytes[15..].iter().all(|byte| matches!(byte, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
}

/// 1 to 255 visible ASCII characters.
pub fn is_idempotency_key(value: &str) -> bool {
    (1..=255).contains(&value.chars().count()) && value.chars().all(|character| ('!'..='~').contains(&character))
}
