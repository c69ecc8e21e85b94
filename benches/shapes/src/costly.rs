//! The costliest requests within the limits: bodies of up to 5 MB that take the most CPU time in some stage.
//!
//! [`grid`] contains all combinations of the places where a body may repeat a value, the values, and the
//! ends. [`all`] contains the costliest of them for each stage, and requests that no grid contains.

use crate::{gateway_event, large_batch};
use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use contract::limits::{MAX_BODY_BYTES, MAX_GZIP_MEMBERS};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use std::io::Write as _;

/// The most bytes of an invocation.
const MAX_PAYLOAD_BYTES: usize = 6_291_456;
/// The most bytes of all headers together, which API Gateway limits.
const MAX_HEADER_BYTES: usize = 10_240;

const BATCH: &str = "/api/v1/events/batch";
pub(crate) const BULK: &str = "/api/v1/events/bulk";

/// A request within the limits.
pub struct Costly {
    /// What is unusual about it.
    pub name: String,
    /// The gateway event.
    pub payload: Vec<u8>,
    /// Whether it goes to the bulk endpoint.
    pub is_bulk: bool,
}

/// Where a body repeats a value: the text before and after, and whether the values are members.
const PLACES: [(&str, &str, &str, bool); 10] = [
    ("events", r#"{"events":["#, "]}", false),
    ("an ignored array", r#"{"events":[{"external_user_id":"u","name":"n"}],"x":["#, "]}", false),
    ("ignored members", r#"{"events":[{"external_user_id":"u","name":"n"}],"#, "}", true),
    ("an array in one event", r#"{"events":[{"external_user_id":"u","name":"n","x":["#, "]}]}", false),
    ("members of one event", r#"{"events":[{"external_user_id":"u","name":"n","#, "}]}", true),
    ("names of one event", r#"{"events":[{"#, r#""name":"n"}]}"#, true),
    ("properties of one event", r#"{"events":[{"external_user_id":"u","name":"n","properties":{"#, "}}]}", true),
    ("arrays in 5 events", r#"{"external_user_id":"u","name":"n","x":["#, "]}", false),
    ("members of 5 events", r#"{"external_user_id":"u","name":"n","#, "}", true),
    ("properties of 6 events", r#"{"external_user_id":"u","name":"n","properties":{"x":["#, "]}}", false),
];

const VALUES: [&str; 38] = [
    // Halfway between two floats, which takes a parser longest.
    "9007199254740993.0",
    "2.4703282292062327208e-324",
    "8.98846567431157953865e307",
    "1.7976931348623158e308",
    "0",
    "-0",
    "1.5",
    "1e1",
    "12345678",
    "0.12345678901234567",
    "12345678901234567890",
    "1.7976931348623157e308",
    "4.9e-324",
    "1e-999999999",
    "null",
    "false",
    r#""""#,
    r#""a""#,
    r#""\n""#,
    r#""\"\"\"\"""#,
    r#""\\\\\\\\\\\\\\\\""#,
    r#""\u0041""#,
    r#""\u0041\u0041\u0041\u0041\u0041\u0041\u0041\u0041""#,
    r#""\ud83d\ude00""#,
    "\"\u{7ff}\"",
    "\"\u{fffe}\"",
    "\"\u{fffe}\u{ffff}\u{fffe}\u{ffff}\u{fffe}\u{ffff}\u{fffe}\u{ffff}\"",
    "\"\u{f000}\u{f000}\u{f000}\u{f000}\u{f000}\u{f000}\u{f000}\u{f000}\"",
    "[]",
    "{}",
    "[[]]",
    "[0]",
    r#"{"":0}"#,
    r#"{"a":""}"#,
    r#"{"a":{"a":{"a":0}}}"#,
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[0]]]]]]]]]]]]]]]]]]]]]]]]]]]]",
    r#"{"external_user_id":"u","name":"n"}"#,
    " \t\n ",
];

