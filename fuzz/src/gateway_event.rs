//! The target `gateway_event`: the payload of an invocation.

use super::expand::expand;
use super::function::{Function, Response};
use super::messages::{assert_few, assert_same_events};
use super::meter::Meter;
use super::reference::{self, MAX_BODY_BYTES, Verdict, Violation, assert_violations};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use event_ingest::gateway::{GatewayEvent, Header};
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use std::io::{Read, Write};

/// The most bytes of a wrapped body. It is small because `batch` covers large bodies, and because one of
/// the samples contains a gzip bomb.
const MAX_WRAPPED: usize = 100_000;

/// Invokes the function twice with a payload. Each response must be the one that docs/contract.md
/// requires, with as few calls as the protocol allows. Only a 202 may create a record or a message.
///
/// # Panics
/// If a response differs, or if the function makes any other call or write.
pub fn run(input: &[u8], meter: Meter) {
    let payload = payload(input);
    let parse = || serde_json::from_slice::<GatewayEvent>(&payload);
    let Ok(event) = Function::decoding(payload.len()).check(meter, parse) else { return };
    let expected = Expected::of(&event);

    let function = Function::new();
    let handling = Function::handling(payload.len() + expected.body_bytes);
    let response = handling.check(meter, || function.invoke(event));
    expected.check(&response);

    let log: Value = serde_json::from_slice(&function.log()).expect("the log is one line of JSON");
    assert!(log["BodyBytes"].as_u64().is_none_or(|bytes| bytes <= MAX_BODY_BYTES as u64), "{log}");
    let (calls, sent) = (function.calls(), function.queue().messages());
    assert!(calls.keys <= 1 && calls.windows <= 1, "{calls:?}");
    if response.status == 202 {
        assert!(!response.replayed);
        // The claim and the completion.
        assert_eq!((calls.records, function.records()), (2, 1));
        assert_same_events(&expected.events, &sent);
        assert_few(function.queue(), expected.events.len(), function.max_events_per_message());
    } else {
        assert_eq!((calls.records, calls.sends), (0, 0), "a 4xx claims and sends nothing");
    }

    let again = function.invoke(serde_json::from_slice(&payload).expect("the payload was valid before"));
    assert_eq!((again.status, &again.body), (response.status, &response.body));
    assert_eq!(again.replayed, again.status == 202);
    assert_eq!(function.calls().records, calls.records + usize::from(again.replayed), "a replay is one call");
    assert_eq!((function.calls().sends, function.queue().messages()), (calls.sends, sent), "a retry sends nothing");
}

/// An input whose first byte is not a control character is a payload. Otherwise it is a body, and the
/// bits of the first byte say how to wrap it, because a fuzzer rarely finds valid base64 or gzip.
fn payload(input: &[u8]) -> Vec<u8> {
    let Some((&wrapping, body)) = input.split_first().filter(|(first, _)| **first < 0x20) else {
        return input.to_vec();
    };
    let bit = |bit: u8| wrapping >> bit & 1 == 1;
    let (is_rest, is_single, is_gzip, is_plain, is_text) = (bit(0), bit(1), bit(2), bit(3), bit(4));
    let mut body = expand(body, MAX_WRAPPED);
    if is_gzip && is_plain {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&body).expect("memory accepts every write");
        body = encoder.finish().expect("memory accepts every write");
    }
    let path = if is_single { "/prod/api/v1/events" } else { "/api/v1/events/batch" };
    let mut headers = json!({
        "authorization": "Bearer sk_live_0123456789abcdefghijklmnopqrstuvwxyzABCD",
        "content-type": "application/json",
        "idempotency-key": "fuzz",
    });
    if is_gzip {
        headers["content-encoding"] = "gzip".into();
    }
    let body = if is_text { String::from_utf8_lossy(&body).into_owned() } else { BASE64_STANDARD.encode(body) };
    let event = if is_rest {
        json!({ "path": path, "httpMethod": "POST", "headers": headers, "body": body, "isBase64Encoded": !is_text })
    } else {
        let context = json!({ "http": { "method": "POST" }, "requestId": "gateway-request-id" });
        json!({ "version": "2.0", "rawPath": path, "headers": headers, "requestContext": context,
            "body": body, "isBase64Encoded": !is_text })
    };
    event.to_string().into_bytes()
}

