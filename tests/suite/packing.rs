//! Packing and delivery: consumers read the events exactly as sent, and messages keep the limits of SQS
//! (docs/contract.md, "The queue message").

use crate::gateway_event::post;
use crate::message_schema;
use crate::test_app::StillClock;
use crate::test_app::{Resources, TestApp};
use contract::batch::Batch;
use contract::limits::MAX_EVENT_BYTES;
use contract::tenant::{Mode, ProjectId, Tenant};
use event_ingest::clock::{Clock, SystemClock, Timestamp};
use event_ingest::deadline::{Deadline, FUNCTION_TIMEOUT, RESERVE};
use event_ingest::delivery::{Delivery, Queue, SendResult, Sender};
use event_ingest::idempotency::{BatchId, Delivered};
use event_ingest::packing::{Envelope, MAX_CALL_BYTES, MAX_CALL_MESSAGES, Message, Packing};
use proptest::prelude::*;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::num::NonZeroU16;
use std::time::Duration;

fn tenant(project: &str) -> Tenant {
    Tenant { project: ProjectId::parse(project).unwrap(), mode: Mode::Live }
}

/// A queue that stores the messages, asserts the limits of SQS, and fails as configured.
#[derive(Default)]
struct RecordingQueue {
    calls: RefCell<Vec<Vec<String>>>,
    /// For messages that start with this event id: the result of the first sends, and the number of those sends.
    failures: Vec<(&'static str, SendResult, Cell<usize>)>,
}

impl Queue for RecordingQueue {
    async fn send(&self, envelope: &Envelope, messages: Vec<Message>, _: Timestamp) -> Vec<SendResult> {
        let attributes: usize = envelope.attributes().iter().map(|(name, value)| name.len() + 6 + value.len()).sum();
        let sizes: Vec<usize> = messages.iter().map(|message| message.body.len() + attributes).collect();
        assert!((1..=MAX_CALL_MESSAGES).contains(&messages.len()));
        assert!(sizes.iter().sum::<usize>() <= MAX_CALL_BYTES, "{sizes:?}");
        let mut accepted = Vec::new();
        let results = messages.iter().map(|message| {
            let failure = self
                .failures
                .iter()
                .find(|(event, _, times)| message.body.contains(&format!("{event}\",\"event\"")) && times.get() > 0);
            if let Some((_, result, times)) = failure {
                times.set(times.get() - 1);
                return *result;
            }
            message_schema::check(&message.body);
            accepted.push(message.body.clone());
            SendResult::Acknowledged
        });
        let results = results.collect();
        self.calls.borrow_mut().push(accepted);
        results
    }
}

impl RecordingQueue {
    fn messages(&self) -> Vec<String> {
        self.calls.borrow().concat()
    }
}

async fn deliver(queue: &RecordingQueue, body: &[u8], max_events_per_message: u16, delivered: &[usize]) -> Delivery {
    let batch = Batch::parse(body).expect("a valid batch");
    let clock = StillClock(Cell::new(SystemClock.now()));
    let envelope = Envelope::new(tenant("acme"), BatchId::new(clock.now()));
    let deadline = Deadline::new(clock.now(), Timestamp::from_millis(0));
    let mut already = Delivered::none(batch.received());
    for &index in delivered {
        already.insert(index);
    }
    let packing = Packing::standard(NonZeroU16::new(max_events_per_message).unwrap());
    let sender = Sender { queue, clock: &clock, deadline: &deadline, envelope: &envelope, batch: &batch, packing };
    sender.deliver(already).await
}

fn batch_of(events: &[String]) -> String {
    format!("{{\"events\":[{}]}}", events.join(","))
}

/// Events of about `bytes` bytes each.
fn events_of(count: usize, bytes: usize) -> Vec<String> {
    let event = |index| {
        let start = format!(r#"{{"external_user_id":"u{index}","name":"n","pad":""#);
        format!(r#"{start}{}"}}"#, "x".repeat(bytes - start.len() - 2))
    };
    (0..count).map(event).collect()
}

/// The index and the JSON text of each event in a message.
fn read(message: &str) -> Vec<(usize, String)> {
    #[derive(serde::Deserialize)]
    struct Body<'a> {
        batch_id: String,
        #[serde(borrow)]
        events: Vec<Entry<'a>>,
    }
    #[derive(serde::Deserialize)]
    struct Entry<'a> {
        id: String,
        #[serde(borrow)]
        event: &'a RawValue,
    }
    let body: Body = serde_json::from_str(message).expect("a message");
    let index = |id: &str| id.strip_prefix(&body.batch_id).unwrap().strip_prefix('-').unwrap().parse().unwrap();
    body.events.iter().map(|entry| (index(&entry.id), entry.event.get().to_owned())).collect()
}

#[tokio::test]
async fn five_hundred_small_events_take_ten_messages_in_one_call() {
    let queue = RecordingQueue::default();
    let delivery = deliver(&queue, batch_of(&events_of(500, 200)).as_bytes(), 50, &[]).await;
    assert_eq!((delivery.calls, delivery.messages, delivery.retries), (1, 10, 0));
    let queue = RecordingQueue::default();
    let delivery = deliver(&queue, batch_of(&events_of(500, 200)).as_bytes(), 500, &[]).await;
    assert_eq!((delivery.calls, delivery.messages), (1, 1));
    let queue = RecordingQueue::default();
    let delivery = deliver(&queue, batch_of(&events_of(500, 200)).as_bytes(), 1, &[]).await;
    assert_eq!((delivery.calls, delivery.messages), (50, 500));
}

#[tokio::test]
async fn five_megabytes_take_as_few_calls_as_possible() {
    for (count, bytes) in [(500, 10_400), (5, 1_047_552), (9, 550_000), (50, 104_000)] {
        let events = events_of(count, bytes);
        let queue = RecordingQueue::default();
        let delivery = deliver(&queue, batch_of(&events).as_bytes(), 50, &[]).await;
        // An event cannot be split, so a call contains floor(1 MiB / event size) events.
        let per_call = (MAX_CALL_BYTES - 600) / (bytes + 60);
        assert_eq!(delivery.calls, count.div_ceil(per_call.max(1)), "{count} events of {bytes} bytes");
        assert!(delivery.delivered.covers(0..count));
    }
}

#[tokio::test]
async fn the_largest_event_fits_into_a_message_with_the_largest_envelope() {
    let largest = events_of(1, MAX_EVENT_BYTES);
    let queue = RecordingQueue::default();
    let batch = batch_of(&largest);
    let batch = Batch::parse(batch.as_bytes()).unwrap();
    let clock = StillClock(Cell::new(SystemClock.now()));
    let envelope = Envelope::new(tenant(&"p".repeat(64)), BatchId::new(clock.now()));
    let deadline = Deadline::new(clock.now(), Timestamp::from_millis(0));
    let packing = Packing::standard(NonZeroU16::new(50).unwrap());
    let sender =
        Sender { queue: &queue, clock: &clock, deadline: &deadline, envelope: &envelope, batch: &batch, packing };
    assert!(sender.deliver(Delivered::none(1)).await.delivered.contains(0));
}

#[tokio::test]
async fn a_failed_message_is_sent_again_alone() {
    let failures = vec![("-60", SendResult::Retryable, Cell::new(2)), ("-110", SendResult::Unknown, Cell::new(1))];
    let queue = RecordingQueue { failures, ..RecordingQueue::default() };
    let delivery = deliver(&queue, batch_of(&events_of(500, 200)).as_bytes(), 50, &[]).await;
    let per_call: Vec<usize> = queue.calls.borrow().iter().map(Vec::len).collect();
    assert_eq!(per_call, [8, 1, 1]);
    assert_eq!((delivery.calls, delivery.messages, delivery.retries), (3, 10, 3));
    let mut indexes: Vec<usize> = queue.messages().iter().flat_map(|m| read(m)).map(|(index, _)| index).collect();
    indexes.sort_unstable();
    assert_eq!(indexes, (0..500).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_message_that_always_fails_does_not_affect_the_others() {
    let queue = RecordingQueue {
        failures: vec![("-60", SendResult::Retryable, Cell::new(usize::MAX))],
        ..RecordingQueue::default()
    };
    let delivery = deliver(&queue, batch_of(&events_of(500, 200)).as_bytes(), 50, &[]).await;
    assert!(delivery.delivered.covers(0..50) && delivery.delivered.covers(100..500));
    assert_eq!((delivery.delivered.count(), delivery.permanent_failures), (450, 0));

    let queue =
        RecordingQueue { failures: vec![("-60", SendResult::Permanent, Cell::new(1))], ..RecordingQueue::default() };
    let delivery = deliver(&queue, batch_of(&events_of(500, 200)).as_bytes(), 50, &[]).await;
    assert_eq!((delivery.delivered.count(), delivery.permanent_failures, delivery.calls), (450, 1, 1));
}

/// Delivers a batch to an ordered queue of ten lanes, one event per message, and returns the time that it took.
async fn deliver_in_order(queue: &RecordingQueue, users: &[&str], budget: Duration) -> (Delivery, Duration) {
    let events: Vec<_> = users.iter().map(|user| json!({"external_user_id": user, "name": "n"}).to_string()).collect();
    let body = batch_of(&events);
    let batch = Batch::parse(body.as_bytes()).expect("a valid batch");
    let clock = StillClock(Cell::new(SystemClock.now()));
    let started = clock.now();
    let envelope = Envelope::new(tenant("acme"), BatchId::new(started));
    let deadline = Deadline::new(started, started + budget);
    let packing = Packing { max_events_per_message: NonZeroU16::MIN, lanes: NonZeroU16::new(10) };
    let sender = Sender { queue, clock: &clock, deadline: &deadline, envelope: &envelope, batch: &batch, packing };
    let delivery = sender.deliver(Delivered::none(batch.received())).await;
    (delivery, started.until(clock.now()))
}

#[tokio::test]
async fn only_a_failure_delays_the_next_message_of_a_lane() {
    // The request can send at the current time but not later.
    let (delivery, took) = deliver_in_order(&RecordingQueue::default(), &["usr_42"; 6], RESERVE).await;
    assert_eq!((delivery.calls, delivery.messages, delivery.retries, took), (6, 6, 0, Duration::ZERO));

    let failures = vec![("-3", SendResult::Retryable, Cell::new(1))];
    let queue = RecordingQueue { failures, ..RecordingQueue::default() };
    let (delivery, took) = deliver_in_order(&queue, &["usr_42"; 6], FUNCTION_TIMEOUT).await;
    let first_pause = Duration::from_millis(50);
    assert_eq!((delivery.calls, delivery.messages, delivery.retries, took), (7, 6, 1, first_pause));
}

#[tokio::test]
async fn a_permanent_failure_stops_its_own_lane_only() {
    let failures = vec![("-0", SendResult::Permanent, Cell::new(1))];
    let queue = RecordingQueue { failures, ..RecordingQueue::default() };
    let (delivery, _) = deliver_in_order(&queue, &["usr_42", "ü", "usr_42", "ü"], FUNCTION_TIMEOUT).await;
    let sent: Vec<usize> = queue.messages().iter().flat_map(|message| read(message)).map(|(index, _)| index).collect();
    assert_eq!((sent, delivery.permanent_failures, delivery.calls), (vec![1, 3], 1, 2));
}

#[tokio::test]
async fn delivered_events_are_not_sent_again_with_other_message_sizes() {
    let already: Vec<usize> = (0..500).filter(|index| index % 3 != 0).collect();
    for max_events_per_message in [1, 7, 50, 500] {
        let queue = RecordingQueue::default();
        let delivery =
            deliver(&queue, batch_of(&events_of(500, 200)).as_bytes(), max_events_per_message, &already).await;
        let sent: Vec<usize> = queue.messages().iter().flat_map(|m| read(m)).map(|(index, _)| index).collect();
        assert_eq!(sent, (0..500).step_by(3).collect::<Vec<_>>());
        assert!(delivery.delivered.covers(0..500));
    }
}

/// JSON texts that are hard to preserve byte for byte: whitespace, escapes, and unusual characters.
fn json_text() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("1.50e+3".to_owned()),
        Just(r#""\u0041\/\ud83d\ude00""#.to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        "\\PC{0,12}".prop_map(|text| json!(text).to_string()),
        "[\u{FFFD}-\u{FFFF}a\u{10FFFF}\u{7f}\u{85}]{0,8}".prop_map(|text| json!(text).to_string()),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[ {} ]", items.join(" ,\t"))),
            prop::collection::vec(("[a-z\u{FFFE}]{0,6}", inner), 0..4).prop_map(|members| {
                let members: Vec<String> =
                    members.iter().map(|(key, value)| format!("{} :\n{value}", json!(key))).collect();
                format!("{{{}}}", members.join(", "))
            }),
        ]
    })
}

