//! Events → messages → SQS: packing, the port to the queue, and the retry of unacknowledged messages.

use crate::clock::{Clock, Timestamp};
use crate::deadline::Deadline;
use crate::idempotency::{BatchId, Delivered};
use contract::batch::Batch;
use contract::event::Event;
use contract::tenant::Tenant;
use futures_util::StreamExt;
use futures_util::stream;
use std::fmt::Write;
use std::num::NonZeroU16;
use std::time::Duration;

/// The version of the message format (docs/contract.md, "The queue message").
pub const SCHEMA: &str = "event-batch/1";
/// The most bytes in a message, and in all messages of a call together (AWS quota).
pub const MAX_CALL_BYTES: usize = 1_048_576;
/// The most messages in one `SendMessageBatch` call (AWS quota).
pub const MAX_CALL_MESSAGES: usize = 10;

/// The most calls in flight: enough for 5 MB at once, few enough to bound memory.
const CALLS_IN_FLIGHT: usize = 6;
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_millis(800);

/// The parts that all messages of a batch share.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// The owner of the events. The project is also the message group, which makes the queue fair.
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

    fn message(&self, planned: &PlannedMessage<'_>) -> Message {
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
        Message { body }
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
}

/// The result of sending one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SendResult {
    /// SQS has the message.
    Acknowledged,
    /// SQS does not have the message and may accept it later.
    Retryable,
    /// The call timed out or the connection failed: SQS may or may not have the message.
    Unknown,
    /// SQS will never accept the message, which is a defect of this function.
    Permanent,
}

/// The queue, at the level of the protocol.
#[expect(async_fn_in_trait, reason = "everything runs on one thread; no caller needs a Send future")]
pub trait Queue {
    /// Sends up to [`MAX_CALL_MESSAGES`] messages in one call, once. Returns a result for each message,
    /// in order, by the time `by`; the result is [`SendResult::Unknown`] if there is no response by then.
    async fn send(&self, envelope: &Envelope, messages: &[Message], by: Timestamp) -> Vec<SendResult>;
}

/// A message to be sent.
struct PlannedMessage<'body> {
    /// Events of one batch, with their indexes in the request.
    events: Vec<(usize, Event<'body>)>,
    /// The size that SQS will count.
    bytes: usize,
}

/// Packs the events that are not yet delivered.
///
/// Retries keep the original message boundaries, so a message that SQS never accepts takes no other
/// events down with it. Calls are filled first and divided into messages second, so that there are as
/// few calls as the size limits allow.
fn plan<'body>(
    envelope: &Envelope,
    batch: &Batch<'body>,
    max_events: NonZeroU16,
    delivered: &Delivered,
) -> Vec<PlannedMessage<'body>> {
    let max_events = usize::from(max_events.get());
    let fixed = envelope.fixed_bytes();
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
                let message = PlannedMessage { events: vec![(index, event)], bytes: fixed + bytes };
                call.add(&message);
                messages.push(message);
            }
        }
    }
    for message in &mut messages {
        message.events.retain(|(index, _)| !delivered.contains(*index));
        message.bytes = fixed + message.events.iter().map(|&(index, event)| event_bytes(index, event)).sum::<usize>();
    }
    messages.retain(|message| !message.events.is_empty());
    messages
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
fn calls(messages: Vec<PlannedMessage<'_>>) -> Vec<Vec<PlannedMessage<'_>>> {
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

/// The result of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The events acknowledged in this attempt and in earlier ones.
    pub delivered: Delivered,
    /// Messages that SQS will never accept.
    pub permanent_failures: usize,
    /// Messages acknowledged in this attempt.
    pub messages: usize,
    /// Calls made.
    pub calls: usize,
    /// Messages sent again.
    pub retries: usize,
}

/// Sends one batch to the queue.
pub struct Sender<'a, Q, C> {
    /// The queue.
    pub queue: &'a Q,
    /// The clock for the deadline and the pauses.
    pub clock: &'a C,
    /// The request's deadline.
    pub deadline: &'a Deadline,
    /// The shared parts of the messages.
    pub envelope: &'a Envelope,
    /// The events.
    pub batch: &'a Batch<'a>,
    /// The most events in one message.
    pub max_events_per_message: NonZeroU16,
}

impl<Q: Queue, C: Clock> Sender<'_, Q, C> {
    /// Sends the events that are not in `delivered`. Sends unacknowledged messages again until the
    /// deadline's reserve begins.
    ///
    /// Every call has ended when this returns. Lambda freezes the sandbox between requests, so a call
    /// left running would continue during a later request.
    pub async fn deliver(&self, delivered: Delivered) -> Delivery {
        let mut waiting = plan(self.envelope, self.batch, self.max_events_per_message, &delivered);
        let mut delivery = Delivery { delivered, permanent_failures: 0, messages: 0, calls: 0, retries: 0 };
        let mut backoff = FIRST_BACKOFF;
        loop {
            let sends = calls(waiting).into_iter().map(|call| self.send(call));
            let mut sends = stream::iter(sends).buffer_unordered(CALLS_IN_FLIGHT);
            waiting = Vec::new();
            while let Some(sent) = sends.next().await {
                delivery.calls += usize::from(sent.is_some());
                for (message, result) in sent.into_iter().flatten() {
                    match result {
                        SendResult::Acknowledged => {
                            delivery.messages += 1;
                            message.events.iter().for_each(|&(index, _)| delivery.delivered.insert(index));
                        }
                        SendResult::Retryable | SendResult::Unknown => waiting.push(message),
                        SendResult::Permanent => delivery.permanent_failures += 1,
                    }
                }
            }
            let pause = self.clock.jitter(backoff);
            if waiting.is_empty() || !self.deadline.may_send(self.clock.now() + pause) {
                return delivery;
            }
            waiting.sort_unstable_by_key(|message| message.events.first().map(|(index, _)| *index));
            delivery.retries += waiting.len();
            self.clock.sleep(pause).await;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    /// Makes one call, unless too little time is left to record its result.
    async fn send<'body>(
        &self,
        call: Vec<PlannedMessage<'body>>,
    ) -> Option<impl Iterator<Item = (PlannedMessage<'body>, SendResult)>> {
        let now = self.clock.now();
        if !self.deadline.may_send(now) {
            return None;
        }
        let messages: Vec<Message> = call.iter().map(|planned| self.envelope.message(planned)).collect();
        let results = self.queue.send(self.envelope, &messages, self.deadline.send_by(now)).await;
        Some(call.into_iter().zip(results.into_iter().chain(std::iter::repeat(SendResult::Unknown))))
    }
}
