//! The idempotency record: what it holds, what it means, and the port to where it lives.
//!
//! [`decide`] is the heart of the protocol: a pure function from what a record says to what a
//! request must do. `ingest` carries it out. `idempotency.md` beside this file states the
//! invariants and which line keeps each.

use crate::auth::{Mode, ProjectId};
use crate::clock::Timestamp;
use sha2::{Digest, Sha256};
use std::fmt;
use std::ops::Range;
use time::format_description::well_known::iso8601::{Config as Iso8601Config, EncodedConfig, TimePrecision};
use time::{OffsetDateTime, UtcDateTime};
use uuid::{NoContext, Uuid};

/// A client's idempotency key: 1 to 255 visible ASCII characters, otherwise opaque.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct IdempotencyKey<'request>(&'request str);

impl<'request> IdempotencyKey<'request> {
    /// The most characters of a key (contract section 1).
    pub const MAX_LEN: usize = 255;

    /// Takes a header's value as a key; `None` if it is none.
    #[must_use]
    pub fn parse(text: &'request str) -> Option<Self> {
        let is_key = (1..=Self::MAX_LEN).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        is_key.then_some(Self(text))
    }
}

/// The partition key of an idempotency record: project, mode and idempotency key.
///
/// It holds the client's key in clear and so has neither `Debug` nor `Display`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RecordKey(String);

impl RecordKey {
    /// Scopes `key` to its project and mode. Neither of those can hold a `#`.
    #[must_use]
    pub fn new(project: &ProjectId, mode: Mode, IdempotencyKey(key): IdempotencyKey<'_>) -> Self {
        Self(format!("idem#{project}#{mode}#{key}"))
    }

    /// The same for the endpoint of single events, where a key stands for another request. No key
    /// of the one begins like a key of the other.
    #[must_use]
    pub fn single(project: &ProjectId, mode: Mode, IdempotencyKey(key): IdempotencyKey<'_>) -> Self {
        Self(format!("idem-event#{project}#{mode}#{key}"))
    }

    /// The value of the table's `pk` attribute.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// SHA-256 over the decoded body: tells a retry from another request under the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of a decoded body.
    #[must_use]
    pub fn of(body: &[u8]) -> Self {
        Self(Sha256::digest(body).into())
    }
}

/// A batch's id, a `UUIDv7`: made when its key is first claimed and kept by every retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BatchId(Uuid);

impl BatchId {
    /// A new id that carries the time of arrival.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        let nanos = u32::try_from(now.millis() % 1000 * 1_000_000).unwrap_or_default();
        Self(Uuid::new_v7(uuid::Timestamp::from_unix(NoContext, now.seconds(), nanos)))
    }

    /// The id in its usual text form; `None` if the text is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().filter(|id| id.get_version_num() == 7).map(Self)
    }

    /// When the batch first arrived.
    #[must_use]
    pub fn arrival(self) -> Timestamp {
        let (seconds, nanos) = self.0.get_timestamp().map_or((0, 0), |time| time.to_unix());
        Timestamp::from_millis(seconds * 1000 + u64::from(nanos / 1_000_000))
    }

    /// The same as RFC 3339 in UTC with milliseconds.
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

/// The fencing token: 128 random bits made by each request. Only the request whose token the
/// record holds may change it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner(String);

impl Owner {
    /// A token that no other request has.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4().simple().to_string())
    }

    /// The token that a record holds.
    #[must_use]
    pub fn from_record(text: String) -> Self {
        Self(text)
    }

    /// The token as the record holds it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Which events SQS has acknowledged: a bitmap by event index, least significant bit first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Delivered(Vec<u8>);

impl Delivered {
    /// None of `events` events.
    #[must_use]
    pub fn none(events: usize) -> Self {
        Self(vec![0; events.div_ceil(8)])
    }