fn event_text() -> impl Strategy<Value = String> {
    let members = ("[\\PC&&[^\"\\\\]]{1,20}", "[a-z_]{1,20}", json_text(), 0..3000_usize);
    members.prop_map(|(user, name, other, padding)| {
        format!(
            r#"{{ "name":{}, "x" : {other},"external_user_id":{},"pad":"{}"}}"#,
            json!(name),
            json!(user),
            "x".repeat(padding)
        )
    })
}

/// The text of an event in the message, in which characters that SQS refuses are escaped.
fn as_queued(event: &str) -> String {
    event.replace('\u{FFFE}', "\\ufffe").replace('\u{FFFF}', "\\uffff")
}

fn assert_round_trip(events: &[String], messages: &[String]) {
    let mut received: Vec<(usize, String)> = messages.iter().flat_map(|message| read(message)).collect();
    received.sort_by_key(|(index, _)| *index);
    let expected: Vec<(usize, String)> = events.iter().map(|event| as_queued(event)).enumerate().collect();
    assert_eq!(received, expected);
    for message in messages {
        let indexes: Vec<usize> = read(message).iter().map(|(index, _)| *index).collect();
        assert!(
            indexes.windows(2).all(|pair| pair[0] + 1 == pair[1]),
            "the events of a message are consecutive: {indexes:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_batch_is_queued_byte_for_byte(
        events in prop::collection::vec(event_text(), 1..=60),
        repeat in 1..=8_usize,
        max_events_per_message in 1..=500_u16,
    ) {
        let events = vec![events; repeat].concat();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let queue = RecordingQueue::default();
        let delivery = runtime.block_on(deliver(&queue, batch_of(&events).as_bytes(), max_events_per_message, &[]));
        prop_assert!(delivery.delivered.covers(0..events.len()));
        let messages = queue.messages();
        prop_assert!(messages.iter().all(|message| read(message).len() <= usize::from(max_events_per_message)));
        assert_round_trip(&events, &messages);
    }
}

/// The same test through the SDK and into a queue of the local AWS, which enforces its own limits.
#[test]
fn any_batch_reaches_a_queue_of_the_local_aws_byte_for_byte() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let aws = runtime.block_on(async {
        let aws = Resources::create().await;
        aws.put_key(crate::test_app::KEY, crate::test_app::PROJECT, &[]).await;
        aws
    });
    let config = ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() };
    let batches = (prop::collection::vec(event_text(), 1..=40), 1..=50_u16);
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let outcome = runner.run(&batches, |(events, max_events_per_message)| {
        runtime.block_on(async {
            let test = TestApp::over(aws.clone(), max_events_per_message);
            test.send(&post().body(&batch_of(&events))).await.assert_accepted();
            let messages: Vec<String> = aws.drain().await.into_iter().filter_map(|message| message.body).collect();
            assert_round_trip(&events, &messages);
        });
        Ok(())
    });
    outcome.unwrap();
}

