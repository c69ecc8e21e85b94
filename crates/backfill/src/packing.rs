//! Packs events into batches and derives their idempotency keys.
//!
//! The end of a batch depends only on the input and `--max-events`, and its key only on the run's name, its position
//! and its bytes. A resumed run therefore makes the same batches with the same keys.

use crate::position::{Position, ResumePoint};
use crate::rejects::RejectedEvent;
use contract::limits::MAX_BODY_BYTES;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::ops::Range;

const OPEN: &[u8] = br#"{"events":["#;
const CLOSE: &[u8] = b"]}";

/// The first text that is hashed into every key. It must change if packing or key derivation changes.
const KEY_FORMAT: &str = "event-ingest-backfill/2";

/// The maximum number of rejected events in a batch, to bound memory.
const MAX_REJECTED: usize = 500;
/// The maximum number of bytes of rejected events in a batch, to bound memory.
const MAX_REJECTED_BYTES: usize = MAX_BODY_BYTES;

/// A section of the input: the events to send, and the events that are rejected.
#[derive(Debug)]
pub struct PackedBatch {
    /// The number of the batch, counted from 0.
    pub number: u64,
    /// Where the batch ends and the next one begins.
    pub end: ResumePoint,
    /// The events to send. There may be none.
    pub body: BatchBody,
    /// The events that break a rule.
    pub rejected: Vec<RejectedEvent>,
    /// The bytes of all inputs, as stored, before this batch and before the next one. Only progress depends on them.
    pub read: Range<u64>,
    /// Identifies the first event by run, file name, file index and offset. The key is derived from it and the body.
    first_event: String,
}

impl PackedBatch {
    /// The idempotency key: 64 hex digits.
    pub fn key(&self) -> String {
        hash(&[KEY_FORMAT, &self.first_event], &self.body)
    }
}

/// The key of a part of the batch whose key is `parent`. `first` is the index in the batch of the part's first event:
/// parts with equal bytes are different events.
fn key_of_part(parent: &str, first: usize, part: &BatchBody) -> String {
    hash(&[KEY_FORMAT, "part of", parent, &first.to_string()], part)
}

fn hash(prefix: &[&str], body: &BatchBody) -> String {
    let mut hash = Sha256::new();
    for part in prefix {
        hash.update(part);
        hash.update("\n");
    }
    hash.update(body.bytes());
    hex::encode(hash.finalize())
}

/// The body of a request, and the position of each event in the input and in the body.
#[derive(Clone, Debug)]
pub struct BatchBody {
    bytes: Vec<u8>,
    events: Vec<(Position, Range<usize>)>,
}

impl BatchBody {
    fn new() -> Self {
        Self { bytes: OPEN.to_vec(), events: Vec::new() }
    }

    fn has_room_for(&self, event: &[u8]) -> bool {
        let comma = usize::from(!self.events.is_empty());
        self.bytes.len() + comma + event.len() + CLOSE.len() <= MAX_BODY_BYTES
    }

    fn push(&mut self, position: Position, event: &[u8]) {
        if !self.events.is_empty() {
            self.bytes.push(b',');
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(event);
        self.events.push((position, start..self.bytes.len()));
    }

    fn close(&mut self) {
        self.bytes.extend_from_slice(CLOSE);
    }

    /// The body as sent, before compression.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The number of events.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// The position in the input and the text of the event with this index.
    pub fn event(&self, index: usize) -> Option<(&Position, &[u8])> {
        self.events.get(index).map(|(position, range)| (position, &self.bytes[range.clone()]))
    }

    /// The key and the body of the part with this number, counted from 0, of a body whose key is `key`.
    pub fn part(&self, key: &str, parts: &Parts, number: usize) -> Option<(String, Cow<'_, Self>)> {
        let first = *parts.0.get(number)?;
        let end = parts.0.get(number + 1).copied().unwrap_or(self.len());
        if (first, end) == (0, self.len()) {
            return Some((key.to_owned(), Cow::Borrowed(self)));
        }
        let mut part = Self::new();
        for (position, range) in self.events.get(first..end)? {
            part.push(position.clone(), &self.bytes[range.clone()]);
        }
        part.close();
        Some((key_of_part(key, first, &part), Cow::Owned(part)))
    }
}

/// The parts in which a batch is sent, as the index of the first event of each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts(Vec<usize>);

impl Parts {
    /// The batch as a whole.
    pub fn whole() -> Self {
        Self(vec![0])
    }

    /// `count` parts with about equally many of the batch's events.
    pub fn equal(count: usize, events: usize) -> Self {
        Self((0..count.max(1)).map(|part| events * part / count.max(1)).collect())
    }

