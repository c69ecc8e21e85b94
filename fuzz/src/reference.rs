//! The rules of docs/contract.md, "Requests", for a body and for headers, written plainly and without
//! regard to speed.
//!
//! The reference shares no code with the function, not even the JSON parser (see `tape`), so that one
//! mistake cannot hide in both.

use super::ports::{READ_ONLY_KEY, REVOKED_KEY};
use super::tape::Tape;
use std::collections::BTreeMap;

/// The most bytes of a decoded body.
pub const MAX_BODY_BYTES: usize = 5 * 1024 * 1024;
/// The most bytes of an event in a message.
pub const MAX_EVENT_BYTES: usize = 1_047_552;

/// The result of checking a body.
pub enum Verdict<'body> {
    /// 400: the body is not JSON.
    Malformed,
    /// 422: the violations, in order.
    Invalid(Vec<Violation>),
    /// The body is valid: the text of each event.
    Events(Vec<&'body str>),
}

/// The result of checking the body of a bulk request.
pub enum BulkVerdict<'body> {
    /// 400 `malformed_json`: the body is not JSON.
    Malformed,
    /// 400 `validation_failed`: a rule that `events` itself breaks.
    Invalid(&'static str),
    /// 200: each event.
    Events(Vec<BulkEvent<'body>>),
}

/// An event of a bulk request.
pub enum BulkEvent<'body> {
    /// The text of a valid event.
    Valid(&'body str),
    /// The violations of an invalid event, by member.
    Invalid(Vec<Violation>),
}

/// The violations of one field, of which a response reports one.
#[derive(Debug)]
pub struct Violation {
    /// The field, as in the response.
    pub field: Option<String>,
    /// One text for each broken rule. The message in the response contains one of them.
    pub rules: Vec<&'static str>,
}

/// Asserts that the violations found, as fields and messages, are the expected ones.
pub fn assert_violations(found: &[(Option<String>, &str)], expected: &[Violation]) {
    let is_one = |(field, message): &(Option<String>, &str), violation: &Violation| {
        *field == violation.field && violation.rules.iter().any(|rule| message.contains(rule))
    };
    let same = found.len() == expected.len() && found.iter().zip(expected).all(|(found, one)| is_one(found, one));
    assert!(same, "found {found:?}, but the reference found {expected:?}");
}

/// The member that breaks a rule; `None` is the event itself.
type Member = Option<&'static str>;

const MEMBERS: [&str; 4] = ["external_user_id", "name", "properties", "timestamp"];

/// The body of `POST /api/v1/events/batch`.
pub fn batch(body: &[u8]) -> Verdict<'_> {
    let Some(tape) = read(body) else { return Verdict::Malformed };
    let of_events = |rule| Violation { field: Some("events".to_owned()), rules: vec![rule] };
    let events = match list(&tape) {
        Ok(events) => events,
        Err(rule) => return Verdict::Invalid(vec![of_events(rule)]),
    };
    let mut violations = Vec::new();
    if events.len() > 500 {
        violations.push(of_events("at most 500 events"));
    }
    for (index, &event) in events.iter().take(500).enumerate() {
        for (member, rules) in event_violations(&tape, event) {
            let field = member.map_or_else(|| format!("events[{index}]"), |name| format!("events[{index}].{name}"));
            violations.push(Violation { field: Some(field), rules });
        }
    }
    violations.truncate(100);
    if violations.is_empty() {
        return Verdict::Events(events.into_iter().map(|event| tape.text(event)).collect());
    }
    Verdict::Invalid(violations)
}

/// The body of `POST /api/v1/events/bulk`.
pub fn bulk(body: &[u8]) -> BulkVerdict<'_> {
    let Some(tape) = read(body) else { return BulkVerdict::Malformed };
    let events = match list(&tape) {
        Ok(events) if events.len() > 1000 => return BulkVerdict::Invalid("at most 1000 events"),
        Ok(events) => events,
        Err(rule) => return BulkVerdict::Invalid(rule),
    };
    let check = |event: usize| match event_violations(&tape, event) {
        violations if violations.is_empty() => BulkEvent::Valid(tape.text(event)),
        violations => BulkEvent::Invalid(violations.into_iter().map(by_member).collect()),
    };
    BulkVerdict::Events(events.into_iter().map(check).collect())
}