#[tokio::test]
async fn the_message_has_the_documented_members_and_attributes() {
    let test = TestApp::start().await;
    let before = SystemClock.now();
    test.send(&post().key("example")).await.assert_accepted();
    let messages = test.aws.drain().await;
    assert_eq!(messages.len(), 1);
    let body: Value = serde_json::from_str(messages[0].body().unwrap()).unwrap();
    let batch_id = body["batch_id"].as_str().unwrap();
    let received_at = body["received_at"].as_str().unwrap();
    assert_eq!(
        body,
        json!({
            "schema": "event-batch/1",
            "batch_id": batch_id,
            "project_id": "acme",
            "mode": "live",
            "received_at": received_at,
            "events": [{
                "id": format!("{batch_id}-0"),
                "event": {"external_user_id": "usr_42", "name": "user_signed_up", "properties": {"plan": "trial"}},
            }],
        })
    );
    let id = uuid::Uuid::parse_str(batch_id).unwrap();
    let (seconds, nanos) = id.get_timestamp().unwrap().to_unix();
    let millis = seconds * 1000 + u64::from(nanos) / 1_000_000;
    assert_eq!((id.get_version_num(), received_at.len()), (7, "2026-11-23T09:14:03.127Z".len()));
    assert!((before.millis()..=SystemClock.now().millis()).contains(&millis));
    let format = time::format_description::well_known::Rfc3339;
    let received = time::OffsetDateTime::parse(received_at, &format).unwrap().unix_timestamp_nanos();
    assert_eq!(received, i128::from(millis) * 1_000_000);

    let attributes = messages[0].message_attributes().unwrap();
    let attribute = |name: &str| attributes[name].string_value().unwrap();
    assert_eq!(attributes.len(), 3);
    assert_eq!((attribute("schema"), attribute("project_id"), attribute("mode")), ("event-batch/1", "acme", "live"));
    let group = aws_sdk_sqs::types::MessageSystemAttributeName::MessageGroupId;
    assert_eq!(messages[0].attributes().unwrap()[&group], "acme");
}
