//! Events → messages → calls (docs/contract.md, "The queue message"). Pure, without I/O.

use crate::idempotency::{BatchId, Delivered};
use contract::batch::Batch;
use contract::event::Event;
use contract::tenant::Tenant;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::num::NonZeroU16;

/// The version of the message format (docs/contract.md, "The queue message").
pub const SCHEMA: &str = "event-batch/1";
/// The most bytes in a message, and in all messages of a call together (AWS quota).
pub const MAX_CALL_BYTES: usize = 1_048_576;
/// The most messages in one `SendMessageBatch` call (AWS quota).
pub const MAX_CALL_MESSAGES: usize = 10;

/// How events are divided into messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// The most events in one message, 1 to 1,000.
    pub max_events_per_message: NonZeroU16,
    /// The number of lanes of each project and mode in an ordered queue, 1 to 1,000. A lane is a message
    /// group, which keeps its messages in order. `None` for a standard queue.
    pub lanes: Option<NonZeroU16>,
}

impl Packing {
    /// The packing for a standard queue.
    #[must_use]
    pub fn standard(max_events_per_message: NonZeroU16) -> Self {
        Self { max_events_per_message, lanes: None }
    }
}

/// The parts that all messages of a batch share.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// The owner of the events.
    pub tenant: Tenant,
    /// The trace header, which connects the consumer's trace with this one.
    pub trace: Option<TraceHeader>,
    batch_id: BatchId,
    /// The body up to the first event.
    head: String,
}

impl Envelope {
    const TAIL: &str = "]}";

    /// Creates the envelope of a batch.
    #[must_use]
    pub fn new(tenant: Tenant, batch_id: BatchId) -> Self {
        let received_at = batch_id.received_at();
        let Tenant { project, mode } = &tenant;
        // None of the values contains a character that JSON escapes.
        let head = format!(
            r#"{{"schema":"{SCHEMA}","batch_id":"{batch_id}","project_id":"{project}","mode":"{mode}","received_at":"{received_at}","events":["#
        );
        Self { tenant, trace: None, batch_id, head }
    }

    /// Adds a trace.
    #[must_use]
    pub fn traced(self, trace: Option<TraceHeader>) -> Self {
        Self { trace, ..self }
    }

    /// The message attributes. All are strings.
    #[must_use]
    pub fn attributes(&self) -> [(&'static str, &str); 3] {
        [("schema", SCHEMA), ("project_id", self.tenant.project.as_str()), ("mode", self.tenant.mode.as_str())]
    }

    /// The size of a message without events. SQS counts the body and each attribute's name, type and
    /// value.
    fn fixed_bytes(&self) -> usize {
        let attributes = self.attributes().into_iter().map(|(name, value)| name.len() + "String".len() + value.len());
        self.head.len() + Self::TAIL.len() + attributes.sum::<usize>()
    }

    /// The message with the planned events.
    #[must_use]
    pub fn message(&self, planned: &PlannedMessage<'_>) -> Message {
        let mut body = String::with_capacity(planned.bytes);
        body.push_str(&self.head);
        for (position, (index, event)) in planned.events.iter().enumerate() {
            let separator = if position == 0 { "" } else { "," };
            // Writing to a string cannot fail.
            let _ = write!(body, r#"{separator}{{"id":"{}-{index}","event":"#, self.batch_id);
            event.write_to(&mut body);
            body.push('}');
        }
        body.push_str(Self::TAIL);
        Message { body, fifo: planned.lane.map(|lane| self.fifo(planned, lane)) }
    }

    fn fifo(&self, planned: &PlannedMessage<'_>, lane: u16) -> Fifo {
        let Tenant { project, mode } = &self.tenant;
        let mut indexes = Sha256::new();
        for (index, _) in &planned.events {
            indexes.update(index.to_be_bytes());
        }
        Fifo {
            group_id: format!("{project}.{mode}.{lane}"),
            deduplication_id: format!("{}.{}", self.batch_id, &hex::encode(indexes.finalize())[..32]),
        }
    }
}

/// An X-Ray trace header, such as `Root=1-…;Parent=…;Sampled=1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceHeader(String);

impl TraceHeader {
    /// Parses the trace header that Lambda provides; `None` if SQS might refuse it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let in_alphabet = |byte: u8| byte.is_ascii_alphanumeric() || b"=;:-_.".contains(&byte);
        let is_header = text.starts_with("Root=") && text.len() <= 256 && text.bytes().all(in_alphabet);
        is_header.then(|| Self(text.to_owned()))
    }

    /// The value of the message system attribute `AWSTraceHeader`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One SQS message, ready to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `event-batch/1` JSON.
    pub body: String,
    /// The ids that an ordered queue needs. `None` for a standard queue, which uses the project as the
    /// message group to be fair between projects.
    pub fifo: Option<Fifo>,
}

/// The place of a message in an ordered queue.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fifo {
    /// `MessageGroupId`: the project, the mode and the lane.
    pub group_id: String,
    /// `MessageDeduplicationId`: the batch and a hash over the indexes of the events in the message. SQS drops
    /// a second message with the same id, so two messages with different events must never share one.
    pub deduplication_id: String,
}