/// The elements of `events`, at least one, or the rule that the list breaks.
fn list(tape: &Tape<'_>) -> Result<Vec<usize>, &'static str> {
    if tape.entry(0).kind != b'{' {
        return Err("must be an object");
    }
    let members = tape.members(0);
    let mut named_events = members.iter().filter(|(name, _)| tape.string(*name).as_deref() == Some("events"));
    let Some(&(_, events)) = named_events.next() else { return Err("is required") };
    if tape.entry(events).kind != b'[' {
        return Err("must be an array");
    }
    if named_events.next().is_some() {
        return Err("duplicate field `events`");
    }
    let events = tape.children(events);
    if events.is_empty() { Err("at least 1 event") } else { Ok(events) }
}

/// The body of `POST /api/v1/events`.
pub fn single(body: &[u8]) -> Verdict<'_> {
    let Some(tape) = read(body) else { return Verdict::Malformed };
    let violations = event_violations(&tape, 0);
    if violations.is_empty() {
        return Verdict::Events(vec![tape.text(0)]);
    }
    Verdict::Invalid(violations.into_iter().map(by_member).collect())
}

fn by_member((member, rules): (Member, Vec<&'static str>)) -> Violation {
    Violation { field: member.map(str::to_owned), rules }
}

fn read(body: &[u8]) -> Option<Tape<'_>> {
    Tape::read(std::str::from_utf8(body).ok()?)
}

/// The rules that an event breaks, by member: the event itself first, then in the order of docs/contract.md.
fn event_violations(tape: &Tape<'_>, event: usize) -> Vec<(Member, Vec<&'static str>)> {
    let mut violations: BTreeMap<usize, Vec<&'static str>> = BTreeMap::new();
    let mut note = |member: Member, rule: &'static str| {
        let place = member.map_or(0, |name| 1 + MEMBERS.iter().position(|known| *known == name).unwrap_or_default());
        violations.entry(place).or_default().push(rule);
    };
    if in_message(tape.text(event)).len() > MAX_EVENT_BYTES {
        note(None, "at most 1047552 bytes");
    }
    if tape.entry(event).kind == b'{' {
        let mut count = [0; MEMBERS.len()];
        for (name, value) in tape.members(event) {
            let Some(key) = tape.string(name) else {
                note(None, "surrogate");
                check_any(tape, value, event, &mut |rule| note(None, rule));
                continue;
            };
            let member = MEMBERS.iter().position(|known| *known == key);
            let named = member.map(|at| MEMBERS[at]);
            check_any(tape, value, event, &mut |rule| note(named, rule));
            if let Some(at) = member {
                check_member(tape, at, value, &mut |rule| note(named, rule));
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
        check_any(tape, event, event, &mut |rule| note(None, rule));
    }
    let member = |place: usize| place.checked_sub(1).map(|at| MEMBERS[at]);
    violations.into_iter().map(|(place, rules)| (member(place), rules)).collect()
}

const DUPLICATES: [&str; MEMBERS.len()] = [
    "duplicate field `external_user_id`",
    "duplicate field `name`",
    "duplicate field `properties`",
    "duplicate field `timestamp`",
];

/// The rules for every value in an event.
fn check_any(tape: &Tape<'_>, value: usize, event: usize, note: &mut impl FnMut(&'static str)) {
    // The event itself is level 1, wherever in the body it is.
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

/// An event's text in a message, where the two characters that SQS refuses are escaped.
pub fn in_message(event: &str) -> String {
    event.replace('\u{FFFE}', "\\ufffe").replace('\u{FFFF}', "\\uffff")
}

/// Whether `text` is an RFC 3339 time such as `1985-04-12T23:20:50.52Z`. The seconds are 60 only at the end
/// of a month.
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
            zone => zone,
        };
        // The minutes by which local time is ahead of UTC.
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
        // A leap second is the last second of a month in UTC. In local time this is on the last day of the
        // month or on the first day of the next one.
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

/// The headers that the function reads. The values of repeated headers are joined.
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
    /// The response to these headers if the rest of the request is valid. A bulk request needs no
    /// idempotency key.
    pub fn response(&self, needs_key: bool) -> (u16, Option<&'static str>) {
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
            None if needs_key => (400, Some("idempotency_key_required")),
            Some(key) if !is_idempotency_key(key) => (400, Some("idempotency_key_invalid")),
            None | Some(_) => (202, None),
        }
    }
}

/// Whether `value` is `Bearer`, one space, and an API key.
pub fn is_authorization(value: &str) -> bool {
    let bytes = value.as_bytes();
    let is_bearer = bytes.len() > 15 && bytes[..7].eq_ignore_ascii_case(b"bearer ");
    is_bearer
        && matches!(&bytes[7..15], b"sk_live_" | b"sk_test_")
        && (15 + 32..=15 + 128).contains(&bytes.len())
        && bytes[15..].iter().all(|byte| matches!(byte, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
}

/// Whether `value` is 1 to 255 visible ASCII characters.
pub fn is_idempotency_key(value: &str) -> bool {
    (1..=255).contains(&value.chars().count()) && value.chars().all(|character| ('!'..='~').contains(&character))
}
