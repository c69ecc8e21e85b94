//! The function without AWS: tables and a queue in memory that answer at once.

use contract::api_key::{ApiKey, KeyHash, KeyRecord};
use contract::tenant::ProjectId;
use contract::tenant::Tenant;
use event_ingest::auth::{Authenticator, KeyStore};
use event_ingest::clock::{Clock, Timestamp};
use event_ingest::delivery::{Envelope, MAX_CALL_BYTES, MAX_CALL_MESSAGES, Message, Queue, SendResult};
use event_ingest::http::App;
use event_ingest::idempotency::TakeOver;
use event_ingest::idempotency::{Claimed, Delivered, Fenced, Owner, Record, RecordKey, State, StateStore};
use event_ingest::ingest::Pipeline;
use event_ingest::rate_limit::{GrantResponse, RateLimiter, Window, WindowStore};
use event_ingest::store::StoreError;
use event_ingest::telemetry::{AwsCalls, Telemetry};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::io::{self, Write};
use std::num::NonZeroU16;
use std::rc::Rc;
use std::time::Duration;

/// The keys of the samples in events/ that are not let in.
pub const REVOKED_KEY: &str = "sk_test_LOCAL_ONLY_revoked_key_0123456789";
pub const READ_ONLY_KEY: &str = "sk_test_LOCAL_ONLY_read_scope_0123456789";

pub type FakeApp = App<Keys, Windows, Table, MemoryQueue, StillClock>;

/// The function, its queue, and what it logs.
pub fn app(max_events_per_message: NonZeroU16) -> (FakeApp, Log) {
    let log = Log::default();
    let app = App {
        auth: Authenticator::new(Keys, None),
        limiter: RateLimiter::new(Windows),
        pipeline: Pipeline {
            store: Table::default(),
            queue: MemoryQueue::default(),
            clock: StillClock::default(),
            dedup_window: Duration::from_hours(24),
            max_events_per_message,
        },
        telemetry: Telemetry::new("fuzz".to_owned(), Box::new(log.clone()), AwsCalls::default),
    };
    (app, log)
}

/// Knows every well-formed key.
pub struct Keys;

impl KeyStore for Keys {
    async fn find(&self, hash: &KeyHash, _: Timestamp) -> Result<Option<KeyRecord>, StoreError> {
        let is = |text| ApiKey::parse(text).is_some_and(|key| key.hash() == *hash);
        let project = ProjectId::parse("acme").ok_or_else(|| StoreError::Defect("acme is a project".to_owned()))?;
        let scopes = is(READ_ONLY_KEY).then(|| BTreeSet::from(["events:read".to_owned()]));
        let hint = "sk_test_…".to_owned();
        Ok(Some(KeyRecord { project, hint, active: !is(REVOKED_KEY), scopes, rate_limit: Some(50) }))
    }
}

/// Has room for all.
pub struct Windows;

impl WindowStore for Windows {
    async fn grant(&self, _: &Tenant, _: Window, _: u64, _: u64, _: Timestamp) -> Result<GrantResponse, StoreError> {
        Ok(GrantResponse { granted: true, used: 0 })
    }
}

/// Idempotency records.
#[derive(Default)]
pub struct Table(RefCell<HashMap<RecordKey, Record>>);

impl Table {
    pub fn records(&self) -> usize {
        self.0.borrow().len()
    }

    fn fenced(&self, key: &RecordKey, owner: &Owner, change: impl FnOnce(&mut Record)) -> Fenced {
        match self.0.borrow_mut().get_mut(key).filter(|record| record.owner == *owner) {
            Some(record) => {
                change(record);
                Fenced::Done
            }
            None => Fenced::Lost,
        }
    }
}

impl StateStore for Table {
    async fn get(&self, key: &RecordKey, _: Timestamp) -> Result<Option<Record>, StoreError> {
        Ok(self.0.borrow().get(key).cloned())
    }

