//! What is fuzzed: four functions of any bytes, each of which panics where a promise is broken.

use super::ports::{FakeApp, MemoryQueue, StillClock, app};
use super::reference::{self, Verdict, Violation, in_message};
use super::tape::Tape;
use arbitrary::{Result as Generated, Unstructured};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use contract::api_key::ApiKey;
use contract::batch::{Batch, BatchError};
use contract::idempotency_key::IdempotencyKey;
use contract::tenant::{Mode, ProjectId, Tenant};
use event_ingest::clock::{Clock, Timestamp};
use event_ingest::deadline::Deadline;
use event_ingest::delivery::{Delivery, Envelope, SendResult, Sender};
use event_ingest::gateway::{GatewayEvent, Header};
use event_ingest::idempotency::{BatchId, Delivered};
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use lambda_runtime::{Context, LambdaEvent};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::num::NonZeroU16;
use std::pin::pin;
use std::task::{Poll, Waker};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
/// The most bytes of a decoded body.
const MAX_BODY: usize = 5 * MIB;
/// The most bytes of an event as it stands in a message.
const MAX_EVENT: usize = 1_047_552;
/// The most bytes that `batch` makes of an input: enough for the limits of an event.
const MOST_OF_A_BATCH: usize = 1_100_000;
/// The most bytes that `gateway_event` wraps: few, as the samples hold a bomb, and bodies are
/// `batch`'s part.
const MOST_WRAPPED: usize = 100_000;
/// The most bytes of most batches that `packing` makes up.
const SMALL_BATCH: usize = 16 * KIB;
/// As configured by default.
const MOST_EVENTS: NonZeroU16 = NonZeroU16::new(50).unwrap();

/// How much memory was allocated at most.
pub struct Meter {
    /// Counts from here.
    pub reset: fn(),
    /// Bytes, beyond those at the reset.
    pub peak: fn() -> usize,
}

impl Meter {
    /// Runs something that must not allocate more than `most` bytes at any time.
    fn bounded<T>(&self, most: usize, run: impl FnOnce() -> T) -> T {
        (self.reset)();
        let result = run();
        let peak = (self.peak)();
        assert!(peak <= most, "{peak} bytes were allocated at once; {most} are enough");
        result
    }
}

/// The payload of an invocation, or how to make one. The answer must be the one that the contract
/// demands of it, and the same when asked again; only a 202 may leave anything behind.
///
/// # Panics
/// Where it is not.
pub fn gateway_event(input: &[u8], meter: &Meter) {
    let payload = payload(input);
    let allowance = MIB + 4 * payload.len();
    let parse = || serde_json::from_slice::<GatewayEvent>(&payload);
    let Ok(event) = meter.bounded(allowance, parse) else { return };
    let demanded = demanded(&event);

    let (app, log) = app(MOST_EVENTS);
    // A compressed body may grow to 5 MB, and stands in a buffer that doubled and in messages.
    let is_gzip = event.header(Header::ContentEncoding).is_some_and(|value| value.eq_ignore_ascii_case("gzip"));
    let allowance = if is_gzip { 40 * MIB } else { MIB + 8 * payload.len() };
    let answer = meter.bounded(allowance, || invoke(&app, event));
    demanded.check(&answer);

    let log: Value = serde_json::from_slice(&log.take()).expect("one line of JSON");
    assert!(log["BodyBytes"].as_u64().is_none_or(|bytes| bytes <= MAX_BODY as u64), "kept too much: {log}");
    if answer.status == 202 {
        assert!(!answer.replayed);
        assert_eq!(app.pipeline.store.records(), 1);
        assert_identity(&demanded.events, &app.pipeline.queue.messages());
    } else {
        assert_eq!((app.pipeline.store.records(), app.pipeline.queue.messages().len()), (0, 0), "a 4xx sends nothing");
    }

    let sent = app.pipeline.queue.messages();
    let again = invoke(&app, serde_json::from_slice(&payload).expect("it was an event before"));
    assert_eq!((again.status, &again.body), (answer.status, &answer.body));
    assert_eq!(again.replayed, again.status == 202);
    assert_eq!(app.pipeline.queue.messages(), sent, "a retry sends nothing twice");
}

