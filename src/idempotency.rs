//! The idempotency record: its contents, the decisions about it, and the port to its store.
//!
//! [`decide`] is the core of the protocol: a pure function from a record to a request's next step.
//! `ingest` carries the step out. `src/idempotency.md` lists the invariants and the code that keeps
//! each of them.

use crate::clock::Timestamp;
use crate::store::StoreError;
use contract::idempotency_key::IdempotencyKey;
use contract::tenant::Tenant;
use sha2::{Digest, Sha256};
use std::fmt;
use time::format_description::well_known::iso8601::{Config as Iso8601Config, EncodedConfig, TimePrecision};
use time::{OffsetDateTime, UtcDateTime};
use uuid::{NoContext, Uuid};

/// The partition key of an idempotency record: endpoint, tenant and idempotency key.
///
/// It contains the client's key in clear, so it implements neither `Debug` nor `Display`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RecordKey(String);

impl RecordKey {
    /// The key of a request to `POST /api/v1/events/batch`.
    #[must_use]
    pub fn of_batch(tenant: &Tenant, key: IdempotencyKey<'_>) -> Self {
        Self::new("idem", tenant, key.as_str())
    }

    /// The key of a request to `POST /api/v1/events`.
    #[must_use]
    pub fn of_event(tenant: &Tenant, key: IdempotencyKey<'_>) -> Self {
        Self::new("idem-event", tenant, key.as_str())
    }

    /// The key of a request to `POST /api/v1/events/bulk`.
    #[must_use]
    pub fn of_bulk(tenant: &Tenant, key: IdempotencyKey<'_>) -> Self {
        Self::new("idem-bulk", tenant, key.as_str())
    }

    /// The key of a request to `POST /api/v1/events/bulk` without an idempotency key. The body's
    /// fingerprint takes its place, so a retry of the same body has the same key.
    #[must_use]
    pub fn of_bulk_body(tenant: &Tenant, Fingerprint(body): &Fingerprint) -> Self {
        Self::new("idem-bulk", tenant, &hex::encode(body))
    }

    /// The key is unambiguous, because neither a project nor a mode can contain a `#`.
    fn new(prefix: &str, Tenant { project, mode }: &Tenant, key: &str) -> Self {
        Self(format!("{prefix}#{project}#{mode}#{key}"))
    }

    /// The value of the table's `pk` attribute.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// SHA-256 over the decoded body. It tells a retry from another request with the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of a decoded body.
    #[must_use]
    pub fn of(body: &[u8]) -> Self {
        Self(Sha256::digest(body).into())
    }
}

/// A batch's id, a `UUIDv7`. It is created when the batch's key is first claimed, and every retry keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BatchId(Uuid);

