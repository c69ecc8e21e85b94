//! The pipeline over ports that fail in ways that the local AWS cannot.

use crate::test_app::StillClock;
use contract::batch::Batch;
use contract::idempotency_key::IdempotencyKey;
use contract::tenant::{Mode, ProjectId, Tenant};
use event_ingest::clock::{Clock, Timestamp};
use event_ingest::deadline::{Deadline, RESERVE};
use event_ingest::delivery::{Queue, SendResult};
use event_ingest::error::Error;
use event_ingest::idempotency::{
    Claimant, Claimed, Delivered, Fenced, Fingerprint, Owner, Record, RecordKey, StateStore, TakeOver,
};
use event_ingest::ingest::{Completion, Ingested, PendingCompletion, Pipeline, Request, Success};
use event_ingest::packing::{Envelope, Message, Packing};
use event_ingest::store::StoreError;
use std::cell::{Cell, RefCell};
use std::num::NonZeroU16;
use std::time::Duration;

const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);
const BODY: &[u8] = br#"{"events":[{"external_user_id":"u","name":"n"}]}"#;

/// What the table does with a claim.
enum Claims {
    Accepts,
    /// The record belongs to another request, whose lease is as long as this one's.
    BelongToAnother,
    RefusesWithoutRecord,
}

/// A table that gives the same result to every write after the claim.
struct FakeTable {
    claims: Claims,
    write: Result<Fenced, StoreError>,
    claim: RefCell<Option<Record>>,
    reads: Cell<u32>,
    writes: Cell<u32>,
}

impl FakeTable {
    fn new(claims: Claims, write: Result<Fenced, StoreError>) -> Self {
        Self { claims, write, claim: RefCell::default(), reads: Cell::new(0), writes: Cell::new(0) }
    }

    fn write(&self) -> Result<Fenced, StoreError> {
        self.writes.set(self.writes.get() + 1);
        self.write.clone()
    }

    fn of_another(&self) -> Option<Record> {
        let owner = Owner::from_record("another".to_owned());
        self.claim.borrow().clone().map(|claim| Record { owner, ..claim })
    }
}

impl StateStore for FakeTable {
    async fn get(&self, _: &RecordKey, _: Timestamp) -> Result<Option<Record>, StoreError> {
        self.reads.set(self.reads.get() + 1);
        assert!(self.reads.get() < 100, "the wait does not end");
        Ok(self.of_another())
    }

    async fn claim(&self, _: &RecordKey, record: &Record, _: Timestamp, _: Timestamp) -> Result<Claimed, StoreError> {
        *self.claim.borrow_mut() = Some(record.clone());
        Ok(match self.claims {
            Claims::Accepts => Claimed::Done(record.clone()),
            Claims::BelongToAnother => Claimed::Refused(self.of_another()),
            Claims::RefusesWithoutRecord => Claimed::Refused(None),
        })
    }

    async fn take_over(&self, _: &RecordKey, _: &TakeOver, _: Timestamp, _: Timestamp) -> Result<Claimed, StoreError> {
        unreachable!("nobody takes over")
    }

    async fn complete(
        &self,
        _: &RecordKey,
        _: &Owner,
        _: &Delivered,
        _: u64,
        _: Timestamp,
    ) -> Result<Fenced, StoreError> {
        self.write()
    }

    async fn release(
        &self,
        _: &RecordKey,
        _: &Owner,
        _: Option<&Delivered>,
        _: u64,
        _: Timestamp,
    ) -> Result<Fenced, StoreError> {
        self.write()
    }
}

/// What the queue does with each message.
enum FakeQueue {
    Accepts,
    Refuses,
    Panics,
}

impl Queue for FakeQueue {
    async fn send(&self, _: &Envelope, messages: Vec<Message>, _: Timestamp) -> Vec<SendResult> {
        let result = match self {
            Self::Accepts => SendResult::Acknowledged,
            Self::Refuses => SendResult::Permanent,
            Self::Panics => panic!("a defect of the queue"),
        };
        vec![result; messages.len()]
    }
}

type FakePipeline = Pipeline<FakeTable, FakeQueue, StillClock>;

/// A pipeline over a table that fails every write after the claim.
fn failing(queue: FakeQueue) -> FakePipeline {
    pipeline(FakeTable::new(Claims::Accepts, throttled()), queue)
}

fn throttled() -> Result<Fenced, StoreError> {
    Err(StoreError::Unavailable("throttled".to_owned()))
}

fn pipeline(store: FakeTable, queue: FakeQueue) -> FakePipeline {
    Pipeline {
        store,
        queue,
        clock: StillClock(Cell::new(START)),
        dedup_window: Duration::from_hours(24),
        packing: Packing::standard(NonZeroU16::new(50).unwrap()),
    }
}

async fn ingest(pipeline: &FakePipeline) -> Ingested {
    ingest_within(Duration::from_secs(4), pipeline).await
}