    async fn claim(&self, key: &RecordKey, record: &Record, _: Timestamp, _: Timestamp) -> Result<Claimed, StoreError> {
        let mut records = self.0.borrow_mut();
        if let Some(there) = records.get(key) {
            return Ok(Claimed::Refused(Some(there.clone())));
        }
        records.insert(key.clone(), record.clone());
        Ok(Claimed::Done(record.clone()))
    }

    async fn take_over(
        &self,
        key: &RecordKey,
        _: &TakeOver,
        _: Timestamp,
        _: Timestamp,
    ) -> Result<Claimed, StoreError> {
        Ok(Claimed::Refused(self.0.borrow().get(key).cloned()))
    }

    async fn complete(&self, key: &RecordKey, owner: &Owner, _: u64, _: Timestamp) -> Result<Fenced, StoreError> {
        Ok(self.fenced(key, owner, |record| record.state = State::Accepted))
    }

    async fn release(
        &self,
        key: &RecordKey,
        owner: &Owner,
        delivered: Option<&Delivered>,
        _: u64,
        _: Timestamp,
    ) -> Result<Fenced, StoreError> {
        let change = |record: &mut Record| {
            record.lease_until = Timestamp::from_millis(0);
            record.delivered = delivered.cloned().unwrap_or_else(|| record.delivered.clone());
        };
        Ok(self.fenced(key, owner, change))
    }
}

/// Holds SQS's limits, and refuses messages as it is told.
#[derive(Default)]
pub struct MemoryQueue {
    /// Takes turns in saying what becomes of the messages; empty means that each is taken.
    pub fates: RefCell<Vec<SendResult>>,
    taken: RefCell<Vec<String>>,
}

impl MemoryQueue {
    /// The messages that were taken, in the order in which they were.
    pub fn messages(&self) -> Vec<String> {
        self.taken.borrow().clone()
    }
}

impl Queue for MemoryQueue {
    async fn send(&self, envelope: &Envelope, messages: &[Message], _: Timestamp) -> Vec<SendResult> {
        let attributes: usize = envelope.attributes().iter().map(|(name, value)| name.len() + 6 + value.len()).sum();
        let bytes: Vec<usize> = messages.iter().map(|message| message.body.len() + attributes).collect();
        assert!((1..=MAX_CALL_MESSAGES).contains(&messages.len()), "{} messages in a call", messages.len());
        const { assert!(MAX_CALL_MESSAGES == 10 && MAX_CALL_BYTES == 1 << 20, "the quotas of SQS") };
        assert!(bytes.iter().sum::<usize>() <= MAX_CALL_BYTES, "a call of {bytes:?} bytes");
        let fates = messages.iter().map(|message| {
            // Nor does it take control characters, but then neither does JSON.
            let is_refused = |character| message.body.contains(character);
            assert!(!is_refused("\u{FFFE}") && !is_refused("\u{FFFF}"), "a character that SQS refuses");
            let fate = self.fates.borrow_mut().pop().unwrap_or(SendResult::Acknowledged);
            if fate == SendResult::Acknowledged {
                self.taken.borrow_mut().push(message.body.clone());
            }
            fate
        });
        fates.collect()
    }
}

/// Moves only when slept on.
pub struct StillClock(Cell<Timestamp>);

impl Default for StillClock {
    fn default() -> Self {
        Self(Cell::new(Timestamp::from_millis(1_795_425_243_127)))
    }
}

impl Clock for StillClock {
    fn now(&self) -> Timestamp {
        self.0.get()
    }

    async fn sleep(&self, duration: Duration) {
        self.0.set(self.0.get() + duration);
    }

    fn jitter(&self, ceiling: Duration) -> Duration {
        ceiling
    }
}

/// What was logged.
#[derive(Clone, Default)]
pub struct Log(Rc<RefCell<Vec<u8>>>);

impl Log {
    pub fn take(&self) -> Vec<u8> {
        self.0.take()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
