//! The requests to measure: batches of events in gateway events, and their expected outcome.

pub mod costly;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use contract::limits::MAX_BODY_BYTES;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Write as _;

/// The API key of the requests.
pub const API_KEY: &str = "sk_live_0000000000000000000000000000000000000000";
/// The project of the key.
pub const PROJECT: &str = "acme";

/// The approximate size of a small event in bytes.
pub const SMALL: usize = 200;
/// The approximate size of a large event in bytes. 500 of them are just under 5 MB.
pub const LARGE: usize = 10_400;

/// The lanes of an ordered queue: the default of docs/contract.md.
pub const LANES: u16 = 10;
/// In a bulk request, the last of this many events is invalid.
const INVALID_EVERY: usize = 100;

/// The expected outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 202, and every event in the queue once.
    Accepted,
    /// 202 as a replay, and nothing in the queue.
    Replayed,
    /// 422, and nothing in the queue.
    Invalid,
    /// 200 from the bulk endpoint, and every valid event in the queue once.
    PartlyAccepted,
}

/// One kind of request.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The name in tables and files.
    pub name: &'static str,
    /// The expected outcome.
    pub outcome: Outcome,
    /// The number of events in a batch.
    pub events: usize,
    /// The approximate size of an event in bytes.
    pub event_bytes: usize,
    /// Whether the body is compressed.
    pub gzip: bool,
    /// `MAX_EVENTS_PER_MESSAGE`, if it is not the default.
    pub events_per_message: Option<u32>,
    /// Whether the queue is an ordered one with [`LANES`] lanes.
    pub ordered: bool,
    /// Measured requests per round, at usual latency.
    pub requests: usize,
    /// Warm-up requests, which let a just-in-time compiler finish.
    pub warm_up: usize,
}

impl Shape {
    /// A batch of `events` small events.
    #[must_use]
    pub const fn small(name: &'static str, events: usize, requests: usize) -> Self {
        Self {
            name,
            outcome: Outcome::Accepted,
            events,
            event_bytes: SMALL,
            gzip: false,
            events_per_message: None,
            ordered: false,
            requests,
            warm_up: 30,
        }
    }

    /// All shapes that `make bench` sends to the function.
    #[must_use]
    pub fn all() -> Vec<Self> {
        vec![
            Self::small("1 event", 1, 100),
            Self::small("10 events", 10, 100),
            Self::small("100 events", 100, 100),
            Self::small("500 events", 500, 60),
            Self::five_megabytes(),
            Self { name: "5 MB, gzip", gzip: true, ..Self::five_megabytes() },
            Self { name: "replay", outcome: Outcome::Replayed, ..Self::small("", 100, 100) },
            Self { name: "invalid batch", outcome: Outcome::Invalid, ..Self::small("", 100, 100) },
            Self { name: "500 events, one a message", events_per_message: Some(1), ..Self::small("", 500, 40) },
            Self { name: "500 events, ordered queue", ordered: true, ..Self::small("", 500, 60) },
            Self { name: "1000 events, bulk", outcome: Outcome::PartlyAccepted, ..Self::small("", 1000, 60) },
        ]
    }

    /// Whether the peers are measured with this shape as well.
    #[must_use]
    pub fn is_compared(&self) -> bool {
        matches!(self.name, "100 events" | "500 events" | "5 MB")
    }

    fn five_megabytes() -> Self {
        Self { name: "5 MB", event_bytes: LARGE, requests: 25, warm_up: 6, ..Self::small("", 500, 0) }
    }

    /// Builds the batch.
    ///
    /// # Errors
    /// If the batch is larger than docs/contract.md or Lambda allows.
    pub fn batch(&self) -> Result<Batch> {
        Batch::new(self)
    }
}

/// A batch of 5 MB.
fn large_batch() -> Result<Batch> {
    Shape::five_megabytes().batch()
}

/// A batch, and the gateway events that carry it.
pub struct Batch {
    /// The JSON text of each event, in order.
    pub events: Vec<String>,
    /// The indexes of the events that are invalid.
    pub invalid: Vec<usize>,
    /// The size of the body before compression.
    pub body_bytes: usize,
    /// The decoded body.
    pub body: String,
    before_key: Vec<u8>,
    after_key: Vec<u8>,
    fixed_key: bool,
}