/// A message to be sent.
pub struct PlannedMessage<'body> {
    /// The lane, if the queue is ordered.
    pub lane: Option<u16>,
    /// Events of one batch, with their indexes in the request.
    pub events: Vec<(usize, Event<'body>)>,
    /// The size that SQS will count.
    bytes: usize,
}

/// Packs the events that are not yet delivered. Messages of one lane are in order.
///
/// Retries keep the original message boundaries, so a message that SQS never accepts takes no other
/// events down with it.
#[must_use]
pub fn plan<'body>(
    envelope: &Envelope,
    batch: &Batch<'body>,
    Packing { max_events_per_message, lanes }: Packing,
    delivered: &Delivered,
) -> Vec<PlannedMessage<'body>> {
    let max_events = usize::from(max_events_per_message.get());
    let fixed = envelope.fixed_bytes();
    let mut messages = match lanes {
        None => divide(batch, max_events, fixed),
        Some(lanes) => divide_by_lane(batch, max_events, fixed, lanes),
    };
    for message in &mut messages {
        message.events.retain(|(index, _)| !delivered.contains(*index));
        message.bytes = fixed + message.events.iter().map(|&(index, event)| event_bytes(index, event)).sum::<usize>();
    }
    messages.retain(|message| !message.events.is_empty());
    messages
}

/// Divides a batch for a standard queue. Calls are filled first and divided into messages second, so that
/// there are as few calls as the size limits allow.
fn divide<'body>(batch: &Batch<'body>, max_events: usize, fixed: usize) -> Vec<PlannedMessage<'body>> {
    let mut messages: Vec<PlannedMessage<'_>> = Vec::new();
    let mut call = CallSize::default();
    for (index, event) in batch.events() {
        let bytes = event_bytes(index, event);
        match messages.last_mut() {
            Some(message) if message.events.len() < max_events && call.has_room_for(bytes) => {
                call.bytes += bytes;
                message.bytes += bytes;
                message.events.push((index, event));
            }
            _ => {
                let message = PlannedMessage { lane: None, events: vec![(index, event)], bytes: fixed + bytes };
                call.add(&message);
                messages.push(message);
            }
        }
    }
    messages
}

/// Divides a batch for an ordered queue: first by lane, then each lane by the size limits.
fn divide_by_lane<'body>(
    batch: &Batch<'body>,
    max_events: usize,
    fixed: usize,
    lanes: NonZeroU16,
) -> Vec<PlannedMessage<'body>> {
    let mut by_lane: BTreeMap<u16, Vec<PlannedMessage<'_>>> = BTreeMap::new();
    for (index, event) in batch.events() {
        let bytes = event_bytes(index, event);
        let lane = lane_of(&event.external_user_id(), lanes);
        let messages = by_lane.entry(lane).or_default();
        match messages.last_mut() {
            Some(message) if message.events.len() < max_events && message.bytes + bytes <= MAX_CALL_BYTES => {
                message.bytes += bytes;
                message.events.push((index, event));
            }
            _ => messages.push(PlannedMessage { lane: Some(lane), events: vec![(index, event)], bytes: fixed + bytes }),
        }
    }
    by_lane.into_values().flatten().collect()
}

/// The lane of a user: the first 8 bytes of the SHA-256 of the id, big-endian, modulo the number of lanes.
fn lane_of(external_user_id: &str, lanes: NonZeroU16) -> u16 {
    let digest = Sha256::digest(external_user_id);
    let first = digest.iter().take(8).fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
    // The remainder is less than `lanes`.
    u16::try_from(first % u64::from(lanes.get())).unwrap_or_default()
}

/// The bytes that an event adds to a message, including its separator.
fn event_bytes(index: usize, event: Event<'_>) -> usize {
    let digits = index.checked_ilog10().unwrap_or(0) as usize + 1;
    let around = r#"{"id":"-","event":},"#.len() + uuid::fmt::Hyphenated::LENGTH;
    around + digits + event.message_len()
}

/// The messages and bytes in one `SendMessageBatch` call.
#[derive(Default)]
struct CallSize {
    messages: usize,
    bytes: usize,
}

impl CallSize {
    fn has_room_for(&self, bytes: usize) -> bool {
        self.bytes + bytes <= MAX_CALL_BYTES
    }

