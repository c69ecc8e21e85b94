//! Events → messages → SQS: packing, the port to the queue, and the knowing retry.

use crate::auth::{Mode, ProjectId};
use crate::batch::Batch;
use crate::clock::{Clock, Timestamp};
use crate::deadline::Deadline;
use crate::idempotency::{BatchId, Delivered};
use futures_util::StreamExt;
use futures_util::stream;
use std::fmt::Write;
use std::num::NonZeroU16;
use std::time::Duration;

/// The version of the message's shape (contract section 4).
pub const SCHEMA: &str = "event-batch/1";
/// The most bytes of a message, and of a call's messages together (AWS quota).
pub const MAX_CALL_BYTES: usize = 1_048_576;
/// The most messages in one `SendMessageBatch` call (AWS quota).
pub const MAX_CALL_MESSAGES: usize = 10;

/// How many calls run at once: enough for 5 MB in one go, few enough to bound memory.
const CALLS_IN_FLIGHT: usize = 6;
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_millis(800);

/// What the messages of one batch have in common.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// Also the message group, which makes the queue fair between tenants.
    pub project: ProjectId,
    /// A message attribute.
    pub mode: Mode,
    /// A system attribute, by which a consumer's trace joins this one's.
    pub trace: Option<TraceHeader>,
    batch_id: BatchId,
    /// The body up to its first event.
    head: String,
}

impl Envelope {
    const TAIL: &str = "]}";

    /// The envelope of a batch.
    #[must_use]
    pub fn new(project: ProjectId, mode: Mode, batch_id: BatchId) -> Self {
        let received_at = batch_id.received_at();
        // Nothing in it needs escaping: the alphabets of all five values are narrow.
        let head = format!(
            r#"{{"schema":"{SCHEMA}","batch_id":"{batch_id}","project_id":"{project}","mode":"{mode}","received_at":"{received_at}","events":["#
        );
        Self { project, mode, trace: None, batch_id, head }
    }

    /// The same, within a trace.
    #[must_use]
    pub fn traced(self, trace: Option<TraceHeader>) -> Self {
        Self { trace, ..self }
    }

    /// The message attributes, all of them strings (contract section 4).
    #[must_use]
    pub fn attributes(&self) -> [(&'static str, &str); 3] {
        [("schema", SCHEMA), ("project_id", self.project.as_str()), ("mode", self.mode.as_str())]
    }

    /// What a message counts before its first event: SQS adds to the body each attribute's
    /// name, type and value.
    fn fixed_bytes(&self) -> usize {
        let attributes = self.attributes().into_iter().map(|(name, value)| name.len() + "String".len() + value.len());
        self.head.len() + Self::TAIL.len() + attributes.sum::<usize>()
    }

    fn message(&self, batch: &Batch<'_>, parcel: &Parcel) -> Message {
        let mut body = String::with_capacity(parcel.bytes);
        body.push_str(&self.head);
        for (position, &index) in parcel.events.iter().enumerate() {
            let separator = if position == 0 { "" } else { "," };
            // Writing to a string cannot fail.
            let _ = write!(body, r#"{separator}{{"id":"{}-{index}","event":"#, self.batch_id);
            batch.events()[index].write_to(&mut body);
            body.push('}');
        }
        body.push_str(Self::TAIL);
        Message { body }
    }
}

/// An X-Ray tracing header, such as `Root=1-…;Parent=…;Sampled=1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceHeader(String);

impl TraceHeader {
    /// Takes what Lambda says of the trace; `None` if SQS might refuse it.
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

/// What became of a message that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// SQS has it.
    Acknowledged,
    /// SQS does not have it, and may take it later.
    Refused,
    /// Nobody knows: the call timed out or broke.
    Unknown,
    /// SQS will never take it: a defect of ours.
    Rejected,
}

/// The queue, at the level of the protocol.
#[expect(async_fn_in_trait, reason = "everything runs on one thread; no caller needs a Send future")]
pub trait Queue {
    /// Sends up to [`MAX_CALL_MESSAGES`] messages in one call, once, and tells in their order
    /// what became of each. Answers by the time `by`, if need be with [`Fate::Unknown`].
    async fn send(&self, envelope: &Envelope, messages: &[Message], by: Timestamp) -> Vec<Fate>;
}

/// A planned message: events of one batch, by index.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Parcel {
    events: Vec<usize>,
    /// What SQS will count for it.
    bytes: usize,
}

/// Packs the events that are not yet delivered.
///
/// The cuts are those of the whole batch, whatever is delivered: an event that the queue
/// refuses for ever never gets new company. Whole calls are filled first and cut into messages
/// second, so that there are as few calls as bytes allow.
fn plan(envelope: &Envelope, batch: &Batch<'_>, most_events: NonZeroU16, delivered: &Delivered) -> Vec<Parcel> {
    let most_events = usize::from(most_events.get());
    let fixed = envelope.fixed_bytes();
    let mut parcels: Vec<Parcel> = Vec::new();
    let mut call = CallSize::default();
    for index in 0..batch.events().len() {
        let bytes = event_bytes(batch, index);
        match parcels.last_mut() {
            Some(parcel) if parcel.events.len() < most_events && call.takes(bytes) => {
                call.bytes += bytes;
                parcel.bytes += bytes;
                parcel.events.push(index);
            }
            _ => {
                let parcel = Parcel { events: vec![index], bytes: fixed + bytes };
                call.add_message(&parcel);
                parcels.push(parcel);
            }
        }
    }
    for parcel in &mut parcels {
        parcel.events.retain(|&index| !delivered.contains(index));
        parcel.bytes = fixed + parcel.events.iter().map(|&index| event_bytes(batch, index)).sum::<usize>();
    }
    parcels.retain(|parcel| !parcel.events.is_empty());
    parcels
}

/// What an event adds to a message, its separator included.
fn event_bytes(batch: &Batch<'_>, index: usize) -> usize {
    let digits = index.checked_ilog10().unwrap_or(0) as usize + 1;
    let around = r#"{"id":"-","event":},"#.len() + uuid::fmt::Hyphenated::LENGTH;
    around + digits + batch.events()[index].message_len()
}

/// How full one `SendMessageBatch` call is.
#[derive(Default)]
struct CallSize {
    messages: usize,
    bytes: usize,
}

impl CallSize {
    fn takes(&self, bytes: usize) -> bool {
        self.bytes + bytes <= MAX_CALL_BYTES
    }