impl Batch {
    fn new(shape: &Shape) -> Result<Self> {
        let mut events: Vec<String> = (0..shape.events).map(|index| event(index, shape.event_bytes)).collect();
        let invalid: Vec<usize> = match shape.outcome {
            Outcome::Invalid => vec![events.len() - 1],
            Outcome::PartlyAccepted => (INVALID_EVERY - 1..events.len()).step_by(INVALID_EVERY).collect(),
            Outcome::Accepted | Outcome::Replayed => Vec::new(),
        };
        for index in &invalid {
            events[*index] = events[*index].replace(r#""name":"#, r#""title":"#);
        }
        let body = format!(r#"{{"events":[{}]}}"#, events.join(","));
        ensure!(body.len() <= MAX_BODY_BYTES, "the batch is too large: {} bytes", body.len());

        let mut gateway = gateway_event();
        if shape.outcome == Outcome::PartlyAccepted {
            gateway["rawPath"] = json!(costly::BULK);
        }
        if shape.gzip {
            let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
            gzip.write_all(body.as_bytes())?;
            gateway["headers"]["content-type"] = json!("application/gzip");
            gateway["headers"]["content-encoding"] = json!("gzip");
            gateway["isBase64Encoded"] = json!(true);
            gateway["body"] = json!(BASE64_STANDARD.encode(gzip.finish()?));
        } else {
            gateway["body"] = json!(body);
        }
        let text = gateway.to_string();
        ensure!(text.len() <= 6_291_456, "the event is larger than Lambda allows: {} bytes", text.len());
        let (before, after) = text.split_once(KEY_MARK).context("no idempotency key in the gateway event")?;
        Ok(Self {
            before_key: before.into(),
            after_key: after.into(),
            body_bytes: body.len(),
            body,
            events,
            invalid,
            fixed_key: shape.outcome == Outcome::Replayed,
        })
    }

    /// The gateway event of the request with this number. Each has its own idempotency key, unless the
    /// expected outcome is a replay.
    #[must_use]
    pub fn request(&self, number: usize) -> Bytes {
        let number = if self.fixed_key { 0 } else { number };
        let key = format!("7b6c7e9e-2c2d-4a8d-9d3a-{number:012}");
        [&self.before_key, key.as_bytes(), &self.after_key].concat().into()
    }
}

const KEY_MARK: &str = "the-idempotency-key";

/// The event of an API Gateway HTTP API, in payload format 2.0.
fn gateway_event() -> Value {
    json!({
        "version": "2.0",
        "routeKey": "POST /api/v1/events/batch",
        "rawPath": "/api/v1/events/batch",
        "rawQueryString": "",
        "headers": {
            "accept": "*/*",
            "accept-encoding": "gzip, deflate, br",
            "authorization": format!("Bearer {API_KEY}"),
            "content-type": "application/json",
            "host": "a1b2c3d4e5.execute-api.us-east-1.amazonaws.com",
            "idempotency-key": KEY_MARK,
            "user-agent": "example-client/1.0",
            "x-amzn-trace-id": "Root=1-6b03e81b-3d1f0c5a7e9b2d4f6a8c0e1f",
            "x-forwarded-for": "203.0.113.7",
            "x-forwarded-port": "443",
            "x-forwarded-proto": "https"
        },
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "a1b2c3d4e5",
            "domainName": "a1b2c3d4e5.execute-api.us-east-1.amazonaws.com",
            "domainPrefix": "a1b2c3d4e5",
            "http": {
                "method": "POST",
                "path": "/api/v1/events/batch",
                "protocol": "HTTP/1.1",
                "sourceIp": "203.0.113.7",
                "userAgent": "example-client/1.0"
            },
            "requestId": "BwwWCmKZxUOAcLE=",
            "routeKey": "POST /api/v1/events/batch",
            "stage": "$default",
            "time": "23/Nov/2026:09:14:03 +0000",
            "timeEpoch": 1_795_425_243_127_u64
        },
        "isBase64Encoded": false
    })
}

/// The event at `index`, of about `bytes` bytes: a few small properties of the usual types and, if there
/// is room, lines of text with some characters that need escaping.
fn event(index: usize, bytes: usize) -> String {
    let mut event = format!(
        r#"{{"external_user_id":"usr_{index:06}","name":"order_completed","timestamp":"2026-11-23T09:14:03.127Z","properties":{{"plan":"trial","amount":{}.5,"items":{},"referrer":"https://example.com/p/{index}","returning":true"#,
        100 + index * 7 % 900,
        1 + index % 9,
    );
    let mut random = fastrand::Rng::with_seed(index as u64);
    for line in 0.. {
        if event.len() + WORDS_A_LINE * 8 > bytes {
            break;
        }
        let words: Vec<&str> = (0..WORDS_A_LINE).map(|_| WORDS[random.usize(..WORDS.len())]).collect();
        // Writing to a string cannot fail.
        let _ = write!(event, r#","line_{line:02}":"{} \"{:08x}\"\n""#, words.join(" "), random.u32(..));
    }
    event.push_str("}}");
    event
}

/// Long enough that the largest event has fewer than the 100 keys that docs/contract.md allows.
const WORDS_A_LINE: usize = 14;

const WORDS: [&str; 32] = [
    "account",
    "basket",
    "checkout",
    "delivery",
    "email",
    "invoice",
    "journey",
    "keyboard",
    "ledger",
    "market",
    "number",
    "order",
    "payment",
    "quantity",
    "receipt",
    "shipping",
    "ticket",
    "upgrade",
    "voucher",
    "warehouse",
    "yearly",
    "zone",
    "across",
    "before",
    "during",
    "except",
    "from",
    "inside",
    "near",
    "over",
    "since",
    "Zürich",
];

#[cfg(test)]
mod tests {
    use super::*;
    use contract::limits::MAX_PROPERTIES_KEYS;

    #[test]
    fn events_have_about_the_requested_size() {
        for (wanted, most_off) in [(SMALL, 40), (1_000, 130), (LARGE, 150)] {
            let event = event(499, wanted);
            assert!(event.len().abs_diff(wanted) <= most_off, "{} instead of {wanted}", event.len());
            let keys = serde_json::from_str::<Value>(&event).unwrap()["properties"].as_object().unwrap().len();
            assert!(keys <= MAX_PROPERTIES_KEYS, "{keys}");
        }
    }

    #[test]
    fn every_shape_fits_into_a_gateway_event() {
        for shape in Shape::all() {
            let batch = shape.batch().unwrap();
            let request: Value = serde_json::from_slice(&batch.request(7)).unwrap();
            assert!(request["headers"]["idempotency-key"].as_str().unwrap().len() == 36);
        }
    }
}
