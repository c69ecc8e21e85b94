//! The state table and the queue in memory.
//!
//! [`Table`] and [`check_call`] are plain data and functions, so that the explorer can store many states
//! of the system. [`MemoryStore`] and [`MemoryQueue`] implement the ports with them. The tests in
//! tests/suite/ports run over these implementations and over `DynamoDB` and SQS, so that they behave
//! alike.

use event_ingest::clock::Timestamp;
use event_ingest::delivery::{Queue, SendResult};
use event_ingest::idempotency::{Claimed, Delivered, Fenced, Owner, Record, RecordKey, State, StateStore, TakeOver};
use event_ingest::packing::{Envelope, Fifo, MAX_CALL_BYTES, MAX_CALL_MESSAGES, Message};
use event_ingest::store::StoreError;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// Records by partition key. Every write has the same condition as in `aws::state_table`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Table {
    items: BTreeMap<String, Record>,
}

impl Table {
    /// The record of a key, expired or not.
    pub fn get(&self, key: &RecordKey) -> Option<&Record> {
        self.items.get(key.as_str())
    }

    /// Stores a record without a condition, for tests.
    pub fn put(&mut self, key: &RecordKey, record: Record) {
        self.items.insert(key.as_str().to_owned(), record);
    }

    /// Deletes a record, as the TTL of the table does.
    pub fn delete(&mut self, key: &RecordKey) {
        self.items.remove(key.as_str());
    }

    /// Condition: `attribute_not_exists(pk) OR expires_at <= :now`
    pub fn claim(&mut self, key: &RecordKey, record: &Record, now: Timestamp) -> Claimed {
        let old = self.get(key);
        if old.is_none_or(|old| old.expires_at <= now.seconds()) {
            self.put(key, record.clone());
            return Claimed::Done(record.clone());
        }
        Claimed::Refused(old.cloned())
    }

    /// Condition: `owner = :seen AND state = in_progress AND lease_until <= :now`
    pub fn take_over(&mut self, key: &RecordKey, take_over: &TakeOver, now: Timestamp) -> Claimed {
        let Some(old) = self.items.get_mut(key.as_str()) else {
            return Claimed::Refused(None);
        };
        let owner_is_seen = old.owner == take_over.seen;
        let in_progress = old.state == State::InProgress;
        let lease_ended = old.lease_until <= now;
        if owner_is_seen && in_progress && lease_ended {
            old.owner = take_over.owner.clone();
            old.attempt += 1;
            old.lease_until = take_over.lease_until;
            old.expires_at = take_over.expires_at;
            return Claimed::Done(old.clone());
        }
        Claimed::Refused(Some(old.clone()))
    }

    /// Condition: `owner = :owner`
    pub fn complete(&mut self, key: &RecordKey, owner: &Owner, delivered: &Delivered, expires_at: u64) -> Fenced {
        match self.items.get_mut(key.as_str()) {
            Some(old) if old.owner == *owner => {
                old.state = State::Accepted;
                old.delivered = delivered.clone();
                old.expires_at = expires_at;
                Fenced::Done
            }
            _ => Fenced::Lost,
        }
    }

    /// Condition: `owner = :owner AND state = in_progress`
    pub fn release(
        &mut self,
        key: &RecordKey,
        owner: &Owner,
        delivered: Option<&Delivered>,
        expires_at: u64,
    ) -> Fenced {
        match self.items.get_mut(key.as_str()) {
            Some(old) if old.owner == *owner && old.state == State::InProgress => {
                old.lease_until = Timestamp::from_millis(0);
                old.expires_at = expires_at;
                if let Some(delivered) = delivered {
                    old.delivered = delivered.clone();
                }
                Fenced::Done
            }
            _ => Fenced::Lost,
        }
    }
}

/// A [`StateStore`] that responds immediately and never fails.
#[derive(Default)]
pub struct MemoryStore {
    table: RefCell<Table>,
}