impl BatchId {
    /// Creates an id that contains the time of arrival.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        let nanos = u32::try_from(now.millis() % 1000 * 1_000_000).unwrap_or_default();
        Self(Uuid::new_v7(uuid::Timestamp::from_unix(NoContext, now.seconds(), nanos)))
    }

    /// Parses the usual text form; `None` if the text is not a UUIDv7.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().filter(|id| id.get_version_num() == 7).map(Self)
    }

    /// The time at which the batch first arrived.
    #[must_use]
    pub fn arrival(self) -> Timestamp {
        let (seconds, nanos) = self.0.get_timestamp().map_or((0, 0), |time| time.to_unix());
        Timestamp::from_millis(seconds * 1000 + u64::from(nanos / 1_000_000))
    }

    /// The time of arrival in RFC 3339: UTC, with milliseconds.
    #[must_use]
    pub fn received_at(self) -> String {
        const MILLISECONDS: EncodedConfig = Iso8601Config::DEFAULT
            .set_time_precision(TimePrecision::Second { decimal_digits: std::num::NonZeroU8::new(3) })
            .encode();
        let format = time::format_description::well_known::Iso8601::<MILLISECONDS>;
        let nanos = i128::from(self.arrival().millis()) * 1_000_000;
        let time = OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        UtcDateTime::from(time).format(&format).unwrap_or_default()
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The owner of a key: a fencing token of 128 random bits that each request creates. Only the request
/// whose token is in the record may change the record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner(String);

impl Owner {
    /// Creates a token that no other request has.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4().simple().to_string())
    }

    /// The token in a record.
    #[must_use]
    pub fn from_record(text: String) -> Self {
        Self(text)
    }

    /// The token as text, for the record.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The events that SQS has acknowledged: a bitmap by event index, least significant bit first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Delivered(Vec<u8>);

impl Delivered {
    /// A bitmap for `events` events, none of them delivered.
    #[must_use]
    pub fn none(events: usize) -> Self {
        Self(vec![0; events.div_ceil(8)])
    }

    /// The bitmap in a record.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bitmap as bytes, for the record.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether the event at `index` was acknowledged.
    #[must_use]
    pub fn contains(&self, index: usize) -> bool {
        self.0.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1)
    }

    /// Marks the event at `index` as acknowledged.
    pub fn insert(&mut self, index: usize) {
        if self.0.len() <= index / 8 {
            self.0.resize(index / 8 + 1, 0);
        }
        self.0[index / 8] |= 1 << (index % 8);
    }

    /// Whether the events at all `indexes` were acknowledged.
    #[must_use]
    pub fn covers(&self, mut indexes: impl Iterator<Item = usize>) -> bool {
        indexes.all(|index| self.contains(index))
    }

    /// The number of acknowledged events.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.iter().map(|byte| byte.count_ones() as usize).sum()
    }
}

/// The state of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// The key is claimed. The batch may not be in the queue yet.
    InProgress,
    /// Every event is in the queue.
    Accepted,
}

/// The state table's record of one idempotency key (docs/contract.md, "State table").
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// The state of the batch.
    pub state: State,
    /// The fingerprint of the body that claimed the key.
    pub fingerprint: Fingerprint,
    /// The id of the batch, kept across take-overs.
    pub batch_id: BatchId,
    /// The request that owns the key.
    pub owner: Owner,
    /// The number of claims and take-overs so far. Only people read it.
    pub attempt: u64,
    /// The time until which the owner may be alive.
    pub lease_until: Timestamp,
    /// The events that SQS acknowledged, as far as an earlier attempt recorded them.
    pub delivered: Delivered,
    /// The time from which the record counts as absent, in epoch seconds.
    pub expires_at: u64,
}

/// A request that wants to own a key.
#[derive(Clone, Debug)]
pub struct Claimant {
    /// Its fencing token.
    pub owner: Owner,
    /// The batch's id, if this request is the first to claim the key.
    pub batch_id: BatchId,
    /// The fingerprint of its body.
    pub fingerprint: Fingerprint,
}

impl Claimant {
    /// Creates a claimant for a body that arrived at `now`.
    #[must_use]
    pub fn new(now: Timestamp, fingerprint: Fingerprint) -> Self {
        Self { owner: Owner::random(), batch_id: BatchId::new(now), fingerprint }
    }
}

/// A request's next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// No request owns the key: claim it.
    Claim,
    /// The key belongs to another body: refuse.
    KeyReused,
    /// The batch is in the queue: replay the response.
    Replay {
        /// The batch's id.
        batch_id: BatchId,
        /// The events in the queue.
        delivered: Delivered,
    },
    /// This request owns the key: send the events that are not delivered.
    Send(Record),
    /// Another request owns the key and may be alive: wait.
    Wait {
        /// The end of its lease.
        until: Timestamp,
        /// The batch's id.
        batch_id: BatchId,
    },
    /// The owner failed or can no longer be alive: take over.
    TakeOver {
        /// The owner in the record.
        seen: Owner,
        /// The batch's id.
        batch_id: BatchId,
    },
}