async fn ingest_within(budget: Duration, pipeline: &FakePipeline) -> Ingested {
    let tenant = Tenant { project: ProjectId::parse("acme").unwrap(), mode: Mode::Live };
    let request = Request {
        tenant: &tenant,
        record_key: &RecordKey::of_batch(&tenant, IdempotencyKey::parse("key").unwrap()),
        claimant: &Claimant::new(START, Fingerprint::of(BODY)),
        batch: &Batch::parse(BODY).unwrap(),
        trace: None,
        deadline: &Deadline::new(START, START + budget),
    };
    pipeline.ingest(&request).await
}

/// The batch after the send and before the completion.
async fn pending(pipeline: &FakePipeline) -> PendingCompletion {
    match ingest(pipeline).await.result {
        Ok(Success::Accepted(pending)) => pending,
        _ => panic!("the batch is queued"),
    }
}

/// The SDK makes up to three requests per try. More tries would multiply the load of a table that is throttled.
#[tokio::test]
async fn a_write_that_fails_is_tried_three_times() {
    let accepting = failing(FakeQueue::Accepts);
    let pending = pending(&accepting).await;
    assert_eq!(accepting.complete(&pending).await, Completion::Failed);
    assert_eq!(accepting.store.writes.get(), 3);
    assert_eq!(accepting.clock.now(), START + Duration::from_millis(50 + 200), "each pause is four times as long");

    let refusing = failing(FakeQueue::Refuses);
    assert!(ingest(&refusing).await.result.is_err());
    assert_eq!(refusing.store.writes.get(), 3, "the release");
}

#[tokio::test]
async fn pauses_leave_time_for_the_last_try_of_a_write() {
    let pipeline = failing(FakeQueue::Accepts);
    let pending = pending(&pipeline).await;
    pipeline.clock.0.set(pending.deadline.write_by().minus(Duration::from_millis(60)));
    assert_eq!(pipeline.complete(&pending).await, Completion::Failed);
    assert_eq!(pipeline.store.writes.get(), 3);
    assert!(pipeline.clock.now() < pending.deadline.write_by());
}

#[tokio::test]
async fn a_write_is_not_repeated_after_its_result_or_its_deadline() {
    let defect = Err(StoreError::Defect("invalid".to_owned()));
    let results = [
        (Ok(Fenced::Done), Completion::Written),
        (Ok(Fenced::Lost), Completion::LostClaim),
        (defect, Completion::Failed),
    ];
    for (write, completion) in results {
        let pipeline = pipeline(FakeTable::new(Claims::Accepts, write), FakeQueue::Accepts);
        let pending = pending(&pipeline).await;
        assert_eq!(pipeline.complete(&pending).await, completion);
        assert_eq!(pipeline.store.writes.get(), 1, "{completion:?}");
    }
    let pipeline = failing(FakeQueue::Accepts);
    let pending = pending(&pipeline).await;
    pipeline.clock.0.set(pending.deadline.write_by());
    assert_eq!(pipeline.complete(&pending).await, Completion::Failed);
    assert_eq!(pipeline.store.writes.get(), 1);
}

#[tokio::test]
async fn a_request_without_time_to_send_claims_nothing() {
    let pipeline = failing(FakeQueue::Accepts);
    let ingested = ingest_within(RESERVE.saturating_sub(Duration::from_millis(1)), &pipeline).await;
    assert!(matches!(ingested.result, Err(Error::Unavailable(_))));
    assert_eq!(*pipeline.store.claim.borrow(), None);
}

/// The pauses are 50, 100, and 200 ms, and then 400 ms each.
#[tokio::test]
async fn a_request_that_waits_for_the_owner_reads_the_record_nine_times_in_three_seconds() {
    let pipeline = pipeline(FakeTable::new(Claims::BelongToAnother, throttled()), FakeQueue::Accepts);
    let Err(Error::InProgress { lease_left }) = ingest(&pipeline).await.result else {
        panic!("the owner keeps the key")
    };
    assert_eq!(lease_left, Duration::from_millis(4700 - 2750));
    assert_eq!(pipeline.store.reads.get(), 9);
}

#[tokio::test]
async fn a_claim_that_is_refused_without_a_record_is_a_defect() {
    let table = FakeTable::new(Claims::RefusesWithoutRecord, throttled());
    let ingested = ingest(&pipeline(table, FakeQueue::Accepts)).await;
    assert!(matches!(ingested.result, Err(Error::Internal(_))));
}

/// The log line and the response of a panic must still name the batch.
#[tokio::test]
async fn a_panic_keeps_the_findings() {
    let ingested = ingest(&failing(FakeQueue::Panics)).await;
    assert!(matches!(ingested.result, Err(Error::Internal(_))));
    assert!(ingested.findings.batch_id.is_some());
    assert_eq!(ingested.findings.attempt, Some(1));
}