    /// Adds a message to this call, or starts the next call with it. Returns whether it started one.
    fn add(&mut self, message: &PlannedMessage<'_>) -> bool {
        let starts = self.messages == 0 || self.messages == MAX_CALL_MESSAGES || !self.has_room_for(message.bytes);
        if starts {
            *self = Self::default();
        }
        self.messages += 1;
        self.bytes += message.bytes;
        starts
    }
}

/// Groups planned messages into calls, in order.
#[must_use]
pub fn calls(messages: Vec<PlannedMessage<'_>>) -> Vec<Vec<PlannedMessage<'_>>> {
    let mut calls: Vec<Vec<PlannedMessage<'_>>> = Vec::new();
    let mut size = CallSize::default();
    for message in messages {
        if size.add(&message) {
            calls.push(Vec::new());
        }
        if let Some(call) = calls.last_mut() {
            call.push(message);
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use contract::tenant::{Mode, ProjectId};

    /// Consumers can compute the lane of a user, so it must not change.
    #[test]
    fn the_lane_of_a_user_is_pinned() {
        let lane = |id, lanes| lane_of(id, NonZeroU16::new(lanes).unwrap());
        assert_eq!([lane("usr_42", 10), lane("usr_42", 1000), lane("ü", 10), lane("usr_42", 1)], [5, 725, 8, 0]);
    }

    fn envelope() -> Envelope {
        let tenant = Tenant { project: ProjectId::parse("acme").unwrap(), mode: Mode::Live };
        Envelope::new(tenant, BatchId::new(Timestamp::from_millis(1_800_000_000_000)))
    }

    fn batch_of(events: &[String]) -> String {
        format!(r#"{{"events":[{}]}}"#, events.join(","))
    }

    fn lengths(messages: &[PlannedMessage<'_>]) -> Vec<usize> {
        messages.iter().map(|message| message.events.len()).collect()
    }

    /// The sizes decide what fits into a call. The last event of a message has no separator.
    #[test]
    fn the_planned_size_of_a_message_is_its_size_and_one_separator() {
        let event = |index: usize| format!(r#"{{"external_user_id":"u{index}","name":"{}"}}"#, "n".repeat(1 + index));
        let body = batch_of(&(0..120).map(event).collect::<Vec<_>>());
        let batch = Batch::parse(body.as_bytes()).unwrap();
        let attributes: usize =
            envelope().attributes().iter().map(|(name, value)| name.len() + "String".len() + value.len()).sum();
        let mut delivered = Delivered::none(120);
        (5..20).for_each(|index| delivered.insert(index));
        for lanes in [None, NonZeroU16::new(3)] {
            let packing = Packing { lanes, ..Packing::standard(NonZeroU16::new(7).unwrap()) };
            for message in plan(&envelope(), &batch, packing, &delivered) {
                let size = envelope().message(&message).body.len() + attributes;
                assert_eq!(message.bytes, size + 1);
            }
        }
    }

    /// Each call, or each message of a lane, is filled up to the last byte before the next one starts.
    #[test]
    fn messages_are_as_large_as_the_limits_allow() {
        let event = |bytes: usize| {
            let pad = bytes - r#"{"external_user_id":"u","name":"n","pad":""}"#.len();
            format!(r#"{{"external_user_id":"u","name":"n","pad":"{}"}}"#, "x".repeat(pad))
        };
        let around = r#"{"id":"-0","event":},"#.len() + uuid::fmt::Hyphenated::LENGTH;
        let last = MAX_CALL_BYTES - envelope().fixed_bytes() - 2 * (300_000 + around) - around;
        for (last, expected) in [(last, vec![3, 1]), (last + 1, vec![2, 2])] {
            let body = batch_of(&[300_000, 300_000, last, 300_000].map(event));
            let batch = Batch::parse(body.as_bytes()).unwrap();
            for lanes in [None, NonZeroU16::new(1)] {
                let packing = Packing { lanes, ..Packing::standard(NonZeroU16::new(50).unwrap()) };
                let messages = plan(&envelope(), &batch, packing, &Delivered::none(4));
                assert_eq!(lengths(&messages), expected, "{lanes:?}");
                assert_eq!(calls(messages).len(), 2);
            }
        }
    }

    #[test]
    fn a_lane_has_at_most_the_configured_number_of_events_in_a_message() {
        let body = batch_of(&vec![r#"{"external_user_id":"u","name":"n"}"#.to_owned(); 7]);
        let batch = Batch::parse(body.as_bytes()).unwrap();
        let packing = Packing { max_events_per_message: NonZeroU16::new(3).unwrap(), lanes: NonZeroU16::new(10) };
        let messages = plan(&envelope(), &batch, packing, &Delivered::none(7));
        assert_eq!(lengths(&messages), [3, 3, 1]);
    }
}