/// The response that docs/contract.md requires.
struct Expected {
    status: u16,
    code: Option<&'static str>,
    /// The violations of a 422.
    violations: Vec<Violation>,
    /// The events of a 202.
    events: Vec<String>,
    /// The bytes of the body that the function has to decode: zero if it responds before that.
    body_bytes: usize,
}

impl Expected {
    fn error(status: u16, code: &'static str) -> Self {
        Self { status, code: Some(code), violations: Vec::new(), events: Vec::new(), body_bytes: 0 }
    }

    /// docs/contract.md, "Order of checks", 1 to 9.
    fn of(event: &GatewayEvent) -> Self {
        let path: Vec<&str> = event.path().split('/').collect();
        let is_single = match path.as_slice() {
            ["", prefix @ .., "api", "v1", "events", "batch"] if !prefix.contains(&"") => false,
            ["", prefix @ .., "api", "v1", "events"] if !prefix.contains(&"") => true,
            _ => return Self::error(404, "not_found"),
        };
        if event.method() != "POST" {
            return Self::error(405, "method_not_allowed");
        }
        let headers = reference::Headers {
            authorization: event.header(Header::Authorization),
            content_type: event.header(Header::ContentType),
            content_encoding: event.header(Header::ContentEncoding),
            idempotency_key: event.header(Header::IdempotencyKey),
        };
        if let (status, Some(code)) = headers.response() {
            return Self::error(status, code);
        }
        let (expected, body_bytes) = match decoded(event, headers.content_encoding) {
            Ok(body) => (Self::of_body(&body, is_single), body.len()),
            // Decompression stops at the limit.
            Err(error) => (error, MAX_BODY_BYTES),
        };
        Self { body_bytes, ..expected }
    }

    fn of_body(body: &[u8], is_single: bool) -> Self {
        match if is_single { reference::single(body) } else { reference::batch(body) } {
            Verdict::Malformed => Self::error(400, "malformed_json"),
            Verdict::Invalid(violations) => Self { violations, ..Self::error(422, "validation_failed") },
            Verdict::Events(events) => {
                let events = events.into_iter().map(str::to_owned).collect();
                Self { status: 202, code: None, violations: Vec::new(), events, body_bytes: 0 }
            }
        }
    }

    fn check(&self, response: &Response) {
        let errors = response.body["errors"].as_array().cloned().unwrap_or_default();
        let code = errors.first().and_then(|error| error["code"].as_str());
        assert_eq!((response.status, code), (self.status, self.code), "{}", response.body);
        if code == Some("malformed_json") {
            assert!(errors[0]["message"].as_str().is_some_and(|message| message.contains(" at line ")), "{errors:?}");
        }
        if code == Some("validation_failed") {
            let found = errors.iter().map(|error| (error["field"].as_str(), error["message"].as_str().unwrap_or("")));
            assert_violations(&found.collect::<Vec<_>>(), &self.violations);
        } else {
            assert!(errors.iter().all(|error| error["field"].is_null()), "{errors:?}");
        }
    }
}

/// The body without base64 and gzip, or the response if it cannot be decoded.
fn decoded(event: &GatewayEvent, encoding: Option<&str>) -> Result<Vec<u8>, Expected> {
    let malformed = || Expected::error(400, "malformed_encoding");
    let too_large = || Expected::error(413, "payload_too_large");
    let text = event.body.as_deref().unwrap_or("");
    let body = if event.is_base64_encoded { BASE64_STANDARD.decode(text).ok() } else { Some(text.as_bytes().to_vec()) };
    let body = body.ok_or_else(malformed)?;
    if body.len() > MAX_BODY_BYTES {
        return Err(too_large());
    }
    if !encoding.is_some_and(|encoding| encoding.eq_ignore_ascii_case("gzip")) {
        return Ok(body);
    }
    if !body.starts_with(&[0x1f, 0x8b]) {
        return if body.trim_ascii_start().starts_with(b"{") { Ok(body) } else { Err(malformed()) };
    }
    let mut decoded = Vec::new();
    let read = MultiGzDecoder::new(&*body).take(MAX_BODY_BYTES as u64 + 1).read_to_end(&mut decoded);
    read.map_err(|_| malformed())?;
    if decoded.len() > MAX_BODY_BYTES { Err(too_large()) } else { Ok(decoded) }
}
