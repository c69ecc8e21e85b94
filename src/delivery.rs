//! Messages → SQS: the port to the queue, and the retry of unacknowledged messages.

use crate::clock::{Clock, Timestamp};
use crate::deadline::Deadline;
use crate::idempotency::Delivered;
use crate::packing::{Envelope, Message, Packing, PlannedMessage, calls, plan};
use contract::batch::Batch;
use futures_util::StreamExt;
use futures_util::stream;
use std::collections::BTreeSet;
use std::time::Duration;

/// The most calls in flight: enough for 5 MB at once, few enough to bound memory.
const CALLS_IN_FLIGHT: usize = 6;
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_millis(800);

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
    /// Sends up to [`MAX_CALL_MESSAGES`](crate::packing::MAX_CALL_MESSAGES) messages in one call, once. Returns a
    /// result for each message, in order, by the time `by`; the result is [`SendResult::Unknown`] if there is no
    /// response by then.
    async fn send(&self, envelope: &Envelope, messages: Vec<Message>, by: Timestamp) -> Vec<SendResult>;
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
    /// How the events are divided into messages.
    pub packing: Packing,
}

impl<Q: Queue, C: Clock> Sender<'_, Q, C> {
    /// Sends the events that are not in `delivered`. Sends unacknowledged messages again until the
    /// deadline's reserve begins.
    ///
    /// On an ordered queue, a message is sent only after the previous message of its lane was acknowledged.
    ///
    /// Every call has ended when this returns. Lambda freezes the sandbox between requests, so a call
    /// left running would continue during a later request.
    pub async fn deliver(&self, delivered: Delivered) -> Delivery {
        let mut waiting = plan(self.envelope, self.batch, self.packing, &delivered);
        let mut delivery = Delivery { delivered, permanent_failures: 0, messages: 0, calls: 0, retries: 0 };
        let mut backoff = FIRST_BACKOFF;
        loop {
            let (next, mut later) = first_of_each_lane(waiting);
            let sends = calls(next).into_iter().map(|call| self.send(call));
            let mut sends = stream::iter(sends).buffer_unordered(CALLS_IN_FLIGHT);
            let mut unacknowledged = Vec::new();
            while let Some(sent) = sends.next().await {
                delivery.calls += usize::from(sent.is_some());
                for (message, result) in sent.into_iter().flatten() {
                    match result {
                        SendResult::Acknowledged => {
                            delivery.messages += 1;
                            message.events.iter().for_each(|&(index, _)| delivery.delivered.insert(index));
                        }
                        SendResult::Retryable | SendResult::Unknown => unacknowledged.push(message),
                        SendResult::Permanent => {
                            delivery.permanent_failures += 1;
                            later.retain(|other| other.lane != message.lane);
                        }
                    }
                }
            }
            let retries = unacknowledged.len();
            let pause = if retries > 0 { self.clock.jitter(backoff) } else { Duration::ZERO };
            waiting = unacknowledged;
            waiting.append(&mut later);
            if waiting.is_empty() || !self.deadline.may_send(self.clock.now() + pause) {
                return delivery;
            }
            waiting.sort_unstable_by_key(|message| message.events.first().map(|(index, _)| *index));
            if retries > 0 {
                delivery.retries += retries;
                self.clock.sleep(pause).await;
                backoff = (backoff * 2).min(LONGEST_BACKOFF);
            }
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
        let messages = call.iter().map(|planned| self.envelope.message(planned)).collect();
        let results = self.queue.send(self.envelope, messages, self.deadline.send_by(now)).await;
        Some(call.into_iter().zip(results.into_iter().chain(std::iter::repeat(SendResult::Unknown))))
    }
}

/// Separates the messages to send next from those that must wait. On an ordered queue, all messages but the
/// first of each lane must wait.
fn first_of_each_lane(waiting: Vec<PlannedMessage<'_>>) -> (Vec<PlannedMessage<'_>>, Vec<PlannedMessage<'_>>) {
    let mut lanes = BTreeSet::new();
    waiting.into_iter().partition(|message| message.lane.is_none_or(|lane| lanes.insert(lane)))
}
