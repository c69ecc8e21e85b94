//! Events → batches, and the key of each.
//!
//! Where a batch ends depends on the input and `--max-events` alone, and its key on its place and
//! its bytes: so a run that was broken off makes the same batches with the same keys again.

use crate::input::{Mark, Place};
use crate::rejects::Reject;
use contract::limits::MAX_BODY_BYTES;
use sha2::{Digest, Sha256};
use std::ops::Range;

const OPEN: &[u8] = br#"{"events":["#;
const CLOSE: &[u8] = b"]}";

/// What every key is made of first. Another way of packing or of making keys needs another one.
const KEY_FORMAT: &str = "event-ingest-backfill/1";

/// A batch with this many rejected events ends, so that a faulty file cannot fill the memory.
const MAX_REJECTS: usize = 500;
/// The same in bytes.
const MAX_REJECTS_BYTES: usize = MAX_BODY_BYTES;

/// A part of the input, in which there may be events to send.
#[derive(Debug)]
pub struct Batch {
    /// Its number in the input, counted from 0.
    pub ordinal: u64,
    /// The place it ends at, where the next one begins.
    pub end: Mark,
    /// The events to send.
    pub body: Body,
    /// The events that are against the rules.
    pub rejects: Vec<Reject>,
    /// Which input and where its first event is: what the key is made of, beside the body.
    identity: String,
}

impl Batch {
    /// The idempotency key: 64 hex digits.
    pub fn key(&self) -> String {
        digest(&[KEY_FORMAT, &self.identity], &self.body)
    }
}

/// The key of what is left of a batch, or of a part of it.
pub fn derived_key(parent: &str, body: &Body) -> String {
    digest(&[KEY_FORMAT, "part of", parent], body)
}

fn digest(identity: &[&str], body: &Body) -> String {
    let mut hash = Sha256::new();
    for part in identity {
        hash.update(part);
        hash.update("\n");
    }
    hash.update(body.bytes());
    hex::encode(hash.finalize())
}

/// The bytes of a request, and where each event lies in them.
#[derive(Clone, Debug)]
pub struct Body {
    bytes: Vec<u8>,
    events: Vec<(Place, Range<usize>)>,
}

impl Body {
    fn new() -> Self {
        Self { bytes: OPEN.to_vec(), events: Vec::new() }
    }

    fn has_room_for(&self, event: &[u8]) -> bool {
        let comma = usize::from(!self.events.is_empty());
        self.bytes.len() + comma + event.len() + CLOSE.len() <= MAX_BODY_BYTES
    }

    fn push(&mut self, place: Place, event: &[u8]) {
        if !self.events.is_empty() {
            self.bytes.push(b',');
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(event);
        self.events.push((place, start..self.bytes.len()));
    }

    fn close(&mut self) {
        self.bytes.extend_from_slice(CLOSE);
    }

    /// What is sent.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many events it holds.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Where event `index` stood in the input, and its text.
    pub fn event(&self, index: usize) -> Option<(&Place, &[u8])> {
        self.events.get(index).map(|(place, range)| (place, &self.bytes[range.clone()]))
    }

    /// A body of those of its events whose index is wanted.
    pub fn part(&self, wanted: impl Fn(usize) -> bool) -> Self {
        let mut part = Self::new();
        for (index, (place, range)) in self.events.iter().enumerate() {
            if wanted(index) {
                part.push(place.clone(), &self.bytes[range.clone()]);
            }
        }
        part.close();
        part
    }
}

/// Fills one batch after another.
pub struct Packer {
    max_events: usize,
    ordinal: u64,
    body: Body,
    rejects: Vec<Reject>,
    rejects_bytes: usize,
    identity: String,
}

impl Packer {
    /// Begins with batch number `ordinal`.
    pub fn new(max_events: usize, ordinal: u64) -> Self {
        let body = Body::new();
        Self { max_events, ordinal, body, rejects: Vec::new(), rejects_bytes: 0, identity: String::new() }
    }

    /// Whether `event` must wait for the next batch, for want of bytes.
    pub fn must_end_before(&self, event: &[u8]) -> bool {
        !self.body.has_room_for(event)
    }

    /// Takes a valid event, which stands at `place` of the input named `file`.
    pub fn push(&mut self, file: &str, place: Place, event: &[u8]) {
        if self.body.len() == 0 {
            // The name, so that the same bytes in tomorrow's file are other events; not the
            // directory, so that a file may be moved.
            self.identity = format!("{file}\n{}\n{}", place.file, place.offset);
        }
        self.body.push(place, event);
    }

    /// Takes an event that is against the rules.
    pub fn reject(&mut self, reject: Reject) {
        self.rejects_bytes += reject.size();
        self.rejects.push(reject);
    }

