//! The protocol: acquire the key, send the undelivered events, respond, record the result.
//!
//! If the process dies at any await, the record tells the next request with the same key how to
//! continue. `src/idempotency.md` lists the cases.

use crate::clock::{Clock, Timestamp};
use crate::deadline::Deadline;
use crate::delivery::{Queue, Sender};
use crate::error::Error;
use crate::idempotency::{
    BatchId, Claimant, Claimed, Decision, Delivered, Fenced, Owner, Record, RecordKey, State, StateStore, TakeOver,
    decide,
};
use crate::packing::{Envelope, Packing, TraceHeader};
use crate::store::StoreError;
use contract::batch::Batch;
use contract::tenant::Tenant;
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

const FIRST_POLL: Duration = Duration::from_millis(50);
const LONGEST_POLL: Duration = Duration::from_millis(400);
/// The most tries of one write. The limit keeps retries from multiplying the load during an outage of
/// the table. The SDK makes up to three requests per try.
const WRITE_TRIES: u32 = 3;
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
/// The factor by which the longest possible pause grows from one try to the next.
const BACKOFF_GROWTH: u32 = 4;

/// The state table, the queue, the clock and their settings.
pub struct Pipeline<S, Q, C> {
    /// The store of idempotency records.
    pub store: S,
    /// The queue for events.
    pub queue: Q,
    /// The clock for leases and deadlines.
    pub clock: C,
    /// How long a key is remembered.
    pub dedup_window: Duration,
    /// How events are divided into messages.
    pub packing: Packing,
}

/// A valid batch, its sender and its deadline.
pub struct Request<'a> {
    /// The owner of the events.
    pub tenant: &'a Tenant,
    /// The key of the idempotency record.
    pub record_key: &'a RecordKey,
    /// This request as a claimant of the record.
    pub claimant: &'a Claimant,
    /// The events.
    pub batch: &'a Batch<'a>,
    /// The trace header that the messages carry.
    pub trace: Option<TraceHeader>,
    /// The request's time budget.
    pub deadline: &'a Deadline,
}

/// The result of [`Pipeline::ingest`].
pub struct Ingested {
    /// The response: success, or checks 11 to 14. After a 5xx, a retry with the same key continues the batch.
    pub result: Result<Success, Error>,
    /// Facts for the log and the rate limiter.
    pub findings: Findings,
}

/// How a request succeeded. In each case every event of the batch is in the queue.
pub enum Success {
    /// This request queued the last events. The record is marked accepted afterwards.
    Accepted(PendingCompletion),
    /// An earlier request queued the batch, which consists of these events.
    Replayed(Delivered),
    /// No event of a bulk request is valid. Nothing was claimed and nothing was sent.
    NothingToQueue,
}

impl Success {
    /// The events in the queue, including those that earlier attempts queued.
    #[must_use]
    pub fn delivered(&self) -> Delivered {
        match self {
            Self::Accepted(pending) => pending.delivered.clone(),
            Self::Replayed(delivered) => delivered.clone(),
            Self::NothingToQueue => Delivered::none(0),
        }
    }
}

/// The result of [`Pipeline::acquire`].
enum Acquired {
    /// This request owns the key, with this record.
    Owned(Record),
    /// The batch is in the queue. It consists of these events.
    AlreadyQueued(Delivered),
}

/// The pending completion of a batch: every event is in the queue, but the record is not marked
/// accepted yet. [`Pipeline::complete`] marks it.
#[must_use = "pass it to `Pipeline::complete`"]
pub struct PendingCompletion {
    /// The key of the record.
    pub record_key: RecordKey,
    /// The request that owns the key.
    pub owner: Owner,
    /// The events in the queue.
    pub delivered: Delivered,
    /// The deadline of that request.
    pub deadline: Deadline,
}

/// The result of the write that marks a delivered batch accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// The record says accepted.
    Written,
    /// Another request now owns the key and will complete the record.
    LostClaim,
    /// Every try failed, so a retry of this batch may send it again.
    Failed,
}