    /// Splits the part with this number, which has this many events.
    pub fn halve(&mut self, number: usize, events: usize) {
        self.0.insert(number + 1, self.0[number] + events / 2);
    }
}

/// Fills one batch after another.
pub struct Packer {
    max_events: usize,
    run_name: String,
    read: u64,
    number: u64,
    body: BatchBody,
    rejected: Vec<RejectedEvent>,
    rejected_bytes: usize,
    first_event: String,
}

impl Packer {
    /// Begins with the batch of this number, after `read` bytes of the inputs. `run_name` enters the keys.
    pub fn new(max_events: usize, run_name: String, number: u64, read: u64) -> Self {
        let body = BatchBody::new();
        let first_event = String::new();
        Self { max_events, run_name, read, number, body, rejected: Vec::new(), rejected_bytes: 0, first_event }
    }

    /// Corrects the number of bytes read before the first batch.
    pub fn begin_after(&mut self, read: u64) {
        self.read = read;
    }

    /// Whether the current batch has enough bytes left for `event`.
    pub fn has_room_for(&self, event: &[u8]) -> bool {
        self.body.has_room_for(event)
    }

    /// Adds a valid event from the input named `file`.
    pub fn push(&mut self, file: &str, position: Position, event: &[u8]) {
        if self.body.len() == 0 {
            // With the file's name in the key, equal bytes in tomorrow's file are different events.
            // The directory is left out, so that a file can be moved.
            self.first_event = format!("{}\n{file}\n{}\n{}", self.run_name, position.file, position.offset);
        }
        self.body.push(position, event);
    }

    /// Adds an event that breaks a rule.
    pub fn push_rejected(&mut self, event: RejectedEvent) {
        self.rejected_bytes += event.size();
        self.rejected.push(event);
    }

    /// Whether the batch must end here.
    pub fn is_full(&self) -> bool {
        self.body.len() >= self.max_events
            || self.rejected.len() >= MAX_REJECTED
            || self.rejected_bytes >= MAX_REJECTED_BYTES
    }

    /// Whether the batch has no events, valid or rejected.
    pub fn is_empty(&self) -> bool {
        self.body.len() == 0 && self.rejected.is_empty()
    }

