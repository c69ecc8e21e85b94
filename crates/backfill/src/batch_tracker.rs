//! Tracks which batches are done. Batches may finish in any order.

use crate::checkpoint::Checkpoint;
use crate::position::ResumePoint;
use crate::rejects::RejectedEvent;
use std::collections::BTreeMap;

/// With this many unsaved bytes of rejected events, a checkpoint is due at once.
const MAX_UNSAVED_REJECTS_BYTES: usize = 8 * 1024 * 1024;

/// The state of a run, from which checkpoints are made.
pub struct BatchTracker {
    checkpoint: Checkpoint,
    /// Where each batch in `done_beyond` ends; `None` until a resumed run has read it again.
    ends: BTreeMap<u64, Option<ResumePoint>>,
    /// Lines for the rejects file that are not saved yet.
    unsaved_rejects: Vec<u8>,
    changed: bool,
}

impl BatchTracker {
    /// Continues from a checkpoint.
    pub fn new(checkpoint: Checkpoint) -> Self {
        let ends = checkpoint.done_beyond.keys().map(|number| (*number, None)).collect();
        Self { checkpoint, ends, unsaved_rejects: Vec::new(), changed: false }
    }

    /// The current state, as a checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The number of the first batch that is not done.
    pub fn next_batch(&self) -> u64 {
        self.checkpoint.next_batch
    }

    /// The key of the batch with this number, if it is done already.
    pub fn key_if_done(&self, number: u64) -> Option<&str> {
        self.checkpoint.done_beyond.get(&number).map(String::as_str)
    }

    /// Records the end of a batch that an earlier run has done.
    pub fn read_again(&mut self, number: u64, end: ResumePoint) {
        self.ends.insert(number, Some(end));
        self.advance();
    }

    /// Records that a batch is done.
    pub fn done(&mut self, number: u64, key: String, end: ResumePoint, accepted: u64, rejected: &[RejectedEvent]) {
        let before = self.unsaved_rejects.len();
        for event in rejected {
            event.write_to(&mut self.unsaved_rejects);
        }
        self.checkpoint.rejects_bytes += (self.unsaved_rejects.len() - before) as u64;
        self.checkpoint.accepted += accepted;
        self.checkpoint.rejected += rejected.len() as u64;
        self.checkpoint.done_beyond.insert(number, key);
        self.ends.insert(number, Some(end));
        self.advance();
    }

    /// Moves the resume point past every batch that is done and has no gap before it.
    fn advance(&mut self) {
        self.changed = true;
        while let Some(Some(end)) = self.ends.get(&self.checkpoint.next_batch) {
            self.checkpoint.resume_point = end.clone();
            self.ends.remove(&self.checkpoint.next_batch);
            self.checkpoint.done_beyond.remove(&self.checkpoint.next_batch);
            self.checkpoint.next_batch += 1;
        }
    }

    /// Records that the run is complete.
    pub fn complete(&mut self) {
        self.checkpoint.complete = true;
        self.changed = true;
    }

    /// Sets the number of retries over all runs.
    pub fn set_retries(&mut self, retries: u64) {
        self.changed |= self.checkpoint.retries != retries;
        self.checkpoint.retries = retries;
    }

    /// Whether a checkpoint is due at once.
    pub fn is_checkpoint_urgent(&self) -> bool {
        self.unsaved_rejects.len() >= MAX_UNSAVED_REJECTS_BYTES
    }

    /// The checkpoint and the rejects lines to save; `None` if nothing has changed.
    pub fn take_unsaved(&mut self) -> Option<(Checkpoint, Vec<u8>)> {
        std::mem::take(&mut self.changed).then(|| (self.checkpoint.clone(), std::mem::take(&mut self.unsaved_rejects)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Job;
    use crate::column_types::ColumnTypes;
    use crate::position::Position;
    use crate::rejects::Problem;
    use proptest::prelude::*;

    fn new_tracker() -> BatchTracker {
        let (url, mode) = (String::new(), String::new());
        let job = Job { url, host: None, mode, inputs: Vec::new(), max_events: 1, types: ColumnTypes::default() };
        BatchTracker::new(Checkpoint::new(job))
    }

    fn resume_point(offset: u64) -> ResumePoint {
        ResumePoint { position: Position { file: 0, offset, line: 1 }, sha256: String::new() }
    }

    #[test]
    fn the_resume_point_stops_at_the_first_batch_that_is_not_done() {
        let mut tracker = new_tracker();
        assert!(tracker.take_unsaved().is_none());
        let problem = Problem { field: None, code: "c".into(), reason: "r".to_owned() };
        let rejected = RejectedEvent { file: "f".to_owned(), line: 1, problems: vec![problem], text: None };
        tracker.done(1, "k1".to_owned(), resume_point(20), 2, &[rejected]);
        tracker.done(2, "k2".to_owned(), resume_point(30), 3, &[]);
        let (saved, rejects) = tracker.take_unsaved().unwrap();
        assert_eq!((saved.next_batch, saved.resume_point.position.offset, saved.done_beyond.len()), (0, 0, 2));
        assert_eq!((saved.rejects_bytes, saved.accepted, saved.rejected), (rejects.len() as u64, 5, 1));
        tracker.done(0, "k0".to_owned(), resume_point(10), 1, &[]);
        let (saved, rejects) = tracker.take_unsaved().unwrap();
        assert_eq!((saved.next_batch, saved.resume_point.position.offset, saved.done_beyond.len()), (3, 30, 0));
        assert!(rejects.is_empty() && tracker.take_unsaved().is_none());
    }

    proptest! {
        #[test]
        fn every_batch_is_done_once_in_any_order_and_with_any_interruptions(
            order in Just((0..12_u64).collect::<Vec<_>>()).prop_shuffle(),
            killed_after in proptest::collection::vec(0..12_usize, 0..4),
        ) {
            let mut tracker = new_tracker();
            for (step, number) in order.iter().enumerate() {
                if killed_after.contains(&step) {
                    tracker = BatchTracker::new(tracker.checkpoint().clone());
                    for number in tracker.next_batch()..12 {
                        if tracker.key_if_done(number).is_some() {
                            tracker.read_again(number, resume_point(number + 1));
                        }
                    }
                }
                prop_assert!(tracker.key_if_done(*number).is_none() && tracker.next_batch() <= *number);
                tracker.done(*number, number.to_string(), resume_point(number + 1), 1, &[]);
                prop_assert_eq!(tracker.checkpoint().accepted, step as u64 + 1);
                prop_assert_eq!(tracker.checkpoint().resume_point.position.offset, tracker.next_batch());
            }
            prop_assert_eq!((tracker.next_batch(), tracker.checkpoint().done_beyond.len()), (12, 0));
        }
    }
}