impl Decision {
    /// The id of the batch in the record, if the record belongs to this request's body.
    #[must_use]
    pub fn batch_id(&self) -> Option<BatchId> {
        match self {
            Self::Claim | Self::KeyReused => None,
            Self::Send(record) => Some(record.batch_id),
            Self::Replay { batch_id, .. } | Self::Wait { batch_id, .. } | Self::TakeOver { batch_id, .. } => {
                Some(*batch_id)
            }
        }
    }
}

/// Decides the next step of `claimant`, given the record in the table.
///
/// The order matters. Expiry comes first, because the table's TTL may delete a record days late. The
/// fingerprint comes before state and lease, so that a reused key is reported in every state.
#[must_use]
pub fn decide(record: Option<Record>, claimant: &Claimant, now: Timestamp) -> Decision {
    match record {
        None => Decision::Claim,
        Some(record) if record.expires_at <= now.seconds() => Decision::Claim,
        Some(record) if record.fingerprint != claimant.fingerprint => Decision::KeyReused,
        Some(Record { state: State::Accepted, batch_id, delivered, .. }) => Decision::Replay { batch_id, delivered },
        // A conditional write that was repeated after a lost response finds its own effect.
        Some(record) if record.owner == claimant.owner && now < record.lease_until => Decision::Send(record),
        Some(Record { lease_until, batch_id, .. }) if now < lease_until => {
            Decision::Wait { until: lease_until, batch_id }
        }
        Some(Record { owner, batch_id, .. }) => Decision::TakeOver { seen: owner, batch_id },
    }
}

/// The result of a claim or a take-over.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Claimed {
    /// The claimant owns the key, with this record.
    Done(Record),
    /// The condition failed. Contains the record in the table, if there is one.
    Refused(Option<Record>),
}

/// The result of a write that only the owner may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fenced {
    /// The record is written.
    Done,
    /// The key has another owner or no record.
    Lost,
}

/// The values of a take-over.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TakeOver {
    /// The owner that the record must still have.
    pub seen: Owner,
    /// The new owner.
    pub owner: Owner,
    /// The new owner's lease.
    pub lease_until: Timestamp,
    /// The record's new expiry, in epoch seconds.
    pub expires_at: u64,
}

/// The state table, at the level of the protocol. Each call is one atomic operation. It returns no later
/// than `by`, with [`StoreError::Unavailable`] if there is no response by then.
#[expect(async_fn_in_trait, reason = "everything runs on one thread; no caller needs a Send future")]
pub trait StateStore {
    /// Reads a record. The read sees every write that was acknowledged before.
    async fn get(&self, key: &RecordKey, by: Timestamp) -> Result<Option<Record>, StoreError>;

    /// Writes `record` if there is none, or if the existing one expired by `now`.
    async fn claim(
        &self,
        key: &RecordKey,
        record: &Record,
        now: Timestamp,
        by: Timestamp,
    ) -> Result<Claimed, StoreError>;

    /// Makes `take_over.owner` the owner and counts an attempt, if the owner is still
    /// `take_over.seen`, its lease ended by `now` and the batch is still in progress.
    async fn take_over(
        &self,
        key: &RecordKey,
        take_over: &TakeOver,
        now: Timestamp,
        by: Timestamp,
    ) -> Result<Claimed, StoreError>;

    /// Marks the batch accepted until `expires_at` and records the events in the queue, if `owner` still
    /// owns the key.
    async fn complete(
        &self,
        key: &RecordKey,
        owner: &Owner,
        delivered: &Delivered,
        expires_at: u64,
        by: Timestamp,
    ) -> Result<Fenced, StoreError>;