    /// The bitmap that a record holds.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bitmap as the record holds it.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether the event at `index` was acknowledged.
    #[must_use]
    pub fn contains(&self, index: usize) -> bool {
        self.0.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1)
    }

    /// Notes an acknowledgement.
    pub fn insert(&mut self, index: usize) {
        if self.0.len() <= index / 8 {
            self.0.resize(index / 8 + 1, 0);
        }
        self.0[index / 8] |= 1 << (index % 8);
    }

    /// Whether every event of a range was acknowledged.
    #[must_use]
    pub fn covers(&self, mut range: Range<usize>) -> bool {
        range.all(|index| self.contains(index))
    }

    /// How many events were acknowledged.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.iter().map(|byte| byte.count_ones() as usize).sum()
    }
}

/// How far a batch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Claimed; not known to be in the queue.
    InProgress,
    /// In the queue, every event.
    Accepted,
}

/// What the state table knows of one idempotency key (contract section 6).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// How far the batch has come.
    pub state: State,
    /// Of the body that claimed the key.
    pub fingerprint: Fingerprint,
    /// Kept across take-overs.
    pub batch_id: BatchId,
    /// Who holds the key.
    pub owner: Owner,
    /// Counts claims, for people to read.
    pub attempt: u64,
    /// Until when the holder may be alive.
    pub lease_until: Timestamp,
    /// What SQS acknowledged and was recorded.
    pub delivered: Delivered,
    /// Epoch seconds from which the record counts as absent.
    pub expires_at: u64,
}

/// A request that asks for a key: its fencing token, the id its batch would get, and what it
/// is compared by.
#[derive(Clone, Debug)]
pub struct Claimant {
    /// The fencing token.
    pub owner: Owner,
    /// The id of the batch if this request is the first to claim the key.
    pub batch_id: BatchId,
    /// Of this request's body.
    pub fingerprint: Fingerprint,
}

impl Claimant {
    /// A claimant for a body that arrived at `now`.
    #[must_use]
    pub fn new(now: Timestamp, body: &[u8]) -> Self {
        Self { owner: Owner::random(), batch_id: BatchId::new(now), fingerprint: Fingerprint::of(body) }
    }
}

/// What a request must do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nobody holds the key: claim it.
    Claim,
    /// The key stands for another body: refuse.
    KeyReused,
    /// The batch is in the queue: say so.
    Replay,
    /// This request holds the key: send what is left.
    Mine(Record),
    /// Another request holds the key and may be alive.
    Wait {
        /// When it no longer can be.
        until: Timestamp,
    },
    /// The holder failed or can no longer be alive: take the key from it.
    TakeOver {
        /// Whom the key is taken from.
        seen: Owner,
    },
}

/// What `me` must do about what the table holds.
///
/// The order matters. Expiry comes first, as the table's TTL deletes up to days late. The
/// fingerprint comes before state and lease, so that a reused key never hides behind them.
#[must_use]
pub fn decide(record: Option<Record>, me: &Claimant, now: Timestamp) -> Decision {
    match record {
        None => Decision::Claim,
        Some(record) if record.expires_at <= now.seconds() => Decision::Claim,
        Some(record) if record.fingerprint != me.fingerprint => Decision::KeyReused,
        Some(Record { state: State::Accepted, .. }) => Decision::Replay,
        // A conditional write retried after a lost reply meets its own effect.
        Some(record) if record.owner == me.owner && now < record.lease_until => Decision::Mine(record),
        Some(record) if now < record.lease_until => Decision::Wait { until: record.lease_until },
        Some(record) => Decision::TakeOver { seen: record.owner },
    }
}

/// How the table took a claim or a take-over.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Claimed {
    /// The key is the claimant's, under this record.
    Done(Record),
    /// The condition failed; this is what the table holds.
    Refused(Option<Record>),
}

/// How the table took a write that only the holder may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fenced {
    /// Written.
    Done,
    /// The key has another holder, or is gone.
    Lost,
}