    /// Whether the batch must end here.
    pub fn is_full(&self) -> bool {
        self.body.len() >= self.max_events
            || self.rejects.len() >= MAX_REJECTS
            || self.rejects_bytes >= MAX_REJECTS_BYTES
    }

    /// Whether the batch holds nothing yet.
    pub fn is_empty(&self) -> bool {
        self.body.len() == 0 && self.rejects.is_empty()
    }

    /// Ends the batch at `end` and begins the next.
    pub fn end(&mut self, end: Mark) -> Batch {
        let next = Self::new(self.max_events, self.ordinal + 1);
        let Self { ordinal, mut body, rejects, identity, .. } = std::mem::replace(self, next);
        body.close();
        Batch { ordinal, end, body, rejects, identity }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::batch;
    use proptest::prelude::*;

    fn event(id: usize, padding: usize) -> Vec<u8> {
        format!(r#"{{"external_user_id":"{id}","name":"n","note":"{}"}}"#, "x".repeat(padding)).into_bytes()
    }

    fn place(offset: usize) -> Place {
        Place { file: 0, offset: offset as u64, line: 1 }
    }

    /// Packs `events` from number `from` on, as the reader does.
    fn pack(events: &[Vec<u8>], from: usize, ordinal: u64, max_events: usize) -> Vec<(u64, Batch)> {
        let mut packer = Packer::new(max_events, ordinal);
        let mut batches = Vec::new();
        let mark = |offset| Mark { place: place(offset), sha256: String::new() };
        for (offset, event) in events.iter().enumerate().skip(from) {
            if packer.must_end_before(event) {
                batches.push((offset as u64, packer.end(mark(offset))));
            }
            packer.push("f", place(offset), event);
            if packer.is_full() {
                batches.push((offset as u64 + 1, packer.end(mark(offset + 1))));
            }
        }
        if !packer.is_empty() {
            batches.push((events.len() as u64, packer.end(mark(events.len()))));
        }
        batches
    }

    #[test]
    fn a_batch_ends_at_so_many_events_or_bytes() {
        let small: Vec<_> = (0..1001).map(|id| event(id, 10)).collect();
        let sizes: Vec<_> = pack(&small, 0, 0, 500).iter().map(|(_, batch)| batch.body.len()).collect();
        assert_eq!(sizes, [500, 500, 1]);
        // Five of exactly so many bytes fill a body to the last one.
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
    fn keys_keep_the_contract_and_tell_places_and_contents_apart() {
        let same: Vec<_> = (0..20).map(|_| event(0, 0)).collect();
        let batches = pack(&same, 0, 0, 10);
        let keys: Vec<_> = batches.iter().map(|(_, batch)| batch.key()).collect();
        assert_eq!(batches[0].1.body.bytes(), batches[1].1.body.bytes());
        assert_ne!(keys[0], keys[1]);
        assert!(contract::idempotency_key::IdempotencyKey::parse(&keys[0]).is_some_and(|_| keys[0].len() == 64));
        let mut changed = same.clone();
        changed[3] = event(1, 0);
        assert_ne!(pack(&changed, 0, 0, 10)[0].1.key(), keys[0]);
        let body = &batches[0].1.body;
        assert_ne!(derived_key(&keys[0], body), derived_key(&keys[1], body));
        let mut elsewhere = Packer::new(10, 0);
        same[..10].iter().enumerate().for_each(|(at, event)| elsewhere.push("g", place(at), event));
        assert_ne!(elsewhere.end(Mark::default()).key(), keys[0]);
    }

    #[test]
    fn a_part_keeps_texts_and_places() {
        let events: Vec<_> = (0..4).map(|id| event(id, id)).collect();
        let whole = pack(&events, 0, 0, 500).remove(0).1.body;
        let part = whole.part(|index| index % 2 == 1);
        assert_eq!(part.event(1), Some((&place(3), events[3].as_slice())));
        assert_eq!((part.len(), part.event(2)), (2, None));
        assert_eq!(batch::Batch::parse(part.bytes()).unwrap().events().len(), 2);
        assert_eq!(whole.part(|_| true).bytes(), whole.bytes());
    }

    proptest! {
        // Each makes megabytes of batches many times over.
        #![proptest_config(ProptestConfig::with_cases(12))]

        #[test]
        fn a_run_that_begins_where_a_batch_ended_makes_the_same_batches(
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
                let expected: Vec<_> = all[resumed_after + 1..].iter().map(|(_, batch)| (batch.ordinal, batch.key())).collect();
                let again: Vec<_> = rest.iter().map(|(_, batch)| (batch.ordinal, batch.key())).collect();
                prop_assert_eq!(again, expected);
            }
            for (_, batch) in &all {
                prop_assert!(batch.body.bytes().len() <= MAX_BODY_BYTES);
                prop_assert!(batch::Batch::parse(batch.body.bytes()).is_ok());
            }
        }
    }
}