    /// Ends the batch at `end`, after `read` bytes of the inputs, and begins the next one.
    pub fn finish_batch(&mut self, end: ResumePoint, read: u64) -> PackedBatch {
        let next = Self::new(self.max_events, self.run_name.clone(), self.number + 1, read);
        let Self { number, mut body, rejected, first_event, read: start, .. } = std::mem::replace(self, next);
        body.close();
        PackedBatch { number, end, body, rejected, read: start..read.max(start), first_event }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::batch::Batch;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn event(id: usize, padding: usize) -> Vec<u8> {
        format!(r#"{{"external_user_id":"{id}","name":"n","note":"{}"}}"#, "x".repeat(padding)).into_bytes()
    }

    fn position(offset: usize) -> Position {
        Position { file: 0, offset: offset as u64, line: 1 }
    }

    /// Packs the events from index `from` on, as the reader does. Each batch is returned with the
    /// index of the event after it.
    fn pack(events: &[Vec<u8>], from: usize, number: u64, max_events: usize) -> Vec<(u64, PackedBatch)> {
        let mut packer = Packer::new(max_events, "run".to_owned(), number, from as u64);
        let mut batches = Vec::new();
        let resume_point = |offset| ResumePoint { position: position(offset), sha256: String::new() };
        for (offset, event) in events.iter().enumerate().skip(from) {
            if !packer.has_room_for(event) {
                batches.push((offset as u64, packer.finish_batch(resume_point(offset), offset as u64)));
            }
            packer.push("f", position(offset), event);
            if packer.is_full() {
                batches.push((offset as u64 + 1, packer.finish_batch(resume_point(offset + 1), offset as u64 + 1)));
            }
        }
        if !packer.is_empty() {
            batches.push((events.len() as u64, packer.finish_batch(resume_point(events.len()), events.len() as u64)));
        }
        batches
    }

    #[test]
    fn a_batch_ends_at_its_most_events_or_bytes() {
        let small: Vec<_> = (0..1001).map(|id| event(id, 10)).collect();
        let sizes: Vec<_> = pack(&small, 0, 0, 500).iter().map(|(_, batch)| batch.body.len()).collect();
        assert_eq!(sizes, [500, 500, 1]);
        // Five events that together fill a body to its last byte.
        let overhead = event(0, 0).len();
        let frame = OPEN.len() + CLOSE.len() + 4;
        let room = MAX_BODY_BYTES - frame;
        let mut exact: Vec<_> = (0..5).map(|id| event(id, room / 5 - overhead)).collect();
        exact[4] = event(4, room / 5 - overhead + room % 5);
        let batches = pack(&exact, 0, 0, 500);
        assert_eq!((batches.len(), batches[0].1.body.bytes().len()), (1, MAX_BODY_BYTES));
        exact[4] = event(4, room / 5 - overhead + room % 5 + 1);
        assert_eq!(pack(&exact, 0, 0, 500).len(), 2);
    }

    #[test]
    fn keys_are_valid_and_depend_on_position_and_content() {
        let same: Vec<_> = (0..20).map(|_| event(0, 0)).collect();
        let batches = pack(&same, 0, 0, 10);
        let keys: Vec<_> = batches.iter().map(|(_, batch)| batch.key()).collect();
        assert_eq!(batches[0].1.body.bytes(), batches[1].1.body.bytes());
        assert_ne!(keys[0], keys[1]);
        assert!(contract::idempotency_key::IdempotencyKey::parse(&keys[0]).is_some_and(|_| keys[0].len() == 64));
        let mut changed = same.clone();
        changed[3] = event(1, 0);
        assert_ne!(pack(&changed, 0, 0, 10)[0].1.key(), keys[0]);
        let key = |run: &str, file| {
            let mut packer = Packer::new(10, run.to_owned(), 0, 0);
            same[..10].iter().enumerate().for_each(|(at, event)| packer.push(file, position(at), event));
            packer.finish_batch(ResumePoint::default(), 0).key()
        };
        assert_eq!(key("run", "f"), keys[0]);
        assert_ne!(key("run", "g"), keys[0]);
        assert_ne!(key("again", "f"), keys[0]);
    }

    fn split<'a>(body: &'a BatchBody, key: &str, parts: &Parts) -> Vec<(String, Cow<'a, BatchBody>)> {
        (0..).map_while(|number| body.part(key, parts, number)).collect()
    }

    #[test]
    fn parts_have_all_events_once_and_different_keys() {
        let events: Vec<_> = (0..7).map(|_| event(0, 0)).collect();
        let body = pack(&events, 0, 0, 500).remove(0).1.body;
        assert_eq!(split(&body, "key", &Parts::whole())[0].0, "key");
        let mut uneven = Parts::equal(2, 7);
        uneven.halve(0, 3);
        uneven.halve(2, 4);
        assert_eq!(uneven, Parts(vec![0, 1, 3, 5]));
        for parts in [Parts::equal(2, 7), Parts::equal(3, 7), Parts::equal(7, 7), uneven] {
            let split_with = |key| split(&body, key, &parts);
            let split = split_with("key");
            assert_eq!(split.len(), parts.0.len());
            let keys: BTreeSet<_> = split.iter().map(|(key, _)| key).collect();
            assert_eq!(keys.len(), split.len(), "equal bytes at two positions are different events");
            assert!(split.iter().all(|(key, _)| *key != "key" && split_with("other")[0].0 != *key));
            let found: Vec<_> =
                split.iter().flat_map(|(_, part)| (0..part.len()).filter_map(|at| part.event(at))).collect();
            let expected: Vec<_> = (0..7).filter_map(|at| body.event(at)).collect();
            assert_eq!(found, expected);
            assert!(split.iter().all(|(_, part)| Batch::parse(part.bytes()).is_ok()));
        }
    }

    proptest! {
        // Each case packs many megabytes.
        #![proptest_config(ProptestConfig::with_cases(12))]

        #[test]
        fn packing_from_the_end_of_any_batch_makes_the_same_later_batches(
            paddings in proptest::collection::vec(prop_oneof![6 => 0..50_usize, 1 => 800_000..900_000_usize], 1..40),
            max_events in 3..20_usize,
        ) {
            let events: Vec<_> = paddings.iter().enumerate().map(|(id, padding)| event(id, *padding)).collect();
            let all = pack(&events, 0, 0, max_events);
            let total: usize = all.iter().map(|(_, batch)| batch.body.len()).sum();
            prop_assert_eq!(total, events.len());
            for (resumed_after, (end, _)) in all.iter().enumerate() {
                let from = usize::try_from(*end).unwrap();
                let rest = pack(&events, from, resumed_after as u64 + 1, max_events);
                let expected: Vec<_> = all[resumed_after + 1..].iter().map(|(_, batch)| (batch.number, batch.key())).collect();
                let again: Vec<_> = rest.iter().map(|(_, batch)| (batch.number, batch.key())).collect();
                prop_assert_eq!(again, expected);
            }
            for (_, batch) in &all {
                prop_assert!(batch.body.bytes().len() <= MAX_BODY_BYTES);
                prop_assert!(Batch::parse(batch.body.bytes()).is_ok());
            }
        }
    }
}