/// Why a call to a store has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// It could not be reached or refused for now; a write may or may not have had effect.
    Unavailable(String),
    /// It holds what we cannot have written, or refuses what we write.
    Defect(String),
}

/// A take-over's new values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TakeOver {
    /// Whom the key is taken from; nobody else may hold it.
    pub seen: Owner,
    /// The new holder.
    pub owner: Owner,
    /// The new holder's lease.
    pub lease_until: Timestamp,
    /// Epoch seconds.
    pub expires_at: u64,
}

/// The state table, at the level of the protocol. Each call is one atomic operation and
/// answers by the time `by`, if need be with [`StoreError::Unavailable`].
#[expect(async_fn_in_trait, reason = "everything runs on one thread; no caller needs a Send future")]
pub trait StateStore {
    /// Reads a record, seeing every write acknowledged before.
    async fn get(&self, key: &RecordKey, by: Timestamp) -> Result<Option<Record>, StoreError>;

    /// Writes `record` if there is none, or if the one there expired by `now`.
    async fn claim(
        &self,
        key: &RecordKey,
        record: &Record,
        now: Timestamp,
        by: Timestamp,
    ) -> Result<Claimed, StoreError>;

    /// Makes `take_over.owner` the holder and counts an attempt, if the holder is the one seen,
    /// its lease has lapsed by `now` and the batch is still in progress.
    async fn take_over(
        &self,
        key: &RecordKey,
        take_over: &TakeOver,
        now: Timestamp,
        by: Timestamp,
    ) -> Result<Claimed, StoreError>;

    /// Marks the batch accepted until `expires_at`, if `owner` still holds the key.
    async fn complete(
        &self,
        key: &RecordKey,
        owner: &Owner,
        expires_at: u64,
        by: Timestamp,
    ) -> Result<Fenced, StoreError>;

    /// Ends the lease at once and records what was delivered (`None` leaves that as it is), if
    /// `owner` still holds the key and the batch is still in progress.
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

    fn me() -> Claimant {
        let owner = Owner::from_record("me".to_owned());
        Claimant { owner, batch_id: BatchId::new(NOW), fingerprint: Fingerprint::of(b"body") }
    }

    fn mine() -> Record {
        Record {
            state: State::InProgress,
            fingerprint: me().fingerprint,
            batch_id: BatchId::new(NOW),
            owner: me().owner,
            attempt: 1,
            lease_until: Timestamp::from_millis(NOW.millis() + 1),
            delivered: Delivered::none(1),
            expires_at: NOW.seconds() + 1,
        }
    }

    fn another() -> Record {
        Record { owner: Owner::from_record("another".to_owned()), ..mine() }
    }

    fn decided(record: Record) -> Decision {
        decide(Some(record), &me(), NOW)
    }

    #[test]
    fn an_expired_record_is_none_whatever_it_says() {
        assert_eq!(decide(None, &me(), NOW), Decision::Claim);
        for record in [mine(), another()] {
            for state in [State::InProgress, State::Accepted] {
                for fingerprint in [me().fingerprint, Fingerprint::of(b"other")] {
                    let expired = Record { state, fingerprint, expires_at: NOW.seconds(), ..record.clone() };
                    assert_eq!(decided(expired), Decision::Claim);
                }
            }
        }
    }

    #[test]
    fn another_body_is_refused_whatever_the_record_says() {
        for record in [mine(), another()] {
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
    fn the_same_body_is_replayed_or_mine_or_waits_or_takes_over() {
        for record in [mine(), another()] {
            assert_eq!(decided(Record { state: State::Accepted, ..record }), Decision::Replay);
        }
        let held = mine();
        assert_eq!(decided(held.clone()), Decision::Mine(held));
        assert_eq!(decided(another()), Decision::Wait { until: another().lease_until });
        for record in [mine(), another()] {
            let seen = record.owner.clone();
            assert_eq!(decided(Record { lease_until: NOW, ..record }), Decision::TakeOver { seen });
        }
    }
}