impl StateStore for MemoryStore {
    async fn get(&self, key: &RecordKey, _by: Timestamp) -> Result<Option<Record>, StoreError> {
        Ok(self.table.borrow().get(key).cloned())
    }

    async fn claim(
        &self,
        key: &RecordKey,
        record: &Record,
        now: Timestamp,
        _by: Timestamp,
    ) -> Result<Claimed, StoreError> {
        Ok(self.table.borrow_mut().claim(key, record, now))
    }

    async fn take_over(
        &self,
        key: &RecordKey,
        take_over: &TakeOver,
        now: Timestamp,
        _by: Timestamp,
    ) -> Result<Claimed, StoreError> {
        Ok(self.table.borrow_mut().take_over(key, take_over, now))
    }

    async fn complete(
        &self,
        key: &RecordKey,
        owner: &Owner,
        delivered: &Delivered,
        expires_at: u64,
        _by: Timestamp,
    ) -> Result<Fenced, StoreError> {
        Ok(self.table.borrow_mut().complete(key, owner, delivered, expires_at))
    }

    async fn release(
        &self,
        key: &RecordKey,
        owner: &Owner,
        delivered: Option<&Delivered>,
        expires_at: u64,
        _by: Timestamp,
    ) -> Result<Fenced, StoreError> {
        Ok(self.table.borrow_mut().release(key, owner, delivered, expires_at))
    }
}

/// The messages that an ordered queue accepted within the last five minutes: their deduplication ids, by
/// message group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Groups {
    ids: BTreeMap<String, BTreeSet<String>>,
}

impl Groups {
    /// Adds a message. Returns false if its group has a message with the same id: SQS acknowledges the second
    /// one and drops it.
    pub fn add(&mut self, fifo: &Fifo) -> bool {
        self.ids.entry(fifo.group_id.clone()).or_default().insert(fifo.deduplication_id.clone())
    }
}

/// The checks that SQS makes on a call as a whole. An error is permanent.
///
/// The size of a message includes its body and the names, types, and values of its attributes.
pub fn check_call(envelope: &Envelope, messages: &[Message]) -> Result<(), &'static str> {
    let attributes = envelope.attributes();
    let attributes: usize = attributes.iter().map(|(name, value)| name.len() + "String".len() + value.len()).sum();
    let sizes = messages.iter().map(|message| attributes + message.body.len());
    match messages.len() {
        0 => return Err("EmptyBatchRequest"),
        1..=MAX_CALL_MESSAGES => {}
        _ => return Err("TooManyEntriesInBatchRequest"),
    }
    if sizes.sum::<usize>() > MAX_CALL_BYTES {
        return Err("BatchRequestTooLong");
    }
    if !messages.iter().all(|message| message.body.chars().all(is_allowed)) {
        return Err("InvalidMessageContents");
    }
    Ok(())
}

fn is_allowed(char: char) -> bool {
    matches!(char, '\t' | '\n' | '\r' | '\u{20}'..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..)
}

/// A [`Queue`] that responds immediately.
#[derive(Default)]
pub struct MemoryQueue {
    bodies: RefCell<Vec<String>>,
    groups: RefCell<Groups>,
}

impl MemoryQueue {
    /// Removes and returns the message bodies, in order.
    pub fn drain(&self) -> Vec<String> {
        self.bodies.take()
    }
}

impl Queue for MemoryQueue {
    async fn send(&self, envelope: &Envelope, messages: Vec<Message>, _by: Timestamp) -> Vec<SendResult> {
        if check_call(envelope, &messages).is_err() {
            return vec![SendResult::Permanent; messages.len()];
        }
        for message in &messages {
            let is_new = message.fifo.as_ref().is_none_or(|fifo| self.groups.borrow_mut().add(fifo));
            if is_new {
                self.bodies.borrow_mut().push(message.body.clone());
            }
        }
        vec![SendResult::Acknowledged; messages.len()]
    }
}
