//! Which batches are done, in whatever order they get done.

use crate::checkpoint::Checkpoint;
use crate::input::Mark;
use crate::rejects::Reject;
use std::collections::BTreeMap;

/// So many bytes of rejects are worth a checkpoint of their own.
const MANY_REJECTS_BYTES: usize = 8 * 1024 * 1024;

/// What is done, what is not.
pub struct Ledger {
    checkpoint: Checkpoint,
    /// Where done batches beyond the first that is not end; `None` until they are read again.
    ends: BTreeMap<u64, Option<Mark>>,
    /// Lines for the rejects file.
    rejects: Vec<u8>,
    changed: bool,
}

impl Ledger {
    /// Goes on from a checkpoint.
    pub fn new(checkpoint: Checkpoint) -> Self {
        let ends = checkpoint.done_beyond.keys().map(|ordinal| (*ordinal, None)).collect();
        Self { checkpoint, ends, rejects: Vec::new(), changed: false }
    }

    /// The checkpoint as it would be written now.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The number of the first batch that is not done.
    pub fn next_batch(&self) -> u64 {
        self.checkpoint.next_batch
    }

    /// The key of a batch that an earlier run got done, if it did.
    pub fn done_before(&self, ordinal: u64) -> Option<&str> {
        self.checkpoint.done_beyond.get(&ordinal).map(String::as_str)
    }

    /// A batch that an earlier run got done was read again.
    pub fn seen_again(&mut self, ordinal: u64, end: Mark) {
        self.ends.insert(ordinal, Some(end));
        self.advance();
    }

    /// A batch is done.
    pub fn done(&mut self, ordinal: u64, key: String, end: Mark, accepted: u64, rejects: &[Reject]) {
        let before = self.rejects.len();
        for reject in rejects {
            reject.write_to(&mut self.rejects);
        }
        self.checkpoint.rejects_bytes += (self.rejects.len() - before) as u64;
        self.checkpoint.accepted += accepted;
        self.checkpoint.rejected += rejects.len() as u64;
        self.checkpoint.done_beyond.insert(ordinal, key);
        self.ends.insert(ordinal, Some(end));
        self.advance();
    }

    /// Moves the mark over everything that is done without a gap.
    fn advance(&mut self) {
        self.changed = true;
        while let Some(Some(end)) = self.ends.get(&self.checkpoint.next_batch) {
            self.checkpoint.mark = end.clone();
            self.ends.remove(&self.checkpoint.next_batch);
            self.checkpoint.done_beyond.remove(&self.checkpoint.next_batch);
            self.checkpoint.next_batch += 1;
        }
    }

    /// Everything is done.
    pub fn complete(&mut self) {
        self.checkpoint.complete = true;
        self.changed = true;
    }

    /// Notes how many requests were repeated, over all runs.
    pub fn set_retries(&mut self, retries: u64) {
        self.changed |= self.checkpoint.retries != retries;
        self.checkpoint.retries = retries;
    }

    /// Whether a checkpoint should not wait.
    pub fn is_urgent(&self) -> bool {
        self.rejects.len() >= MANY_REJECTS_BYTES
    }

    /// What a checkpoint would make last: nothing, if nothing has changed.
    pub fn unsaved(&mut self) -> Option<(Checkpoint, Vec<u8>)> {
        std::mem::take(&mut self.changed).then(|| (self.checkpoint.clone(), std::mem::take(&mut self.rejects)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Job;
    use crate::input::Place;
    use crate::rejects::Fault;
    use crate::table::ColumnTypes;
    use proptest::prelude::*;

    fn fresh() -> Ledger {
        let (url, mode) = (String::new(), String::new());
        let job = Job { url, host: None, mode, inputs: Vec::new(), max_events: 1, types: ColumnTypes::default() };
        Ledger::new(Checkpoint::new(job))
    }

    fn mark(offset: u64) -> Mark {
        Mark { place: Place { file: 0, offset, line: 1 }, sha256: String::new() }
    }

    #[test]
    fn the_mark_moves_only_over_what_has_no_gap() {
        let mut ledger = fresh();
        assert!(ledger.unsaved().is_none());
        let fault = Fault { field: None, code: "c".into(), reason: "r".to_owned() };
        let reject = Reject { file: "f".to_owned(), line: 1, faults: vec![fault], text: None };
        ledger.done(1, "k1".to_owned(), mark(20), 2, &[reject]);
        ledger.done(2, "k2".to_owned(), mark(30), 3, &[]);
        let (saved, rejects) = ledger.unsaved().unwrap();
        assert_eq!((saved.next_batch, saved.mark.place.offset, saved.done_beyond.len()), (0, 0, 2));
        assert_eq!((saved.rejects_bytes, saved.accepted, saved.rejected), (rejects.len() as u64, 5, 1));
        ledger.done(0, "k0".to_owned(), mark(10), 1, &[]);
        let (saved, rejects) = ledger.unsaved().unwrap();
        assert_eq!((saved.next_batch, saved.mark.place.offset, saved.done_beyond.len()), (3, 30, 0));
        assert!(rejects.is_empty() && ledger.unsaved().is_none());
    }

    proptest! {
        #[test]
        fn whatever_the_order_and_the_interruptions_every_batch_is_done_once(
            order in Just((0..12_u64).collect::<Vec<_>>()).prop_shuffle(),
            killed_after in proptest::collection::vec(0..12_usize, 0..4),
        ) {
            let mut ledger = fresh();
            for (step, ordinal) in order.iter().enumerate() {
                if killed_after.contains(&step) {
                    ledger = Ledger::new(ledger.checkpoint().clone());
                    for ordinal in ledger.next_batch()..12 {
                        if ledger.done_before(ordinal).is_some() {
                            ledger.seen_again(ordinal, mark(ordinal + 1));
                        }
                    }
                }
                prop_assert!(ledger.done_before(*ordinal).is_none() && ledger.next_batch() <= *ordinal);
                ledger.done(*ordinal, ordinal.to_string(), mark(ordinal + 1), 1, &[]);
                prop_assert_eq!(ledger.checkpoint().accepted, step as u64 + 1);
                prop_assert_eq!(ledger.checkpoint().mark.place.offset, ledger.next_batch());
            }
            prop_assert_eq!((ledger.next_batch(), ledger.checkpoint().done_beyond.len()), (12, 0));
        }
    }
}
