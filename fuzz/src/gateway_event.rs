//! The target `gateway_event`: the payload of an invocation.

use super::checks::Checks;
use super::expand::expand;
use super::function::{Function, Response};
use super::messages::{assert_few, assert_same_events, assert_same_values};
use super::reference::{Body, BulkEvent, BulkVerdict, Headers, MAX_BODY_BYTES, Verdict, Violation, assert_violations};
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
/// requires, with as few calls as the protocol allows. Only a success may create a record or a message.
///
/// # Panics
/// If a response differs, or if the function makes any other call or write.
pub fn run(input: &[u8], checks: Checks) {
    let payload = payload(input);
    let parse = || serde_json::from_slice::<GatewayEvent>(&payload);
    let Ok(event) = Function::decoding(payload.len()).check(checks.meter, parse) else { return };
    let expected = Expected::of(&event);

    let function = Function::new();
    let handling = Function::handling(payload.len() + expected.body_bytes);
    let response = handling.check(checks.meter, || function.invoke(event));
    // The reference cannot count deflate blocks, which take at least ten bits each.
    let message = response.body["errors"][0]["message"].as_str().unwrap_or_default();
    if message.contains("8,192 deflate blocks") {
        assert!(payload.len() > 8192 * 10 / 8, "{message}");
        return;
    }
    expected.check(&response);

    let log: Value = serde_json::from_slice(&function.log()).expect("the log is one line of JSON");
    assert!(log["BodyBytes"].as_u64().is_none_or(|bytes| bytes <= MAX_BODY_BYTES as u64), "{log}");
    let (calls, sent) = (function.calls(), function.queue().messages().clone());
    assert!(calls.keys <= 1 && calls.windows <= 1, "{calls:?}");
    let queues = !expected.events.is_empty();
    if queues {
        assert!(!response.replayed);
        // The claim and the completion.
        assert_eq!((calls.records, function.records()), (2, 1));
        assert_same_events(&expected.events, &sent);
        if checks.are_slow(input) {
            assert_same_values(&expected.events, &sent);
        }
        assert_few(function.queue(), expected.events.len(), function.max_events_per_message());
    } else {
        assert_eq!((calls.records, calls.sends), (0, 0), "without a valid event, nothing is claimed or sent");
    }

    let again = function.invoke(serde_json::from_slice(&payload).expect("the payload was valid before"));
    assert_eq!((again.status, &again.body), (response.status, &response.body));
    assert_eq!(again.replayed, queues);
    assert_eq!(function.calls().records, calls.records + usize::from(again.replayed), "a replay is one call");
    assert_eq!((function.calls().sends, &*function.queue().messages()), (calls.sends, &sent), "a retry sends nothing");
}

/// An input whose first byte is not a control character is a payload. Otherwise it is a body, and the
/// bits of the first byte say how to wrap it, because a fuzzer rarely finds valid base64 or gzip. The two bits
/// for gzip also stand for a bulk request, whose idempotency key the bit for a single event leaves out.
fn payload(input: &[u8]) -> Vec<u8> {
    let Some((&wrapping, body)) = input.split_first().filter(|(first, _)| **first < 0x20) else {
        return input.to_vec();
    };
    let bit = |bit: u8| wrapping >> bit & 1 == 1;
    let (is_rest, is_single, is_gzip, is_plain, is_text) = (bit(0), bit(1), bit(2), bit(3), bit(4));
    let is_bulk = is_plain && !is_gzip;
    let mut body = expand(body, MAX_WRAPPED).into_owned();
    if is_gzip && is_plain {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&body).expect("memory accepts every write");
        body = encoder.finish().expect("memory accepts every write");
    }
    let path = match (is_bulk, is_single) {
        (true, _) => "/api/v1/events/bulk",
        (false, true) => "/prod/api/v1/events",
        (false, false) => "/api/v1/events/batch",
    };
    let mut headers = json!({
        "authorization": "Bearer sk_live_0123456789abcdefghijklmnopqrstuvwxyzABCD",
        "content-type": "application/json",
        "idempotency-key": "fuzz",
    });
    if is_gzip {
        headers["content-encoding"] = "gzip".into();
    }
    if is_bulk && is_single {
        headers["idempotency-key"] = Value::Null;
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
    /// The violations of a 422, or of a bulk request without a list of events.
    violations: Vec<Violation>,
    /// The events to be queued, with their indexes in the request.
    events: Vec<(usize, String)>,
    /// The violations of each rejected event of a bulk request, with its index.
    rejected: Vec<(usize, Vec<Violation>)>,
    /// The bytes of the body that the function has to decode: zero if it responds before that.
    body_bytes: usize,
}

impl Expected {
    fn success(status: u16) -> Self {
        Self { status, code: None, violations: Vec::new(), events: Vec::new(), rejected: Vec::new(), body_bytes: 0 }
    }

    fn error(status: u16, code: &'static str) -> Self {
        Self { code: Some(code), ..Self::success(status) }
    }