    /// Adds a message to this call, or begins the next one; tells whether it began one.
    fn add_message(&mut self, parcel: &Parcel) -> bool {
        let begins = self.messages == 0 || self.messages == MAX_CALL_MESSAGES || !self.takes(parcel.bytes);
        if begins {
            *self = Self::default();
        }
        self.messages += 1;
        self.bytes += parcel.bytes;
        begins
    }
}

/// Groups planned messages into calls, in order.
fn calls(parcels: Vec<Parcel>) -> Vec<Vec<Parcel>> {
    let mut calls: Vec<Vec<Parcel>> = Vec::new();
    let mut size = CallSize::default();
    for parcel in parcels {
        if size.add_message(&parcel) {
            calls.push(Vec::new());
        }
        if let Some(call) = calls.last_mut() {
            call.push(parcel);
        }
    }
    calls
}

/// How a delivery ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Inherited and own acknowledgements.
    pub delivered: Delivered,
    /// Messages that SQS will never take.
    pub rejected: usize,
    /// Messages acknowledged.
    pub messages: usize,
    /// Calls made.
    pub calls: usize,
    /// Messages sent again.
    pub retries: usize,
}

/// Takes one batch to the queue.
pub struct Courier<'a, Q, C> {
    /// Where to.
    pub queue: &'a Q,
    /// Tells when to stop.
    pub clock: &'a C,
    /// Of the request.
    pub deadline: &'a Deadline,
    /// Around each message's events.
    pub envelope: &'a Envelope,
    /// What is sent.
    pub batch: &'a Batch<'a>,
    /// The most events in one message.
    pub most_events: NonZeroU16,
}

impl<Q: Queue, C: Clock> Courier<'_, Q, C> {
    /// Sends what is not in `delivered`, and again what SQS refuses, until the deadline's reserve.
    ///
    /// Every send has ended when this returns: a call left running would thaw into a later request.
    pub async fn deliver(&self, delivered: Delivered) -> Delivery {
        let mut waiting = plan(self.envelope, self.batch, self.most_events, &delivered);
        let mut delivery = Delivery { delivered, rejected: 0, messages: 0, calls: 0, retries: 0 };
        let mut backoff = FIRST_BACKOFF;
        loop {
            let sends = calls(waiting).into_iter().map(|call| self.send(call));
            let mut sends = stream::iter(sends).buffer_unordered(CALLS_IN_FLIGHT);
            waiting = Vec::new();
            while let Some(sent) = sends.next().await {
                delivery.calls += usize::from(sent.is_some());
                for (parcel, fate) in sent.into_iter().flatten() {
                    match fate {
                        Fate::Acknowledged => {
                            delivery.messages += 1;
                            parcel.events.into_iter().for_each(|index| delivery.delivered.insert(index));
                        }
                        Fate::Refused | Fate::Unknown => waiting.push(parcel),
                        Fate::Rejected => delivery.rejected += 1,
                    }
                }
            }
            let pause = self.clock.jitter(backoff);
            if waiting.is_empty() || !self.deadline.may_send(self.clock.now() + pause) {
                return delivery;
            }
            waiting.sort_unstable_by_key(|parcel| parcel.events.first().copied());
            delivery.retries += waiting.len();
            self.clock.sleep(pause).await;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    /// Makes one call, unless what it sends could no longer be recorded.
    async fn send(&self, call: Vec<Parcel>) -> Option<impl Iterator<Item = (Parcel, Fate)>> {
        let now = self.clock.now();
        if !self.deadline.may_send(now) {
            return None;
        }
        let messages: Vec<Message> = call.iter().map(|parcel| self.envelope.message(self.batch, parcel)).collect();
        let fates = self.queue.send(self.envelope, &messages, self.deadline.send_by(now)).await;
        Some(call.into_iter().zip(fates.into_iter().chain(std::iter::repeat(Fate::Unknown))))
    }
}