/// An input that begins with no control character is a payload. Others are bodies, wrapped as
/// the bits of that character say, since no fuzzer finds its way through base64 and gzip.
fn payload(input: &[u8]) -> Vec<u8> {
    let Some((&how, body)) = input.split_first().filter(|(first, _)| **first < 0x20) else {
        return input.to_vec();
    };
    let bit = |bit: u8| how >> bit & 1 == 1;
    let (is_rest, is_single, is_gzip, is_plain, is_text) = (bit(0), bit(1), bit(2), bit(3), bit(4));
    let mut body = expanded(body, MOST_WRAPPED);
    if is_gzip && is_plain {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&body).expect("in memory");
        body = encoder.finish().expect("in memory");
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

/// Makes long texts of short inputs: 0xFF, which is never part of UTF-8, a length and three bytes
/// of a count stand before a run of that length, which is repeated so often.
fn expanded(input: &[u8], most: usize) -> Vec<u8> {
    let mut output = Vec::new();
    let mut rest = input;
    while let Some((&first, after)) = rest.split_first() {
        if let (0xFF, [length, c0, c1, c2, run @ ..]) = (first, after) {
            let (run, after) = run.split_at(run.len().min(usize::from(*length)));
            let room = (most - output.len().min(most)) / run.len().max(1);
            let count = usize::from(*c0) << 16 | usize::from(*c1) << 8 | usize::from(*c2);
            output.extend(run.repeat(count.min(room)));
            rest = after;
        } else {
            output.push(first);
            rest = after;
        }
    }
    output
}

/// What the contract says that an event must be answered.
struct Demanded {
    status: u16,
    code: Option<&'static str>,
    /// Of a 422: each place at fault.
    faults: Vec<Violation>,
    /// Of a 202: the events.
    events: Vec<String>,
}

impl Demanded {
    fn error(status: u16, code: &'static str) -> Self {
        Self { status, code: Some(code), faults: Vec::new(), events: Vec::new() }
    }

    fn check(&self, answer: &Answer) {
        let errors = answer.body["errors"].as_array().cloned().unwrap_or_default();
        let code = errors.first().and_then(|error| error["code"].as_str());
        assert_eq!((answer.status, code), (self.status, self.code), "{}", answer.body);
        if code == Some("malformed_json") {
            assert!(errors[0]["message"].as_str().is_some_and(|what| what.contains(" at line ")), "{errors:?}");
        }
        if code == Some("validation_failed") {
            let found = errors.iter().map(|error| (error["field"].as_str(), error["message"].as_str().unwrap_or("")));
            assert_faults(&found.collect::<Vec<_>>(), &self.faults);
        } else {
            assert!(errors.iter().all(|error| error["field"].is_null()), "{errors:?}");
        }
    }
}

/// Sections 1 and 2 of the contract, down to the limit of the rate.
fn demanded(event: &GatewayEvent) -> Demanded {
    let path: Vec<&str> = event.path().split('/').collect();
    let is_single = match path.as_slice() {
        ["", "api", "v1", "events", "batch"] => false,
        ["", "api", "v1", "events"] => true,
        ["", stage, "api", "v1", "events", "batch"] if !stage.is_empty() => false,
        ["", stage, "api", "v1", "events"] if !stage.is_empty() => true,
        _ => return Demanded::error(404, "not_found"),
    };
    if event.method() != "POST" {
        return Demanded::error(405, "method_not_allowed");
    }
    let headers = reference::Headers {
        authorization: event.header(Header::Authorization),
        content_type: event.header(Header::ContentType),
        content_encoding: event.header(Header::ContentEncoding),
        idempotency_key: event.header(Header::IdempotencyKey),
    };
    if let (status, Some(code)) = headers.answer() {
        return Demanded::error(status, code);
    }
    let text = event.body.as_deref().unwrap_or("");
    let body = if event.is_base64_encoded { BASE64_STANDARD.decode(text).ok() } else { Some(text.as_bytes().to_vec()) };
    let Some(mut body) = body else { return Demanded::error(400, "malformed_encoding") };
    if body.len() > MAX_BODY {
        return Demanded::error(413, "payload_too_large");
    }
    if headers.content_encoding.is_some_and(|encoding| encoding.eq_ignore_ascii_case("gzip")) {
        if body.starts_with(&[0x1f, 0x8b]) {
            let mut decoded = Vec::new();
            let read = MultiGzDecoder::new(&*body).take(MAX_BODY as u64 + 1).read_to_end(&mut decoded);
            if read.is_err() {
                return Demanded::error(400, "malformed_encoding");
            }
            if decoded.len() > MAX_BODY {
                return Demanded::error(413, "payload_too_large");
            }
            body = decoded;
        } else if !body.trim_ascii_start().starts_with(b"{") {
            return Demanded::error(400, "malformed_encoding");
        }
    }
    match if is_single { reference::single(&body) } else { reference::batch(&body) } {
        Verdict::Malformed => Demanded::error(400, "malformed_json"),
        Verdict::Invalid(faults) => Demanded { faults, ..Demanded::error(422, "validation_failed") },
        Verdict::Events(events) => {
            let events = events.into_iter().map(str::to_owned).collect();
            Demanded { status: 202, code: None, faults: Vec::new(), events }
        }
    }
}

/// An answer, of which everything has been checked that is the same for all.
struct Answer {
    status: u16,
    replayed: bool,
    body: Value,
}

fn invoke(app: &FakeApp, event: GatewayEvent) -> Answer {
    let response = block_on(async {
        let (response, unfinished) = app.handle(LambdaEvent::new(event, Context::default())).await;
        app.finish(unfinished).await;
        response
    });
    let response = serde_json::to_value(response).expect("an answer is JSON");
    let header = |name: &str| response["headers"][name].as_str();
    let text = response["body"].as_str().expect("a body");
    let body: Value = serde_json::from_str(text).expect("a body of JSON");
    assert!(text.len() < 64 * KIB, "an answer of {} bytes", text.len());
    assert_eq!(response["isBase64Encoded"], false);
    assert_eq!(header("content-type"), Some("application/json"));
    assert!(header("x-request-id").is_some());

    let status = response["statusCode"].as_u64().and_then(|status| u16::try_from(status).ok()).expect("a status");
    assert_eq!(header("allow"), (status == 405).then_some("POST"));
    assert_eq!(header("www-authenticate"), (status == 401).then_some("Bearer"));
    if status == 202 {
        assert_eq!(body, json!({ "data": { "accepted": true } }));
    } else {
        let errors = body["errors"].as_array().expect("errors");
        assert!((1..=100).contains(&errors.len()));
        assert!(errors.iter().all(|error| error["code"] == errors[0]["code"] && error["message"].is_string()));
    }
    Answer { status, replayed: header("idempotency-replayed") == Some("true"), body }
}

/// Lines such as `Idempotency-Key: x`, in either shape of event. What the function makes of each
/// header must be what the contract says, and so must its answer.
///
/// # Panics
/// Where it is not.
pub fn headers(input: &[u8], meter: &Meter) {
    let text = String::from_utf8_lossy(input);
    let lines: Vec<(&str, Option<&str>)> = text
        .split('\n')
        .map(|line| line.split_once(':').map_or((line, None), |(name, value)| (name, Some(value.trim_start()))))
        .collect();
    let joined = |header: &str| {
        let values = lines.iter().filter(|(name, _)| name.eq_ignore_ascii_case(header)).filter_map(|(_, value)| *value);
        values.map(str::to_owned).reduce(|values, value| format!("{values},{value}"))
    };
    let headers = [
        (Header::Authorization, joined("authorization")),
        (Header::ContentType, joined("content-type")),
        (Header::ContentEncoding, joined("content-encoding")),
        (Header::IdempotencyKey, joined("idempotency-key")),
    ];
    let [(_, authorization), (_, content_type), (_, content_encoding), (_, idempotency_key)] = &headers;
    let expected = reference::Headers {
        authorization: authorization.as_deref(),
        content_type: content_type.as_deref(),
        content_encoding: content_encoding.as_deref(),
        idempotency_key: idempotency_key.as_deref(),
    };
    if let Some(value) = expected.authorization {
        let key = ApiKey::from_header(value);
        assert_eq!(key.is_some(), reference::is_authorization(value), "{value:?}");
        assert!(key.is_none_or(|key| key.hint().len() == 12 && value.ends_with(&key.hint()[8..])));
    }
    if let Some(value) = expected.idempotency_key {
        assert_eq!(IdempotencyKey::parse(value).is_some(), reference::is_idempotency_key(value), "{value:?}");
    }

    for payload in [http_event(&lines), rest_event(&lines)] {
        let parse = || serde_json::from_str::<GatewayEvent>(&payload).expect("an event");
        let event = meter.bounded(64 * KIB + 4 * payload.len(), parse);
        for (header, value) in &headers {
            assert_eq!(event.header(*header), value.as_deref(), "{header:?} of {payload}");
        }
        let (app, _) = app(MOST_EVENTS);
        let answer = meter.bounded(MIB + 8 * payload.len(), || invoke(&app, event));
        assert_eq!((answer.status, answer.body["errors"][0]["code"].as_str()), expected.answer(), "{payload}");
    }
}

/// Names may come in any case and more than once, so this is no `serde_json` map.
fn members(lines: &[(&str, Option<&str>)], value: impl Fn(Option<&str>) -> Value) -> String {
    let members: Vec<String> = lines.iter().map(|(name, line)| format!("{}:{}", json!(name), value(*line))).collect();
    format!("{{{}}}", members.join(","))
}

const ONE_EVENT: &str = r#"{"events":[{"external_user_id":"u","name":"n"}]}"#;

fn http_event(lines: &[(&str, Option<&str>)]) -> String {
    let headers = members(lines, |value| json!(value));
    let context = r#"{"http":{"method":"POST"},"requestId":"r"}"#;
    let body = json!(ONE_EVENT);
    format!(
        r#"{{"version":"2.0","rawPath":"/api/v1/events/batch","headers":{headers},"requestContext":{context},"body":{body}}}"#
    )
}

fn rest_event(lines: &[(&str, Option<&str>)]) -> String {
    let repeated = members(lines, |value| value.map_or(Value::Null, |value| json!([value])));
    // Of repeated headers a REST API tells the last only.
    let last: Vec<_> = lines.iter().rev().take(1).copied().collect();
    let headers = members(&last, |value| json!(value));
    let body = json!(ONE_EVENT);
    format!(
        r#"{{"path":"/api/v1/events/batch","httpMethod":"POST","headers":{headers},"multiValueHeaders":{repeated},"body":{body}}}"#
    )
}

/// A body, of a batch and of a single event. The faults found must be those of the slow
/// reference, and what is accepted must reach the queue word for word.
///
/// # Panics
/// Where it is not.
pub fn batch(input: &[u8], meter: &Meter) {
    let body = expanded(input, MOST_OF_A_BATCH);
    let allowance = 256 * KIB + 4 * body.len();
    let parsed = meter.bounded(allowance, || Batch::parse(&body));
    compare(&parsed, &reference::batch(&body));
    if let (Ok(batch), Verdict::Events(events)) = (&parsed, reference::batch(&body)) {
        let run = Packing::new(MOST_EVENTS);
        let (queue, delivery) = meter.bounded(allowance + 2 * body.len(), || run.deliver(batch, &[], &[]));
        assert!(delivery.delivered.covers(0..events.len()));
        assert_identity(&events, &queue.messages());
    }
    let parsed = meter.bounded(allowance, || Batch::parse_single(&body));
    compare(&parsed, &reference::single(&body));
}

fn compare(parsed: &Result<Batch<'_>, BatchError>, verdict: &Verdict<'_>) {
    match (parsed, verdict) {
        (Ok(batch), Verdict::Events(events)) => assert_eq!(batch.events().len(), events.len()),
        (Err(BatchError::Malformed(what)), Verdict::Malformed) => assert!(what.contains(" at line "), "{what}"),
        (Err(BatchError::Invalid(found)), Verdict::Invalid(expected)) => {
            let found: Vec<_> = found.iter().map(|fault| (fault.field.as_deref(), &*fault.message)).collect();
            assert_faults(&found, expected);
        }
        (parsed, Verdict::Events(_)) => panic!("the reference accepts what is {parsed:?}"),
        (parsed, Verdict::Malformed) => panic!("the reference takes for no JSON what is {parsed:?}"),
        (parsed, Verdict::Invalid(faults)) => panic!("the reference finds {faults:?} in what is {parsed:?}"),
    }
}

fn assert_faults(found: &[(Option<&str>, &str)], expected: &[Violation]) {
    let is_one = |(field, message): &(Option<&str>, &str), fault: &Violation| {
        *field == fault.field.as_deref() && fault.says.iter().any(|says| message.contains(says))
    };
    let same = found.len() == expected.len() && found.iter().zip(expected).all(|(found, fault)| is_one(found, fault));
    assert!(same, "found {found:?}, but the reference {expected:?}");
}

/// Any valid batch, made of the input, through any packing and any mood of the queue.
///
/// # Panics
/// Where an event is lost, doubled, changed or out of order, or a limit of SQS exceeded.
pub fn packing(input: &[u8], meter: &Meter) {
    // It fails only where an input is longer than those of the fuzzer.
    let Ok(plan) = Plan::generate(&mut Unstructured::new(input)) else { return };
    let body = batch_of(&plan.events);
    let batch = Batch::parse(body.as_bytes()).expect("what is generated is valid");
    let allowance = 256 * KIB + 6 * body.len();
    let (queue, delivery) = meter.bounded(allowance, || plan.packing.deliver(&batch, &plan.already, &plan.fates));
    let sent: Vec<(usize, String)> = queue.messages().iter().flat_map(|message| plan.packing.read(message)).collect();
    for (index, event) in &sent {
        assert_eq!(*event, in_message(&plan.events[*index]), "event {index} was changed");
    }
    let mut times = vec![0; plan.events.len()];
    plan.already.iter().chain(sent.iter().map(|(index, _)| index)).for_each(|index| times[*index] += 1);
    for (index, times) in times.into_iter().enumerate() {
        assert_eq!(times, usize::from(delivery.delivered.contains(index)), "event {index} was sent {times} times");
    }
    if plan.fates.is_empty() {
        assert!(delivery.delivered.covers(0..plan.events.len()), "the queue took all, yet some are missing");
    }

    // Decode, pack and decode again: the same messages.
    let (queue, _) = plan.packing.deliver(&batch, &[], &[]);
    let messages = queue.messages();
    assert_identity(&plan.events, &messages);
    if !body.contains(['\u{FFFE}', '\u{FFFF}']) {
        let events = messages.iter().flat_map(|message| plan.packing.read(message)).map(|(_, event)| event);
        let body = batch_of(&events.collect::<Vec<_>>());
        let batch = Batch::parse(body.as_bytes()).expect("it was valid before");
        assert_eq!(plan.packing.deliver(&batch, &[], &[]).0.messages(), messages);
    }
}

/// What the messages of one batch have in common, and how they are cut.
struct Packing {
    envelope: Envelope,
    max_events_per_message: NonZeroU16,
}

impl Packing {
    fn new(max_events_per_message: NonZeroU16) -> Self {
        Self::of("acme", Mode::Live, max_events_per_message)
    }

    fn of(project: &str, mode: Mode, max_events_per_message: NonZeroU16) -> Self {
        let tenant = Tenant { project: ProjectId::parse(project).expect("a project"), mode };
        let envelope = Envelope::new(tenant, BatchId::new(StillClock::default().now()));
        Self { envelope, max_events_per_message }
    }

    fn deliver(&self, batch: &Batch<'_>, already: &[usize], fates: &[SendResult]) -> (MemoryQueue, Delivery) {
        let queue = MemoryQueue::default();
        queue.fates.replace(fates.to_vec());
        let clock = StillClock::default();
        let mut delivered = Delivered::none(batch.events().len());
        for &index in already {
            delivered.insert(index);
        }
        let deadline = Deadline::new(clock.now(), Timestamp::from_millis(0));
        let Self { envelope, max_events_per_message } = self;
        let courier = Sender {
            queue: &queue,
            clock: &clock,
            deadline: &deadline,
            envelope,
            batch,
            max_events_per_message: *max_events_per_message,
        };
        let delivery = block_on(courier.deliver(delivered));
        (queue, delivery)
    }

    /// The events of a message and their places in the batch.
    fn read(&self, message: &str) -> Vec<(usize, String)> {
        let events = read_message(message);
        assert!(
            (1..=usize::from(self.max_events_per_message.get())).contains(&events.len()),
            "{} events",
            events.len()
        );
        events
    }
}

/// The events of a message and their places in the batch, in order.
fn read_message(message: &str) -> Vec<(usize, String)> {
    assert!(message.len() <= MIB);
    let parsed: Value = serde_json::from_str(message).expect("consumers can read it");
    assert_eq!(parsed["schema"], "event-batch/1");
    let tape = Tape::read(message).expect("a message is JSON");
    let member = |object: usize, name: &str| {
        let found = tape.members(object).into_iter().find(|(key, _)| tape.text(*key) == format!("{name:?}"));
        found.expect("a member").1
    };
    let batch_id = tape.string(member(0, "batch_id")).expect("text");
    let events = tape.children(member(0, "events"));
    let read = |entry: usize| {
        let id = tape.string(member(entry, "id")).expect("text");
        let index = id.strip_prefix(&batch_id).and_then(|rest| rest.strip_prefix('-')).expect("batch id and index");
        (index.parse().expect("an index"), tape.text(member(entry, "event")).to_owned())
    };
    let events: Vec<(usize, String)> = events.into_iter().map(read).collect();
    assert!(events.windows(2).all(|pair| pair[0].0 < pair[1].0), "in the order sent");
    events
}

/// Every event is in the messages, once, in order, as sent.
fn assert_identity(events: &[impl AsRef<str>], messages: &[String]) {
    let mut runs: Vec<_> = messages.iter().map(|message| read_message(message)).collect();
    runs.sort_by_key(|run| run[0].0);
    let received = runs.concat();
    assert_eq!(received.len(), events.len(), "events in the messages");
    for (place, (sent, (index, event))) in events.iter().zip(received).enumerate() {
        assert_eq!(index, place, "out of order");
        assert_eq!(event, in_message(sent.as_ref()), "event {index} was changed");
        let value = |text: &str| serde_json::from_str::<Value>(text).expect("a strict parser reads it");
        assert_eq!(value(&event), value(sent.as_ref()), "event {index} means something else");
    }
}

fn batch_of(events: &[String]) -> String {
    format!("{{\"events\":[{}]}}", events.join(","))
}

/// What `packing` does, made of its input.
struct Plan {
    packing: Packing,
    events: Vec<String>,
    /// The events that were delivered before.
    already: Vec<usize>,
    /// What becomes of messages, in turn; after that each is taken.
    fates: Vec<SendResult>,
}

impl Plan {
    fn generate(input: &mut Unstructured<'_>) -> Generated<Self> {
        let max_events_per_message = NonZeroU16::MIN.saturating_add(input.int_in_range(0..=499)?);
        let project = "p".repeat(input.int_in_range(1..=64)?);
        let mode = if input.arbitrary()? { Mode::Live } else { Mode::Test };
        let fates = (0..input.int_in_range(0..=12)?).map(|_| {
            input
                .choose(&[SendResult::Acknowledged, SendResult::Retryable, SendResult::Unknown, SendResult::Permanent])
                .copied()
        });
        let fates = fates.collect::<Generated<Vec<_>>>()?;
        let some_delivered: u8 = input.arbitrary()?;

        // Large ones take a hundred times as long.
        let most_bytes = if input.ratio(1, 64)? { MAX_BODY - 16 } else { SMALL_BATCH };
        let mut events: Vec<String> = Vec::new();
        let mut bytes = 0;
        while events.is_empty() || (!input.is_empty() && events.len() < 500) {
            let room = most_bytes - bytes;
            let event = event(input, room)?;
            let times = input.int_in_range(1..=100)?.min(500 - events.len()).min(room / (event.len() + 1));
            if times == 0 {
                break;
            }
            bytes += times * (event.len() + 1);
            events.extend(vec![event; times]);
        }
        if events.is_empty() {
            // An input made to be large throughout.
            return Err(arbitrary::Error::IncorrectFormat);
        }
        let is_delivered = |index: &usize| some_delivered >> (index % 8) & 1 == 1;
        let already = (0..events.len()).filter(is_delivered).collect();
        Ok(Self { packing: Packing::of(&project, mode, max_events_per_message), events, already, fates })
    }
}

const TIMES: [&str; 4] =
    ["null", r#""2026-11-23T09:14:03.127Z""#, r#""0000-02-29t23:59:60-00:00""#, r#""9999-12-31T00:00:00z""#];

/// The text of a valid event, of every size up to the greatest; padded only as far as there is room.
fn event(input: &mut Unstructured<'_>, room: usize) -> Generated<String> {
    let mut event = "{".to_owned();
    event.push_str(space(input)?);
    for name in ["external_user_id", "name"] {
        let _ = write!(event, "\"{name}\"{}:{},", space(input)?, string(input, 1)?);
    }
    if input.arbitrary()? {
        let _ = write!(event, "\"timestamp\":{},", input.choose(&TIMES)?);
    }
    if input.arbitrary()? {
        let _ = write!(event, "\"properties\":{{{}:{}}},", string(input, 0)?, value(input, 3)?);
    }
    let _ = write!(event, "\"other\":{},\"pad\":\"", value(input, 2)?);
    let padding = match input.int_in_range(0..=15)? {
        0 => input.int_in_range(0..=MAX_EVENT)?,
        1..=3 => input.int_in_range(0..=3000)?,
        _ => 0,
    };
    let room = room.saturating_sub(",".len()).min(MAX_EVENT);
    let room = room.saturating_sub(in_message(&event).len() + "\"}".len());
    event.push_str(&"x".repeat(padding.min(room)));
    event.push_str("\"}");
    Ok(event)
}

fn space(input: &mut Unstructured<'_>) -> Generated<&'static str> {
    input.choose(&["", " ", "\t", "\r\n"]).copied()
}

/// Any value that the contract takes, standing at `depth` if it is an array or an object.
fn value(input: &mut Unstructured<'_>, depth: usize) -> Generated<String> {
    const SCALARS: [&str; 8] =
        ["null", "true", "false", "0", "-0.0", "1.50e+3", "123456789012345678901", "1.7976931348623157e308"];
    let kinds = if depth > 32 { 1 } else { 4 };
    Ok(match input.int_in_range(0..=kinds)? {
        0 => input.choose(&SCALARS)?.to_string(),
        1 => string(input, 0)?,
        2 => format!("[{}{}]", space(input)?, value(input, depth + 1)?),
        3 => format!("[{},{}{}]", value(input, depth + 1)?, space(input)?, value(input, depth + 1)?),
        _ => format!("{{{}:{}}}", string(input, 0)?, value(input, depth + 1)?),
    })
}

/// The text of a string of at least so many characters.
fn string(input: &mut Unstructured<'_>, least: usize) -> Generated<String> {
    const PIECES: [&str; 16] = [
        "a",
        "}",
        "]",
        ",",
        "\\\"",
        "\\\\",
        "\\/",
        "\\n",
        "\\u0041",
        "\\ud83d\\ude00",
        "\u{FFFE}",
        "\u{FFFF}",
        "\u{FFFD}",
        "\u{7f}",
        "é",
        "😀",
    ];
    let pieces = input.int_in_range(least..=least + 7)?;
    let mut text = "\"".to_owned();
    for _ in 0..pieces {
        text.push_str(input.choose(&PIECES)?);
    }
    text.push('"');
    Ok(text)
}

/// Nothing here ever waits for long.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = std::task::Context::from_waker(Waker::noop());
    for _ in 0..10_000 {
        if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
            return result;
        }
    }
    panic!("it waits for what never comes");
}
