//! The tables, the queue and the clock in memory. They respond immediately and count the calls.

use super::reference::in_message;
use contract::api_key::{ApiKey, KeyHash, KeyRecord};
use contract::tenant::ProjectId;
use event_ingest::auth::KeyStore;
use event_ingest::clock::{Clock, Timestamp};
use event_ingest::delivery::{Queue, SendResult};
use event_ingest::idempotency::{Claimed, Delivered, Fenced, Owner, Record, RecordKey, State, StateStore, TakeOver};
use event_ingest::packing::{Envelope, MAX_CALL_BYTES, MAX_CALL_MESSAGES, Message};
use event_ingest::rate_limit::{Capacity, Counter, GrantRequest, GrantResponse, Window, WindowStore};
use event_ingest::store::StoreError;
use std::cell::{Cell, Ref, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::io::{self, Write};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// The revoked key in the samples of `events/`.
pub const REVOKED_KEY: &str = "sk_test_LOCAL_ONLY_revoked_key_0123456789";
/// The key in the samples of `events/` whose scopes do not include `events:write`.
pub const READ_ONLY_KEY: &str = "sk_test_LOCAL_ONLY_read_scope_0123456789";

/// The calls of all ports of one function.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calls {
    /// Lookups of API keys.
    pub keys: usize,
    /// Requests for grants.
    pub windows: usize,
    /// Reads and writes of idempotency records.
    pub records: usize,
    /// Calls to the queue.
    pub sends: usize,
}

type SharedCalls = Rc<RefCell<Calls>>;

/// Contains every well-formed key.
pub struct Keys(SharedCalls);

impl Keys {
    /// Creates the table.
    pub fn new(calls: &SharedCalls) -> Self {
        Self(Rc::clone(calls))
    }
}

impl KeyStore for Keys {
    async fn find(&self, hash: &KeyHash, _: Timestamp) -> Result<Option<KeyRecord>, StoreError> {
        self.0.borrow_mut().keys += 1;
        let is = |text| ApiKey::parse(text).is_some_and(|key| key.hash() == *hash);
        let project = ProjectId::parse("acme").ok_or_else(|| StoreError::Defect("acme is a project".to_owned()))?;
        let scopes = is(READ_ONLY_KEY).then(|| BTreeSet::from(["events:read".to_owned()]));
        let hint = "sk_test_…".to_owned();
        Ok(Some(KeyRecord { project, hint, active: !is(REVOKED_KEY), scopes, rate_limit: Some(100) }))
    }
}

/// Grants every request.
pub struct Windows(SharedCalls);

impl Windows {
    /// Creates the counters.
    pub fn new(calls: &SharedCalls) -> Self {
        Self(Rc::clone(calls))
    }
}

impl WindowStore for Windows {
    async fn grant(
        &self,
        _: &Counter,
        _: Window,
        _: GrantRequest,
        _: Capacity,
        _: Timestamp,
    ) -> Result<GrantResponse, StoreError> {
        self.0.borrow_mut().windows += 1;
        Ok(GrantResponse { granted: true, used: 0, ahead: 0 })
    }
}

/// Idempotency records.
pub struct Table {
    records: RefCell<HashMap<RecordKey, Record>>,
    calls: SharedCalls,
}

impl Table {
    /// Creates an empty table.
    pub fn new(calls: &SharedCalls) -> Self {
        Self { records: RefCell::default(), calls: Rc::clone(calls) }
    }

    /// The number of records.
    pub fn records(&self) -> usize {
        self.records.borrow().len()
    }

    /// Counts a call.
    fn call(&self) -> &RefCell<HashMap<RecordKey, Record>> {
        self.calls.borrow_mut().records += 1;
        &self.records
    }