/// What a request found out about its batch. A duration is absent if its stage did not run.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// The id of the batch, once the record was claimed or read.
    pub batch_id: Option<BatchId>,
    /// The number of the attempt, from the record.
    pub attempt: Option<u64>,
    /// When the batch first arrived. For a resumed batch, that was in an earlier request.
    pub first_arrival: Option<Timestamp>,
    /// Events that earlier attempts delivered.
    pub resumed_events: usize,
    /// Messages that SQS acknowledged.
    pub messages: usize,
    /// `SendMessageBatch` calls.
    pub send_calls: usize,
    /// Messages sent again.
    pub send_retries: usize,
    /// Claiming the key, including the wait for another owner.
    pub claim_time: Option<Duration>,
    /// Sending to SQS.
    pub send_time: Option<Duration>,
    /// Releasing the key after a failed attempt.
    pub release_time: Option<Duration>,
}

impl<S: StateStore, Q: Queue, C: Clock> Pipeline<S, Q, C> {
    /// Puts a batch into the queue, once.
    pub async fn ingest(&self, request: &Request<'_>) -> Ingested {
        let mut findings = Findings::default();
        // A panic must not lose the findings, which an operator needs most then.
        let run = AssertUnwindSafe(self.run(request, &mut findings)).catch_unwind().await;
        let result = run.unwrap_or_else(|_| Err(Error::Internal("panic".to_owned())));
        Ingested { result, findings }
    }

    async fn run(&self, request: &Request<'_>, findings: &mut Findings) -> Result<Success, Error> {
        if request.batch.events().next().is_none() {
            return Ok(Success::NothingToQueue);
        }
        let started = Instant::now();
        let acquired = self.acquire(request, &mut findings.batch_id).await;
        findings.claim_time = Some(started.elapsed());
        let record = match acquired? {
            Acquired::Owned(record) => record,
            Acquired::AlreadyQueued(delivered) => return Ok(Success::Replayed(delivered)),
        };
        findings.attempt = Some(record.attempt);
        findings.first_arrival = Some(record.batch_id.arrival());
        findings.resumed_events = record.delivered.count();

        let envelope = Envelope::new(request.tenant.clone(), record.batch_id).traced(request.trace.clone());
        let sender = Sender {
            queue: &self.queue,
            clock: &self.clock,
            deadline: request.deadline,
            envelope: &envelope,
            batch: request.batch,
            packing: self.packing,
        };
        let started = Instant::now();
        let delivery = sender.deliver(record.delivered).await;
        findings.send_time = Some(started.elapsed());
        findings.messages = delivery.messages;
        findings.send_calls = delivery.calls;
        findings.send_retries = delivery.retries;

        if delivery.delivered.covers(request.batch.events().map(|(index, _)| index)) {
            let Request { record_key, claimant, deadline, .. } = *request;
            return Ok(Success::Accepted(PendingCompletion {
                record_key: record_key.clone(),
                owner: claimant.owner.clone(),
                delivered: delivery.delivered,
                deadline: *deadline,
            }));
        }
        let started = Instant::now();
        self.release(request, &delivery.delivered).await;
        findings.release_time = Some(started.elapsed());
        Err(match delivery.permanent_failures {
            0 => Error::Unavailable("SQS did not accept every message in time".to_owned()),
            failures => Error::Internal(format!("SQS will never accept {failures} of the messages")),
        })
    }

    /// Marks a batch accepted, after the response and before the sandbox takes another request.
    ///
    /// The response is correct whether or not this write succeeds, so the client does not wait for it.
    pub async fn complete(&self, pending: &PendingCompletion) -> Completion {
        let PendingCompletion { record_key, owner, delivered, deadline } = pending;
        let by = deadline.write_by();
        let expires_at = self.expires_at(self.clock.now());
        match self.write(by, async || self.store.complete(record_key, owner, delivered, expires_at, by).await).await {
            Ok(Fenced::Done) => Completion::Written,
            Ok(Fenced::Lost) => Completion::LostClaim,
            Err(_) => Completion::Failed,
        }
    }

