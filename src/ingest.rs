//! The protocol: hold the key, send what is left, answer, record the result.
//!
//! At each await: if the process dies here, the record says enough for the next request under
//! the same key to go on. `idempotency.md` beside this file goes through the cases.

use crate::auth::{Mode, ProjectId};
use crate::batch::Batch;
use crate::clock::{Clock, Timestamp};
use crate::deadline::Deadline;
use crate::delivery::{Courier, Envelope, Queue, TraceHeader};
use crate::error::Error;
use crate::idempotency::{
    Claimant, Claimed, Decision, Delivered, Fenced, Owner, Record, RecordKey, State, StateStore, StoreError, TakeOver,
    decide,
};
use crate::telemetry::{Completion, Facts};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

const FIRST_POLL: Duration = Duration::from_millis(50);
const LONGEST_POLL: Duration = Duration::from_millis(400);
const FIRST_BACKOFF: Duration = Duration::from_millis(25);
const LONGEST_BACKOFF: Duration = Duration::from_millis(200);

/// The state table, the queue and the clock, and how to use them.
pub struct Pipeline<S, Q, C> {
    /// Where idempotency records live.
    pub store: S,
    /// Where events go.
    pub queue: Q,
    /// Tells when leases lapse and deadlines come.
    pub clock: C,
    /// How long a key is remembered.
    pub dedup_window: Duration,
    /// The most events in one message.
    pub most_events: NonZeroU16,
}

/// A valid batch and who sends it.
pub struct Request<'a> {
    /// Whose events these are.
    pub project: &'a ProjectId,
    /// Live or test.
    pub mode: Mode,
    /// The idempotency key in its scope.
    pub key: &'a RecordKey,
    /// This request, as the record knows it.
    pub me: &'a Claimant,
    /// What to send.
    pub batch: &'a Batch<'a>,
    /// The trace that the messages join.
    pub trace: Option<TraceHeader>,
    /// Until when.
    pub deadline: &'a Deadline,
}

/// How a request succeeded. Either way its events are in the queue.
pub enum Outcome {
    /// This request put the last of them there, which the record is still to say.
    Accepted(Unrecorded),
    /// An earlier one did.
    Replayed,
}

/// A batch whose every event is in the queue, under a record that does not say so yet.
pub struct Unrecorded {
    /// Of the record.
    pub key: RecordKey,
    /// Who holds it.
    pub owner: Owner,
    /// Until when it may be written.
    pub deadline: Deadline,
}

impl<S: StateStore, Q: Queue, C: Clock> Pipeline<S, Q, C> {
    /// Gets a batch into the queue, once.
    ///
    /// # Errors
    /// Rows 11 to 14 of contract section 2. After a 5xx, a retry under the same key goes on.
    pub async fn ingest(&self, request: &Request<'_>, facts: &mut Facts) -> Result<Outcome, Error> {
        let begun = Instant::now();
        let held = self.hold(request).await;
        facts.claim_time = Some(begun.elapsed());
        let Some(record) = held? else {
            return Ok(Outcome::Replayed);
        };
        facts.attempt = Some(record.attempt);
        facts.first_arrival = Some(record.batch_id.arrival());
        facts.resumed_events = record.delivered.count();

        let envelope =
            Envelope::new(request.project.clone(), request.mode, record.batch_id).traced(request.trace.clone());
        let courier = Courier {
            queue: &self.queue,
            clock: &self.clock,
            deadline: request.deadline,
            envelope: &envelope,
            batch: request.batch,
            most_events: self.most_events,
        };
        let begun = Instant::now();
        let delivery = courier.deliver(record.delivered).await;
        facts.send_time = Some(begun.elapsed());
        facts.messages = delivery.messages;
        facts.send_calls = delivery.calls;
        facts.send_retries = delivery.retries;

        if delivery.delivered.covers(0..request.batch.events().len()) {
            let Request { key, me, deadline, .. } = *request;
            return Ok(Outcome::Accepted(Unrecorded {
                key: key.clone(),
                owner: me.owner.clone(),
                deadline: *deadline,
            }));
        }
        let begun = Instant::now();
        self.release(request, &delivery.delivered).await;
        facts.complete_time = Some(begun.elapsed());
        Err(match delivery.rejected {
            0 => Error::Unavailable("SQS did not take every message in time".to_owned()),
            rejected => Error::Internal(format!("SQS will never take {rejected} of the messages")),
        })
    }