    fn fenced(&self, key: &RecordKey, owner: &Owner, change: impl FnOnce(&mut Record)) -> Fenced {
        match self.call().borrow_mut().get_mut(key).filter(|record| record.owner == *owner) {
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
        Ok(self.call().borrow().get(key).cloned())
    }

    async fn claim(&self, key: &RecordKey, record: &Record, _: Timestamp, _: Timestamp) -> Result<Claimed, StoreError> {
        let mut records = self.call().borrow_mut();
        if let Some(existing) = records.get(key) {
            return Ok(Claimed::Refused(Some(existing.clone())));
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
        Ok(Claimed::Refused(self.call().borrow().get(key).cloned()))
    }

    async fn complete(
        &self,
        key: &RecordKey,
        owner: &Owner,
        delivered: &Delivered,
        _: u64,
        _: Timestamp,
    ) -> Result<Fenced, StoreError> {
        let change = |record: &mut Record| {
            record.state = State::Accepted;
            record.delivered = delivered.clone();
        };
        Ok(self.fenced(key, owner, change))
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

/// Enforces the limits of SQS, and fails as configured.
#[derive(Default)]
pub struct MemoryQueue {
    /// The results of the next messages, in reverse order. If it is empty, messages are acknowledged.
    pub results: RefCell<Vec<SendResult>>,
    offered: Cell<Offered>,
    acknowledged: RefCell<Vec<String>>,
    /// For an ordered queue.
    attempts: RefCell<Vec<Attempt>>,
    calls: SharedCalls,
}

/// One message of a call to an ordered queue.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The number of the call.
    pub call: usize,
    /// The message.
    pub message: Message,
    /// Its result.
    pub result: SendResult,
}

/// The messages of all calls, acknowledged or not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Offered {
    /// How many.
    pub messages: usize,
    /// Their bytes, with attributes.
    pub bytes: usize,
}

impl MemoryQueue {
    /// Creates an empty queue.
    pub fn new(calls: &SharedCalls) -> Self {
        Self { calls: Rc::clone(calls), ..Self::default() }
    }

    /// The messages that were acknowledged, in order.
    pub fn messages(&self) -> Ref<'_, Vec<String>> {
        self.acknowledged.borrow()
    }

    /// All messages of all calls to an ordered queue, in order.
    pub fn attempts(&self) -> Ref<'_, Vec<Attempt>> {
        self.attempts.borrow()
    }

    /// The messages that were sent.
    pub fn offered(&self) -> Offered {
        self.offered.get()
    }

    /// The number of calls.
    pub fn sends(&self) -> usize {
        self.calls.borrow().sends
    }
}

impl Queue for MemoryQueue {
    async fn send(&self, envelope: &Envelope, messages: Vec<Message>, _: Timestamp) -> Vec<SendResult> {
        let attributes: usize = envelope.attributes().iter().map(|(name, value)| name.len() + 6 + value.len()).sum();
        let bytes: usize = messages.iter().map(|message| message.body.len() + attributes).sum();
        assert!((1..=MAX_CALL_MESSAGES).contains(&messages.len()), "{} messages in a call", messages.len());
        const { assert!(MAX_CALL_MESSAGES == 10 && MAX_CALL_BYTES == 1 << 20, "the quotas of SQS") };
        assert!(bytes <= MAX_CALL_BYTES, "a call of {bytes} bytes");
        self.calls.borrow_mut().sends += 1;
        let Offered { messages: before, bytes: bytes_before } = self.offered.get();
        self.offered.set(Offered { messages: before + messages.len(), bytes: bytes_before + bytes });
        let results = messages.iter().map(|message| {
            // SQS refuses control characters as well, but JSON does not contain any.
            assert_eq!(in_message(&message.body), message.body, "a character that SQS refuses");
            let result = self.results.borrow_mut().pop().unwrap_or(SendResult::Acknowledged);
            if message.fifo.is_some() {
                let call = self.sends();
                self.attempts.borrow_mut().push(Attempt { call, message: message.clone(), result });
            } else if result == SendResult::Acknowledged {
                self.acknowledged.borrow_mut().push(message.body.clone());
            }
            result
        });
        results.collect()
    }
}

/// A clock that advances only in `sleep`.
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

/// The log.
#[derive(Clone, Default)]
pub struct Log(Rc<RefCell<Vec<u8>>>);

impl Log {
    /// The log since the last call.
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

/// Runs a future that never waits for another thread.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = std::task::Context::from_waker(Waker::noop());
    for _ in 0..10_000 {
        if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
            return result;
        }
    }
    panic!("the future never completes");
}