    /// Makes this request the owner of its key, unless the batch is already in the queue. Sets `batch_id`
    /// when the record is claimed or read.
    async fn acquire(&self, request: &Request<'_>, batch_id: &mut Option<BatchId>) -> Result<Acquired, Error> {
        let Request { record_key, claimant, deadline, .. } = request;
        let mut decision = Decision::Claim;
        let mut poll = FIRST_POLL;
        loop {
            let now = self.clock.now();
            *batch_id = decision.batch_id();
            decision = match decision {
                Decision::KeyReused => return Err(Error::KeyReused),
                Decision::Replay { delivered, .. } => return Ok(Acquired::AlreadyQueued(delivered)),
                Decision::Send(record) => return Ok(Acquired::Owned(record)),
                Decision::Claim | Decision::TakeOver { .. } if !deadline.may_send(now) => {
                    return Err(Error::Unavailable("no time is left to send".to_owned()));
                }
                Decision::Claim => {
                    let record = self.first_claim(request, now);
                    let claimed = self.store.claim(record_key, &record, now, deadline.claim_by()).await;
                    if claimed == Ok(Claimed::Refused(None)) {
                        return Err(Error::Internal("a claim was refused without a record".to_owned()));
                    }
                    self.after_claim(request, claimed).await?
                }
                Decision::TakeOver { seen, .. } => {
                    let take_over = TakeOver {
                        seen,
                        owner: claimant.owner.clone(),
                        lease_until: deadline.lease_until(),
                        expires_at: self.expires_at(now),
                    };
                    let claimed = self.store.take_over(record_key, &take_over, now, deadline.claim_by()).await;
                    self.after_claim(request, claimed).await?
                }
                Decision::Wait { until, .. } => {
                    let pause = poll.min(now.until(until));
                    // After `wait_until`, too little time is left to take over.
                    if now + pause >= deadline.wait_until() {
                        return Err(Error::InProgress { lease_left: now.until(until) });
                    }
                    self.clock.sleep(pause).await;
                    poll = (poll * 2).min(LONGEST_POLL);
                    let record = self.store.get(record_key, deadline.claim_by()).await?;
                    decide(record, claimant, self.clock.now())
                }
            };
        }
    }

    fn first_claim(&self, request: &Request<'_>, now: Timestamp) -> Record {
        Record {
            state: State::InProgress,
            fingerprint: request.claimant.fingerprint,
            batch_id: request.claimant.batch_id,
            owner: request.claimant.owner.clone(),
            attempt: 1,
            lease_until: request.deadline.lease_until(),
            delivered: Delivered::none(request.batch.received()),
            expires_at: self.expires_at(now),
        }
    }

    async fn after_claim(
        &self,
        request: &Request<'_>,
        claimed: Result<Claimed, StoreError>,
    ) -> Result<Decision, Error> {
        match claimed {
            Ok(Claimed::Done(record)) => Ok(Decision::Send(record)),
            Ok(Claimed::Refused(record)) => Ok(decide(record, request.claimant, self.clock.now())),
            Err(error) => {
                // The claim may have taken effect. `delivered` stays as it is, because this request
                // does not know the bitmap of a take-over whose response was lost.
                let Request { record_key, claimant, deadline, .. } = request;
                let expires_at = self.expires_at(self.clock.now());
                let _ = self.store.release(record_key, &claimant.owner, None, expires_at, deadline.write_by()).await;
                Err(error.into())
            }
        }
    }

    async fn release(&self, request: &Request<'_>, delivered: &Delivered) {
        let Request { record_key, claimant, deadline, .. } = request;
        let (by, delivered) = (deadline.write_by(), Some(delivered));
        let expires_at = self.expires_at(self.clock.now());
        // If every try fails, the lease ends by itself.
        let _ = self
            .write(by, async || self.store.release(record_key, &claimant.owner, delivered, expires_at, by).await)
            .await;
    }

    /// Repeats an idempotent write until it succeeds or is refused, [`WRITE_TRIES`] tries have failed,
    /// or too little time is left.
    async fn write(
        &self,
        by: Timestamp,
        mut once: impl AsyncFnMut() -> Result<Fenced, StoreError>,
    ) -> Result<Fenced, StoreError> {
        let mut backoff = FIRST_BACKOFF;
        for _ in 1..WRITE_TRIES {
            let written = once().await;
            let left = self.clock.now().until(by);
            if !matches!(written, Err(StoreError::Unavailable(_))) || left.is_zero() {
                return written;
            }
            // A long pause must not use up the time for the next try.
            self.clock.sleep(self.clock.jitter(backoff.min(left / 2))).await;
            backoff *= BACKOFF_GROWTH;
        }
        once().await
    }

    fn expires_at(&self, now: Timestamp) -> u64 {
        (now + self.dedup_window).seconds_rounded_up()
    }
}