    /// Ends the lease at once and records `delivered` (`None` leaves the bitmap as it is), if `owner`
    /// still owns the key and the batch is still in progress.
    async fn release(
        &self,
        key: &RecordKey,
        owner: &Owner,
        delivered: Option<&Delivered>,
        expires_at: u64,
        by: Timestamp,
    ) -> Result<Fenced, StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn claimant() -> Claimant {
        let owner = Owner::from_record("claimant".to_owned());
        Claimant { owner, batch_id: BatchId::new(NOW), fingerprint: Fingerprint::of(b"body") }
    }

    fn own() -> Record {
        Record {
            state: State::InProgress,
            fingerprint: claimant().fingerprint,
            batch_id: BatchId::new(NOW),
            owner: claimant().owner,
            attempt: 1,
            lease_until: Timestamp::from_millis(NOW.millis() + 1),
            delivered: Delivered::none(1),
            expires_at: NOW.seconds() + 1,
        }
    }

    fn another() -> Record {
        Record { owner: Owner::from_record("another".to_owned()), ..own() }
    }

    fn decided(record: Record) -> Decision {
        decide(Some(record), &claimant(), NOW)
    }

    #[test]
    fn an_expired_record_counts_as_absent() {
        assert_eq!(decide(None, &claimant(), NOW), Decision::Claim);
        for record in [own(), another()] {
            for state in [State::InProgress, State::Accepted] {
                for fingerprint in [claimant().fingerprint, Fingerprint::of(b"other")] {
                    let expired = Record { state, fingerprint, expires_at: NOW.seconds(), ..record.clone() };
                    assert_eq!(decided(expired), Decision::Claim);
                }
            }
        }
    }

    #[test]
    fn another_body_is_refused_in_every_state() {
        for record in [own(), another()] {
            for state in [State::InProgress, State::Accepted] {
                for lease_until in [NOW, record.lease_until] {
                    let fingerprint = Fingerprint::of(b"other");
                    let other = Record { state, fingerprint, lease_until, ..record.clone() };
                    assert_eq!(decided(other), Decision::KeyReused);
                }
            }
        }
    }

    #[test]
    fn the_same_body_replays_sends_waits_or_takes_over() {
        for record in [own(), another()] {
            let (batch_id, delivered) = (record.batch_id, record.delivered.clone());
            let accepted = Record { state: State::Accepted, ..record };
            assert_eq!(decided(accepted), Decision::Replay { batch_id, delivered });
        }
        let record = own();
        assert_eq!(decided(record.clone()), Decision::Send(record));
        let record = another();
        let Record { lease_until: until, batch_id, .. } = record;
        assert_eq!(decided(record), Decision::Wait { until, batch_id });
        for record in [own(), another()] {
            let seen = record.owner.clone();
            let batch_id = record.batch_id;
            assert_eq!(decided(Record { lease_until: NOW, ..record }), Decision::TakeOver { seen, batch_id });
        }
    }

    #[test]
    fn a_batch_id_contains_the_time_of_arrival() {
        let id = BatchId::new(Timestamp::from_millis(1_800_000_000_123));
        assert_eq!(id.arrival(), Timestamp::from_millis(1_800_000_000_123));
        assert_eq!(id.received_at(), "2027-01-15T08:00:00.123Z");
        assert_eq!(BatchId::parse(&id.to_string()), Some(id));
        assert_eq!(BatchId::parse("00000000-0000-4000-8000-000000000000"), None, "a version 4");
    }

    /// A record can contain a shorter bitmap than this request needs.
    #[test]
    fn a_bitmap_grows_to_the_event_that_is_inserted() {
        for index in 0..40 {
            let mut delivered = Delivered::from_bytes(Vec::new());
            delivered.insert(index);
            assert_eq!(delivered.as_bytes().len(), index / 8 + 1);
            assert_eq!((0..48).filter(|&other| delivered.contains(other)).collect::<Vec<_>>(), [index]);
            let mut again = Delivered::none(48);
            again.insert(index);
            assert_eq!((again.as_bytes().len(), again.count()), (6, 1), "the bitmap is long enough");
        }
    }
}