    /// Marks a batch accepted, once its 202 is out and before the sandbox takes another request.
    ///
    /// Whatever becomes of this write, the 202 was the truth; so no client need wait for it.
    pub async fn complete(&self, Unrecorded { key, owner, deadline }: &Unrecorded) -> Completion {
        let by = deadline.write_by();
        let expires_at = self.expires_at(self.clock.now());
        match self.write(by, async || self.store.complete(key, owner, expires_at, by).await).await {
            Ok(Fenced::Done) => Completion::Written,
            Ok(Fenced::Lost) => Completion::LostClaim,
            Err(_) => Completion::Failed,
        }
    }

    /// Makes this request the holder of its key; `None` where the batch is already in the queue.
    async fn hold(&self, request: &Request<'_>) -> Result<Option<Record>, Error> {
        let Request { key, me, deadline, .. } = request;
        let mut decision = Decision::Claim;
        let mut poll = FIRST_POLL;
        loop {
            let now = self.clock.now();
            decision = match decision {
                Decision::KeyReused => return Err(Error::KeyReused),
                Decision::Replay => return Ok(None),
                Decision::Mine(record) => return Ok(Some(record)),
                Decision::Claim | Decision::TakeOver { .. } if !deadline.may_send(now) => {
                    return Err(Error::Unavailable("no time is left to send".to_owned()));
                }
                Decision::Claim => {
                    let record = self.first_claim(request, now);
                    let claimed = self.store.claim(key, &record, now, deadline.claim_by()).await;
                    self.after_claim(request, claimed).await?
                }
                Decision::TakeOver { seen } => {
                    let take_over = TakeOver {
                        seen,
                        owner: me.owner.clone(),
                        lease_until: deadline.lease_until(),
                        expires_at: self.expires_at(now),
                    };
                    let claimed = self.store.take_over(key, &take_over, now, deadline.claim_by()).await;
                    self.after_claim(request, claimed).await?
                }
                Decision::Wait { until } => {
                    let pause = poll.min(now.until(until));
                    // A look after that would come too late to act upon it.
                    if now + pause >= deadline.wait_until() {
                        return Err(Error::InProgress { lease_left: now.until(until) });
                    }
                    self.clock.sleep(pause).await;
                    poll = (poll * 2).min(LONGEST_POLL);
                    let record = self.store.get(key, deadline.claim_by()).await?;
                    decide(record, me, self.clock.now())
                }
            };
        }
    }

    fn first_claim(&self, request: &Request<'_>, now: Timestamp) -> Record {
        Record {
            state: State::InProgress,
            fingerprint: request.me.fingerprint,
            batch_id: request.me.batch_id,
            owner: request.me.owner.clone(),
            attempt: 1,
            lease_until: request.deadline.lease_until(),
            delivered: Delivered::none(request.batch.events().len()),
            expires_at: self.expires_at(now),
        }
    }

    async fn after_claim(
        &self,
        request: &Request<'_>,
        claimed: Result<Claimed, StoreError>,
    ) -> Result<Decision, Error> {
        match claimed {
            Ok(Claimed::Done(record)) => Ok(Decision::Mine(record)),
            Ok(Claimed::Refused(record)) => Ok(decide(record, request.me, self.clock.now())),
            Err(error) => {
                // The claim may have had effect. What was delivered stays as it is: of a
                // take-over whose answer was lost, it is not known here.
                let Request { key, me, deadline, .. } = request;
                let expires_at = self.expires_at(self.clock.now());
                let _ = self.store.release(key, &me.owner, None, expires_at, deadline.write_by()).await;
                Err(error.into())
            }
        }
    }

    async fn release(&self, request: &Request<'_>, delivered: &Delivered) {
        let Request { key, me, deadline, .. } = request;
        let by = deadline.write_by();
        let expires_at = self.expires_at(self.clock.now());
        // If it cannot be written, the lease runs out by itself.
        let _ =
            self.write(by, async || self.store.release(key, &me.owner, Some(delivered), expires_at, by).await).await;
    }

    /// Repeats a write that is safe to repeat until it has an answer or it is too late.
    async fn write(
        &self,
        by: Timestamp,
        mut once: impl AsyncFnMut() -> Result<Fenced, StoreError>,
    ) -> Result<Fenced, StoreError> {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let written = once().await;
            let pause = self.clock.jitter(backoff);
            if !matches!(written, Err(StoreError::Unavailable(_))) || self.clock.now() + pause >= by {
                return written;
            }
            self.clock.sleep(pause).await;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    fn expires_at(&self, now: Timestamp) -> u64 {
        (now + self.dedup_window).seconds_rounded_up()
    }
}