/// What follows the last value: nothing unusual, a value that a strict parser refuses, a syntax error, or
/// a byte that is not UTF-8.
const ENDS: [(&str, &[u8]); 4] = [("", b""), (", refused", b""), (", malformed", b"!"), (", not UTF-8", b"\xff")];

type Place = (&'static str, &'static str, &'static str, bool);
type End = (&'static str, &'static [u8]);

fn combinations() -> impl Iterator<Item = (Place, &'static str, End)> {
    let places = PLACES.into_iter().flat_map(|place| VALUES.into_iter().map(move |value| (place, value)));
    places.flat_map(|(place, value)| ENDS.into_iter().map(move |end| (place, value, end)))
}

fn name((place, _, _, _): Place, value: &str, (end, _): End) -> String {
    format!("{value} in {place}{end}")
}

/// All combinations of places, values and ends.
pub fn grid() -> impl Iterator<Item = Result<Costly>> {
    combinations().map(|(place, value, end)| repeated(place, value, end))
}

fn repeated(place: Place, value: &str, end: End) -> Result<Costly> {
    let name = name(place, value, end);
    let ((_, before, after, are_members), (end_name, end)) = (place, end);
    let is_space = value.trim().is_empty();
    let unit = match (are_members, is_space) {
        (_, true) => value.to_owned(),
        (true, _) => format!("\"a\":{value},"),
        (false, _) => format!("{value},"),
    };
    // An unpaired surrogate, which raw scans accept.
    let refused = if end_name.contains("refused") { r#""\ud800""# } else { "0" };
    let last = if are_members { format!("\"a\":{refused}") } else { refused.to_owned() };
    // The body as the gateway writes it must fit as well.
    let written = |text: &str| json!(text).to_string().len() - 2;
    let several = !before.starts_with(r#"{"events""#);
    let room = if several { 1_000_000 - 200 } else { MAX_BODY_BYTES - 200 };
    let share = if several { 1_250_000 } else { MAX_PAYLOAD_BYTES - 4_096 };
    let in_message = value.len() + 3 * value.matches(['\u{fffe}', '\u{ffff}']).count() + unit.len() - value.len();
    let times = (room / if several { in_message } else { unit.len() }).min(share / written(&unit));
    let mut body = format!("{before}{}{last}{after}", unit.repeat(times));
    if several {
        let count = (MAX_BODY_BYTES - 100) / (body.len() + 1);
        let count = count.min((MAX_PAYLOAD_BYTES - 4_096) / (written(&body) + 1));
        body = format!(r#"{{"events":[{}]}}"#, vec![body; count].join(","));
    }
    let mut body = body.into_bytes();
    body.extend_from_slice(end);
    Costly::new(name, body)
}

impl Costly {
    /// The request with this body, which the gateway passes on as text if it is UTF-8. Otherwise, the body
    /// is cut at the start so that its base64 fits.
    fn new(name: String, body: Vec<u8>) -> Result<Self> {
        let mut event = gateway_event();
        match String::from_utf8(body) {
            Ok(text) => event["body"] = json!(text),
            Err(error) => {
                let body = error.into_bytes();
                let most = (MAX_PAYLOAD_BYTES - 4_096) / 4 * 3;
                let body = &body[body.len().saturating_sub(most)..];
                event["body"] = json!(BASE64_STANDARD.encode(body));
                event["isBase64Encoded"] = json!(true);
            }
        }
        Self::of_event(name, &event)
    }

    fn gzip(name: &str, compressed: &[u8]) -> Result<Self> {
        let mut event = gateway_event();
        event["headers"]["content-type"] = json!("application/gzip");
        event["headers"]["content-encoding"] = json!("gzip");
        event["isBase64Encoded"] = json!(true);
        event["body"] = json!(BASE64_STANDARD.encode(compressed));
        Self::of_event(name.to_owned(), &event)
    }

    fn of_event(name: String, event: &Value) -> Result<Self> {
        let payload = event.to_string().into_bytes();
        ensure!(payload.len() <= MAX_PAYLOAD_BYTES, "{name}: {} bytes", payload.len());
        Ok(Self { name, payload, is_bulk: event["rawPath"] == BULK })
    }
}

fn gzip(body: &[u8], level: Compression) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), level);
    encoder.write_all(body)?;
    Ok(encoder.finish()?)
}

/// The costliest combinations of the grid: the most expensive of each stage, and of each end.
const COSTLIEST: [&str; 9] = [
    "2.4703282292062327208e-324 in arrays in 5 events",
    "2.4703282292062327208e-324 in arrays in 5 events, refused",
    "0 in arrays in 5 events, refused",
    "0 in members of one event",
    "0 in members of 5 events, refused",
    "0 in ignored members, malformed",
    r#""" in arrays in 5 events"#,
    r#""\n" in members of one event, refused"#,
    "\"\u{fffe}\u{ffff}\u{fffe}\u{ffff}\u{fffe}\u{ffff}\u{fffe}\u{ffff}\" in arrays in 5 events",
];

/// The costliest requests.
///
/// # Errors
/// If one is larger than Lambda allows, or is not in the grid.
pub fn all() -> Result<Vec<Costly>> {
    let is_costly = |(place, value, end): &(Place, &str, End)| COSTLIEST.contains(&&*name(*place, value, *end));
    let found: Result<Vec<_>> =
        combinations().filter(is_costly).map(|(place, value, end)| repeated(place, value, end)).collect();
    let mut found = found?;
    ensure!(found.len() == COSTLIEST.len(), "the grid has {} of the costliest requests", found.len());
    found.extend(special()?);
    Ok(found)
}

/// Requests that no grid contains.
fn special() -> Result<Vec<Costly>> {
    let parts = [compressed()?, escaped()?, nested()?, invalid()?, vec![many_headers()?]];
    Ok(parts.into_iter().flatten().collect())
}

/// Bodies that take long to decompress.
fn compressed() -> Result<Vec<Costly>> {
    let honest = large_batch()?.body.into_bytes();
    let mut random = fastrand::Rng::with_seed(1);
    // As many members as the limit allows, each with its share of the body.
    let share = honest.len().div_ceil(MAX_GZIP_MEMBERS);
    let members: Result<Vec<_>> = honest.chunks(share).map(|part| gzip(part, Compression::fast())).collect();
    // Each block has tables of its own.
    let flushed = |bytes: usize| -> Result<Vec<u8>> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        for part in honest.chunks(bytes) {
            encoder.write_all(part)?;
            encoder.flush()?;
        }
        Ok(encoder.finish()?)
    };
    // Bytes that compress badly, so that each is a literal with a long code.
    let noise: Vec<u8> = (0..4_600_000).map(|_| random.u8(..)).collect();
    let text: Vec<u8> = (0..MAX_BODY_BYTES).map(|_| random.u8(32..126)).collect();
    [
        ("gzip, 1,024 members", members?.concat()),
        ("gzip, empty blocks", empty_blocks(4_600_000, false)),
        ("gzip, empty stored blocks", empty_blocks(4_600_000, true)),
        ("gzip, flushed every 256 bytes", flushed(256)?),
        ("gzip, flushed 4,000 times", flushed(honest.len() / 4_000)?),
        ("gzip of noise", gzip(&noise, Compression::best())?),
        ("gzip of a random text", gzip(&text, Compression::best())?),
    ]
    .into_iter()
    .map(|(name, body)| Costly::gzip(name, &body))
    .collect()
}

