//! Batch → messages, by the function's own code, and messages → events, by a slow reader.

use super::meter::Bound;
use super::ports::{MemoryQueue, StillClock, block_on};
use super::reference::in_message;
use super::tape::Tape;
use super::{KIB, MIB};
use contract::batch::Batch;
use contract::tenant::{Mode, ProjectId, Tenant};
use event_ingest::clock::{Clock, Timestamp};
use event_ingest::deadline::Deadline;
use event_ingest::delivery::{Delivery, SendResult, Sender};
use event_ingest::idempotency::{BatchId, Delivered};
use event_ingest::packing::Envelope;
use serde_json::Value;
use std::num::NonZeroU16;

/// The default setting.
pub const MAX_EVENTS_PER_MESSAGE: NonZeroU16 = NonZeroU16::new(50).unwrap();

/// The shared parts of the messages of one batch, and how they are divided.
pub struct Packing {
    envelope: Envelope,
    packing: event_ingest::packing::Packing,
}

impl Packing {
    /// A packing with a project and a mode that do not matter.
    pub fn new(max_events_per_message: NonZeroU16) -> Self {
        Self::of("acme", Mode::Live, event_ingest::packing::Packing::standard(max_events_per_message))
    }

    /// A packing.
    pub fn of(project: &str, mode: Mode, packing: event_ingest::packing::Packing) -> Self {
        let tenant = Tenant { project: ProjectId::parse(project).expect("a project"), mode };
        let envelope = Envelope::new(tenant, BatchId::new(StillClock::default().now()));
        Self { envelope, packing }
    }

    /// The most that delivering a batch may allocate. Messages are larger than the body: each event gets an
    /// id, and U+FFFE and U+FFFF grow to twice their size. The queue keeps a copy. Each failure may cause
    /// one more copy of one message.
    pub fn bound(body_bytes: usize, events: usize, failures: usize) -> Bound {
        let resent = failures * MIB.min(2 * body_bytes + KIB);
        Bound {
            count: KIB + 4 * events,
            bytes: 128 * KIB + 5 * body_bytes + 512 * events + resent,
            peak: 128 * KIB + 5 * body_bytes + 256 * events,
        }
    }

    /// Sends the events of a batch that are not in `delivered`. `results` contains the results of the first
    /// messages, in reverse order; the queue acknowledges all others.
    pub fn deliver(&self, batch: &Batch<'_>, delivered: &[usize], results: &[SendResult]) -> (MemoryQueue, Delivery) {
        let queue = MemoryQueue::default();
        queue.results.replace(results.to_vec());
        let mut before = Delivered::none(batch.received());
        for &index in delivered {
            before.insert(index);
        }
        let delivery = self.deliver_to(&queue, batch, before);
        (queue, delivery)
    }

    /// Sends the events of a batch that are not in `before` to an existing queue.
    pub fn deliver_to(&self, queue: &MemoryQueue, batch: &Batch<'_>, before: Delivered) -> Delivery {
        let clock = StillClock::default();
        let deadline = Deadline::new(clock.now(), Timestamp::from_millis(0));
        let sender = Sender {
            queue,
            clock: &clock,
            deadline: &deadline,
            envelope: &self.envelope,
            batch,
            packing: self.packing,
        };
        block_on(sender.deliver(before))
    }

    /// The events of a message, with their indexes in the batch.
    pub fn read<'message>(&self, message: &'message str) -> Vec<(usize, &'message str)> {
        let events = read(message);
        let most = usize::from(self.packing.max_events_per_message.get());
        assert!((1..=most).contains(&events.len()), "{} events in a message", events.len());
        events
    }
}

/// The events of a message in order, with their indexes in the batch.
fn read(message: &str) -> Vec<(usize, &str)> {
    assert!(message.len() <= MIB);
    let tape = Tape::read(message).expect("a message is JSON");
    let member = |object: usize, quoted_name: &str| {
        tape.members(object).find(|(key, _)| tape.text(*key) == quoted_name).expect("a member").1
    };
    assert_eq!(tape.text(member(0, "\"schema\"")), "\"event-batch/1\"");
    let batch_id = tape.string(member(0, "\"batch_id\"")).expect("a string");
    let read = |entry: usize| {
        let id = tape.string(member(entry, "\"id\"")).expect("a string");
        let index = id.strip_prefix(&*batch_id).and_then(|rest| rest.strip_prefix('-')).expect("batch id and index");
        (index.parse().expect("an index"), tape.text(member(entry, "\"event\"")))
    };
    let events: Vec<(usize, &str)> = tape.children(member(0, "\"events\"")).map(read).collect();
    assert!(events.is_sorted_by_key(|(index, _)| index), "events are out of order");
    events
}

/// Asserts that a strict parser accepts the messages, and reads each event as it reads the event sent.
pub fn assert_same_values<T: AsRef<str>>(events: &[(usize, T)], messages: &[String]) {
    for message in messages {
        let value: Value = serde_json::from_str(message).expect("consumers can parse it");
        for ((index, _), received) in read(message).iter().zip(value["events"].as_array().expect("an array")) {
            let place = events.binary_search_by_key(index, |(index, _)| *index).expect("an event of the batch");
            let sent: Value = serde_json::from_str(events[place].1.as_ref()).expect("a strict parser accepts it");
            assert_eq!(received["event"], sent, "event {index} has another meaning");
        }
    }
}

/// Asserts that the messages contain every event once, in order, and unchanged. The events are given with
/// their indexes in the request.
pub fn assert_same_events<T: AsRef<str>>(events: &[(usize, T)], messages: &[String]) {
    let mut runs: Vec<_> = messages.iter().map(|message| read(message)).collect();
    runs.sort_by_key(|run| run[0].0);
    let received = runs.concat();
    assert_eq!(received.len(), events.len(), "events in the messages");
    for ((place, sent), (index, event)) in events.iter().zip(received) {
        assert_eq!(index, *place, "events are out of order");
        assert_eq!(event, in_message(sent.as_ref()), "event {index} was changed");
    }
}

/// Asserts that a batch took no more messages and calls than its size justifies, if every event was sent
/// once. A limit on the number closes a message or a call that is full; a limit on bytes may close it
/// when it is half full.
pub fn assert_few(queue: &MemoryQueue, events: usize, max_events_per_message: NonZeroU16) {
    let (sends, offered) = (queue.sends(), queue.offered());
    let closed_by_bytes = 2 * offered.bytes / MIB;
    let most_messages = 1 + events / usize::from(max_events_per_message.get()) + closed_by_bytes;
    assert!(offered.messages <= most_messages, "{offered:?} for {events} events; expected at most {most_messages}");
    let most_sends = 1 + offered.messages / 10 + closed_by_bytes;
    assert!(sends <= most_sends, "{sends} calls for {offered:?}; expected at most {most_sends}");
}
