//! The pipeline over ports that fail in ways that the local AWS cannot.

use crate::test_app::StillClock;
use contract::batch::Batch;
use contract::idempotency_key::IdempotencyKey;
use contract::tenant::{Mode, ProjectId, Tenant};
use event_ingest::clock::Timestamp;
use event_ingest::deadline::Deadline;
use event_ingest::delivery::{Queue, SendResult};
use event_ingest::error::Error;
use event_ingest::idempotency::{
    Claimant, Claimed, Delivered, Fenced, Fingerprint, Owner, Record, RecordKey, StateStore, TakeOver,
};
use event_ingest::ingest::{Completion, Ingested, Pipeline, Request, Success};
use event_ingest::packing::{Envelope, Message, Packing};
use event_ingest::store::StoreError;
use std::cell::Cell;
use std::num::NonZeroU16;
use std::time::Duration;

const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);
const BODY: &[u8] = br#"{"events":[{"external_user_id":"u","name":"n"}]}"#;

/// A table that accepts or refuses the claim and then fails every write.
struct FailingTable {
    refuses_claims: bool,
    writes: Cell<u32>,
}

impl FailingTable {
    fn fail(&self) -> Result<Fenced, StoreError> {
        self.writes.set(self.writes.get() + 1);
        Err(StoreError::Unavailable("throttled".to_owned()))
    }
}

impl StateStore for FailingTable {
    async fn get(&self, _: &RecordKey, _: Timestamp) -> Result<Option<Record>, StoreError> {
        unreachable!("nobody waits")
    }

    async fn claim(&self, _: &RecordKey, record: &Record, _: Timestamp, _: Timestamp) -> Result<Claimed, StoreError> {
        Ok(if self.refuses_claims { Claimed::Refused(None) } else { Claimed::Done(record.clone()) })
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
        self.fail()
    }

    async fn release(
        &self,
        _: &RecordKey,
        _: &Owner,
        _: Option<&Delivered>,
        _: u64,
        _: Timestamp,
    ) -> Result<Fenced, StoreError> {
        self.fail()
    }
}

/// What the queue does with each message.
enum FakeQueue {
    Accepts,
    Refuses,
    Panics,
}

impl Queue for FakeQueue {
    async fn send(&self, _: &Envelope, messages: &[Message], _: Timestamp) -> Vec<SendResult> {
        let result = match self {
            Self::Accepts => SendResult::Acknowledged,
            Self::Refuses => SendResult::Permanent,
            Self::Panics => panic!("a defect of the queue"),
        };
        vec![result; messages.len()]
    }
}

fn pipeline(refuses_claims: bool, queue: FakeQueue) -> Pipeline<FailingTable, FakeQueue, StillClock> {
    Pipeline {
        store: FailingTable { refuses_claims, writes: Cell::new(0) },
        queue,
        clock: StillClock(Cell::new(START)),
        dedup_window: Duration::from_hours(24),
        packing: Packing::standard(NonZeroU16::new(50).unwrap()),
    }
}

async fn ingest(pipeline: &Pipeline<FailingTable, FakeQueue, StillClock>) -> Ingested {
    let tenant = Tenant { project: ProjectId::parse("acme").unwrap(), mode: Mode::Live };
    let request = Request {
        tenant: &tenant,
        record_key: &RecordKey::of_batch(&tenant, IdempotencyKey::parse("key").unwrap()),
        claimant: &Claimant::new(START, Fingerprint::of(BODY)),
        batch: &Batch::parse(BODY).unwrap(),
        trace: None,
        deadline: &Deadline::new(START, START + Duration::from_secs(4)),
    };
    pipeline.ingest(&request).await
}

/// The SDK makes up to three requests per try. More tries would multiply the load of a table that is throttled.
#[tokio::test]
async fn a_write_that_fails_is_tried_three_times() {
    let accepting = pipeline(false, FakeQueue::Accepts);
    let Ok(Success::Accepted(pending)) = ingest(&accepting).await.result else { panic!("the batch is queued") };
    assert_eq!(accepting.complete(&pending).await, Completion::Failed);
    assert_eq!(accepting.store.writes.get(), 3);

    let refusing = pipeline(false, FakeQueue::Refuses);
    assert!(ingest(&refusing).await.result.is_err());
    assert_eq!(refusing.store.writes.get(), 3, "the release");
}

#[tokio::test]
async fn a_claim_that_is_refused_without_a_record_is_a_defect() {
    let ingested = ingest(&pipeline(true, FakeQueue::Accepts)).await;
    assert!(matches!(ingested.result, Err(Error::Internal(_))));
}

/// The log line and the response of a panic must still name the batch.
#[tokio::test]
async fn a_panic_keeps_the_findings() {
    let ingested = ingest(&pipeline(false, FakeQueue::Panics)).await;
    assert!(matches!(ingested.result, Err(Error::Internal(_))));
    assert!(ingested.findings.batch_id.is_some());
    assert_eq!(ingested.findings.attempt, Some(1));
}