/// Characters that the gateway must escape.
fn escaped() -> Result<Vec<Costly>> {
    [("control characters", "\u{1}"), ("quotes", "\""), ("line ends", "\n")]
        .into_iter()
        .map(|(name, unit)| {
            let times = (MAX_PAYLOAD_BYTES - 4_096) / (json!(unit).to_string().len() - 2);
            Costly::new(format!("{name} only"), unit.repeat(times.min(MAX_BODY_BYTES)).into_bytes())
        })
        .collect()
}

/// Deep and long values.
fn nested() -> Result<Vec<Costly>> {
    let half = MAX_BODY_BYTES / 2 - 20;
    [
        ("open arrays", format!(r#"{{"events":[{}"#, "[".repeat(MAX_BODY_BYTES - 20))),
        ("open objects", format!(r#"{{"events":[{}"#, r#"{"":"#.repeat(1_040_000))),
        ("nested arrays, then no events", format!(r#"{{"x":{}{},"events":0}}"#, "[".repeat(half), "]".repeat(half))),
        (
            "one long number",
            format!(r#"{{"events":[{{"external_user_id":"u","name":"n","x":{}}}]}}"#, "9".repeat(1_000_000)),
        ),
    ]
    .into_iter()
    .map(|(name, body)| Costly::new(name.to_owned(), body.into_bytes()))
    .collect()
}

/// Long lists of violations.
fn invalid() -> Result<Vec<Costly>> {
    let wrong = r#"{"external_user_id":1,"name":1,"properties":1,"timestamp":1,"x":"\ud800"}"#;
    // The list of a bulk request has no limit. The rest of the body is spread over the events.
    let padded = wrong.replacen('{', &format!(r#"{{"y":[{}0],"#, "0,".repeat(2_500)), 1);
    // 99 violations keep the list of a batch open, so that every other event is read.
    let filler = "0,".repeat(4_900);
    let refused = format!(r#"{{"external_user_id":"u","name":"n","x":[{filler}"\ud800"]}}"#);
    let fine = format!(r#"{{"external_user_id":"u","name":"n","x":[{filler}0]}}"#);
    let late = [vec![&*refused; 99], vec![&*fine; 401]].concat();
    [
        ("100 violations in 20 of 500 events", BATCH, vec![wrong; 500]),
        ("99 violations late in 500 events", BATCH, late),
        ("bulk, five faults in 1,000 events", BULK, vec![wrong; 1_000]),
        ("bulk, five faults in 1,000 events of 5 KB", BULK, vec![&*padded; 1_000]),
    ]
    .into_iter()
    .map(|(name, path, events)| {
        let mut request = gateway_event();
        request["rawPath"] = json!(path);
        request["body"] = json!(format!(r#"{{"events":[{}]}}"#, events.join(",")));
        Costly::of_event(name.to_owned(), &request)
    })
    .collect()
}

/// Header names and values that the function must read, as a REST API writes them.
fn many_headers() -> Result<Costly> {
    let mut event = gateway_event();
    let names: Vec<String> = (0..MAX_HEADER_BYTES / 4).map(|number| format!("{number:x}")).collect();
    let headers = event["headers"].as_object_mut().context("headers")?;
    headers.extend(names.iter().map(|name| (name.clone(), json!(""))));
    let values: serde_json::Map<_, _> = names.iter().map(|name| (name.clone(), json!([""]))).collect();
    event["multiValueHeaders"] = values.into();
    event["multiValueHeaders"]["Authorization"] = json!(vec!["a"; MAX_HEADER_BYTES / 2]);
    event["body"] = json!("{}");
    Costly::of_event("10 KB of headers".to_owned(), &event)
}

/// A gzip body of about `bytes` bytes in deflate blocks that contain nothing.
fn empty_blocks(bytes: usize, stored: bool) -> Vec<u8> {
    let mut body = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    if stored {
        // A stored block of length 0, byte-aligned: 3 bits and padding, then the length and its complement.
        body.extend([0, 0, 0, 0xff, 0xff].repeat(bytes / 5));
    } else {
        // Four blocks of 10 bits: not final, fixed codes, end of block (7 zeros).
        let block = |at: usize| 0b010_u64 << (10 * at);
        let four = (0..4).map(block).fold(0, |bits, block| bits | block);
        body.extend(four.to_le_bytes()[..5].repeat(bytes / 5));
    }
    body
}