    /// docs/contract.md, "Order of checks", 1 to 9.
    fn of(event: &GatewayEvent) -> Self {
        let path: Vec<&str> = event.path().split('/').collect();
        let of_body = match path.as_slice() {
            ["", prefix @ .., "api", "v1", "events", "batch"] if !prefix.contains(&"") => Self::of_batch,
            ["", prefix @ .., "api", "v1", "events", "bulk"] if !prefix.contains(&"") => Self::of_bulk,
            ["", prefix @ .., "api", "v1", "events"] if !prefix.contains(&"") => Self::of_single,
            _ => return Self::error(404, "not_found"),
        };
        if event.method() != "POST" {
            return Self::error(405, "method_not_allowed");
        }
        let headers = Headers {
            authorization: event.header(Header::Authorization),
            content_type: event.header(Header::ContentType),
            content_encoding: event.header(Header::ContentEncoding),
            idempotency_key: event.header(Header::IdempotencyKey),
        };
        if let (status, Some(code)) = headers.response(!event.path().ends_with("/bulk")) {
            return Self::error(status, code);
        }
        let (expected, body_bytes) = match decoded(event, headers.content_encoding) {
            Ok(body) => (of_body(&body), body.len()),
            // Decompression stops at the limit.
            Err(error) => (error, MAX_BODY_BYTES),
        };
        Self { body_bytes, ..expected }
    }

    fn of_batch(body: &[u8]) -> Self {
        Self::of_verdict(Body::read(body).batch())
    }

    fn of_single(body: &[u8]) -> Self {
        Self::of_verdict(Body::read(body).single())
    }

    fn of_verdict(verdict: Verdict<'_>) -> Self {
        match verdict {
            Verdict::Malformed => Self::error(400, "malformed_json"),
            Verdict::Invalid(violations) => Self { violations, ..Self::error(422, "validation_failed") },
            Verdict::Events(events) => {
                Self { events: events.into_iter().map(str::to_owned).enumerate().collect(), ..Self::success(202) }
            }
        }
    }

    fn of_bulk(body: &[u8]) -> Self {
        match Body::read(body).bulk() {
            BulkVerdict::Malformed => Self::error(400, "malformed_json"),
            BulkVerdict::Invalid(rule) => {
                let violations = vec![Violation { field: Some("events".to_owned()), rules: vec![rule] }];
                Self { violations, ..Self::error(400, "validation_failed") }
            }
            BulkVerdict::Events(events) => {
                let mut expected = Self::success(200);
                for (index, event) in events.into_iter().enumerate() {
                    match event {
                        BulkEvent::Valid(text) => expected.events.push((index, text.to_owned())),
                        BulkEvent::Invalid(violations) => expected.rejected.push((index, violations)),
                    }
                }
                expected
            }
        }
    }

    /// Checks that the response to a bulk request reports each rejected event.
    fn check_rejected(&self, errors: &[Value]) {
        let mut errors = errors.chunk_by(|first, second| first["index"] == second["index"]);
        for (index, violations) in &self.rejected {
            let of_event = errors.next().expect("the errors of an event");
            assert_eq!(of_event[0]["index"], *index);
            assert_violations(&fields_and_messages(of_event), violations);
        }
        assert_eq!(errors.next(), None);
    }

    fn check(&self, response: &Response) {
        if response.status == 200 {
            self.check_rejected(response.body["data"]["errors"].as_array().expect("errors"));
        }
        let errors = response.body["errors"].as_array().cloned().unwrap_or_default();
        let code = errors.first().and_then(|error| error["code"].as_str());
        assert_eq!((response.status, code), (self.status, self.code), "{}", response.body);
        if code == Some("malformed_json") {
            assert!(errors[0]["message"].as_str().is_some_and(|message| message.contains(" at line ")), "{errors:?}");
        }
        if code == Some("validation_failed") {
            assert_violations(&fields_and_messages(&errors), &self.violations);
        } else {
            assert!(errors.iter().all(|error| error["field"].is_null()), "{errors:?}");
        }
    }
}

fn fields_and_messages(errors: &[Value]) -> Vec<(Option<String>, &str)> {
    let field = |error: &Value| error["field"].as_str().map(str::to_owned);
    errors.iter().map(|error| (field(error), error["message"].as_str().unwrap_or(""))).collect()
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
    let is_gzip = body.starts_with(&[0x1f, 0x8b]);
    match encoding.is_some_and(|encoding| encoding.eq_ignore_ascii_case("gzip")) {
        false if is_gzip => return Err(malformed()),
        false => return Ok(body),
        true if is_gzip => {}
        // A proxy decompressed it.
        true if body.trim_ascii_start().starts_with(b"{") || Body::read(&body).is_json() => return Ok(body),
        true => return Err(malformed()),
    }
    let mut decoded = Vec::new();
    let read = MultiGzDecoder::new(&*body).take(MAX_BODY_BYTES as u64 + 1).read_to_end(&mut decoded);
    read.map_err(|_| malformed())?;
    if decoded.len() > MAX_BODY_BYTES { Err(too_large()) } else { Ok(decoded) }
}
