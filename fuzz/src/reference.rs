//! The rules of docs/contract.md, "Requests", for a body and for headers, written plainly and without
//! regard to speed.
//!
//! The reference shares no code with the function, not even the JSON parser (see `tape`), so that one
//! mistake cannot hide in both.

use super::ports::{READ_ONLY_KEY, REVOKED_KEY};
use super::tape::Tape;
use std::borrow::Cow;

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

/// The rules that an event breaks: at the event itself first, then at its members, in the order of docs/contract.md.
type Rules = [Vec<&'static str>; 1 + MEMBERS.len()];

/// A body as the reference reads it: `None` if it is not JSON.
pub struct Body<'body>(Option<Tape<'body>>);

impl<'body> Body<'body> {
    /// Reads a decoded body.
    pub fn read(body: &'body [u8]) -> Self {
        Self(std::str::from_utf8(body).ok().and_then(Tape::read))
    }

    /// Whether it is JSON.
    pub fn is_json(&self) -> bool {
        self.0.is_some()
    }

    /// As the body of `POST /api/v1/events/batch`.
    pub fn batch(&self) -> Verdict<'body> {
        let Some(tape) = &self.0 else { return Verdict::Malformed };
        let of_events = |rule| Violation { field: Some("events".to_owned()), rules: vec![rule] };
        let events = match list(tape) {
            Ok(events) => events,
            Err(rule) => return Verdict::Invalid(vec![of_events(rule)]),
        };
        let mut violations = Vec::new();
        if tape.children(events).nth(500).is_some() {
            violations.push(of_events("at most 500 events"));
        }
        for (index, event) in tape.children(events).take(500).enumerate() {
            let field = |name: Member| {
                Some(name.map_or_else(|| format!("events[{index}]"), |name| format!("events[{index}].{name}")))
            };
            violations.extend(violations_of(event_rules(tape, event), field));
        }
        violations.truncate(100);
        if violations.is_empty() {
            return Verdict::Events(tape.children(events).map(|event| tape.text(event)).collect());
        }
        Verdict::Invalid(violations)
    }

    /// As the body of `POST /api/v1/events/bulk`.
    pub fn bulk(&self) -> BulkVerdict<'body> {
        let Some(tape) = &self.0 else { return BulkVerdict::Malformed };
        let events = match list(tape) {
            Ok(events) if tape.children(events).nth(1000).is_some() => {
                return BulkVerdict::Invalid("at most 1000 events");
            }
            Ok(events) => events,
            Err(rule) => return BulkVerdict::Invalid(rule),
        };
        let check = |event: usize| match violations_of(event_rules(tape, event), by_name).collect::<Vec<_>>() {
            violations if violations.is_empty() => BulkEvent::Valid(tape.text(event)),
            violations => BulkEvent::Invalid(violations),
        };
        BulkVerdict::Events(tape.children(events).map(check).collect())
    }

    /// As the body of `POST /api/v1/events`.
    pub fn single(&self) -> Verdict<'body> {
        let Some(tape) = &self.0 else { return Verdict::Malformed };
        let violations: Vec<_> = violations_of(event_rules(tape, 0), by_name).collect();
        if violations.is_empty() { Verdict::Events(vec![tape.text(0)]) } else { Verdict::Invalid(violations) }
    }
}

/// The array `events`, which has at least one element, or the rule that it breaks.
fn list(tape: &Tape<'_>) -> Result<usize, &'static str> {
    if tape.entry(0).kind != b'{' {
        return Err("must be an object");
    }
    let mut named_events = tape.members(0).filter(|(name, _)| tape.string(*name).as_deref() == Some("events"));
    let Some((_, events)) = named_events.next() else { return Err("is required") };
    if tape.entry(events).kind != b'[' {
        return Err("must be an array");
    }
    if named_events.next().is_some() {
        return Err("duplicate field `events`");
    }
    if tape.children(events).next().is_none() { Err("at least 1 event") } else { Ok(events) }
}

fn by_name(member: Member) -> Option<String> {
    member.map(str::to_owned)
}

fn violations_of(rules: Rules, field: impl Fn(Member) -> Option<String>) -> impl Iterator<Item = Violation> {
    let broken = rules.into_iter().enumerate().filter(|(_, rules)| !rules.is_empty());
    broken.map(move |(place, rules)| Violation { field: field(place.checked_sub(1).map(|at| MEMBERS[at])), rules })
}

fn event_rules(tape: &Tape<'_>, event: usize) -> Rules {
    let mut broken = Rules::default();
    let mut note = |place: usize, rule: &'static str| broken[place].push(rule);
    if message_len(tape.text(event)) > MAX_EVENT_BYTES {
        note(0, "at most 1047552 bytes");
    }
    if tape.entry(event).kind == b'{' {
        let mut count = [0; MEMBERS.len()];
        for (name, value) in tape.members(event) {
            let Some(key) = tape.string(name) else {
                note(0, "surrogate");
                check_any(tape, value, event, &mut |rule| note(0, rule));
                continue;
            };
            let member = MEMBERS.iter().position(|known| *known == key);
            let place = member.map_or(0, |at| 1 + at);
            check_any(tape, value, event, &mut |rule| note(place, rule));
            if let Some(at) = member {
                check_member(tape, at, value, &mut |rule| note(place, rule));
                count[at] += 1;
                if count[at] > 1 {
                    note(place, DUPLICATES[at]);
                }
            }
        }
        for required in [0, 1] {
            if count[required] == 0 {
                note(1 + required, "is required");
            }
        }
    } else {
        note(0, "must be an object");
        check_any(tape, event, event, &mut |rule| note(0, rule));
    }
    broken
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
            if tape.members(value).nth(100).is_some() {
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

/// The characters that SQS refuses.
const REFUSED: [char; 2] = ['\u{FFFE}', '\u{FFFF}'];

/// The bytes of an event's text in a message.
fn message_len(event: &str) -> usize {
    in_message(event).len()
}

/// An event's text in a message, where the two characters that SQS refuses are escaped.
pub fn in_message(event: &str) -> Cow<'_, str> {
    // Both begin with this byte.
    if !event.as_bytes().contains(&0xEF) || !event.contains(REFUSED) {
        return event.into();
    }
    event.replace('\u{FFFE}', "\\ufffe").replace('\u{FFFF}', "\\uffff").into()
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
