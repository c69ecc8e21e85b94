//! Tracks which batches are done. Batches may finish in any order.

use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::packing::Parts;
use crate::position::ResumePoint;
use crate::rejects::RejectedEvent;
use std::collections::BTreeMap;

/// With this many unsaved bytes of rejected events, a checkpoint is due at once.
const MAX_UNSAVED_REJECTS_BYTES: usize = 8 * 1024 * 1024;

/// A batch of which each event is accepted or rejected.
#[derive(Default)]
pub struct DoneBatch {
    /// The number of the batch.
    pub number: u64,
    /// Its idempotency key.
    pub key: String,
    /// Where it ends.
    pub end: ResumePoint,
    /// Its bytes in the inputs, as stored.
    pub bytes: u64,
    /// The number of accepted events.
    pub accepted: u64,
    /// How many of these were replays.
    pub replayed: u64,
    /// The rejected events.
    pub rejected: Vec<RejectedEvent>,
}

/// The state of a run, from which checkpoints are made.
pub struct BatchTracker {
    checkpoint: Checkpoint,
    /// Where each batch in `done_beyond` ends; `None` until a resumed run has read it again.
    ends: BTreeMap<u64, Option<ResumePoint>>,
    /// The bytes of the inputs before the first batch of this run.
    bytes_before: u64,
    /// The bytes of the inputs in the batches that are done, of those that this run read.
    bytes_done: u64,
    /// Lines for the rejects file that are not saved yet.
    unsaved_rejects: Vec<u8>,
    changed: bool,
}

impl BatchTracker {
    /// Continues from a checkpoint.
    pub fn new(checkpoint: Checkpoint) -> Self {
        let ends = checkpoint.done_beyond.keys().map(|number| (*number, None)).collect();
        Self { checkpoint, ends, bytes_before: 0, bytes_done: 0, unsaved_rejects: Vec::new(), changed: false }
    }

    /// The current state, as a checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The number of the first batch that is not done.
    pub fn next_batch(&self) -> u64 {
        self.checkpoint.next_batch
    }

    /// The bytes of the inputs in the batches that are done, of those that this run read.
    pub fn bytes_done(&self) -> u64 {
        self.bytes_done
    }

    /// The bytes of the inputs before the first batch of this run.
    pub fn bytes_before(&self) -> u64 {
        self.bytes_before
    }

    /// Records that the first batch of this run begins after this many bytes of the inputs.
    pub fn begins_after(&mut self, bytes: u64) {
        self.bytes_before = bytes;
    }

    /// Records that a batch will be sent in parts.
    pub fn split(&mut self, number: u64, parts: Parts) {
        self.checkpoint.split.insert(number, parts);
        self.changed = true;
    }

    /// The parts in which the batch with this number is sent, if they are recorded.
    pub fn parts(&self, number: u64) -> Option<&Parts> {
        self.checkpoint.split.get(&number)
    }

    /// The key of the batch with this number, if it is done already.
    pub fn key_if_done(&self, number: u64) -> Option<&str> {
        self.checkpoint.done_beyond.get(&number).map(String::as_str)
    }

    /// Records the end of a batch that an earlier run has done.
    pub fn read_again(&mut self, number: u64, end: ResumePoint, bytes: u64) {
        self.bytes_done += bytes;
        self.ends.insert(number, Some(end));
        self.advance();
    }

    /// Records that a batch is done.
    pub fn done(&mut self, batch: DoneBatch) {
        let DoneBatch { number, key, end, bytes, accepted, replayed, rejected } = batch;
        let before = self.unsaved_rejects.len();
        for event in &rejected {
            event.write_to(&mut self.unsaved_rejects);
        }
        self.checkpoint.rejects_bytes += (self.unsaved_rejects.len() - before) as u64;
        self.checkpoint.accepted += accepted;
        self.checkpoint.replayed += replayed;
        self.checkpoint.rejected += rejected.len() as u64;
        self.checkpoint.done_beyond.insert(number, key);
        self.checkpoint.split.remove(&number);
        self.bytes_done += bytes;
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

    /// Records whether it is certain that no event is in the queue.
    pub fn set_nothing_queued(&mut self, nothing_queued: bool) {
        self.changed |= self.checkpoint.nothing_queued != nothing_queued;
        self.checkpoint.nothing_queued = nothing_queued;
    }

    /// Checks that the inputs had any event.
    ///
    /// # Errors
    /// If they had none, unless that is allowed.
    pub fn check_events(&self, allow_empty: bool) -> Result<(), Error> {
        if allow_empty || self.checkpoint.events_done() > 0 {
            return Ok(());
        }
        let reason = "the input has no events. If that is right, pass --allow-empty";
        Err(Error::Input(reason.to_owned()))
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
    use crate::checkpoint::tests::job;
    use crate::position::Position;
    use crate::rejects::Problem;
    use proptest::prelude::*;

    fn new_tracker() -> BatchTracker {
        BatchTracker::new(Checkpoint::new(Job { inputs: Vec::new(), ..job() }))
    }

    fn batch(number: u64, accepted: u64, rejected: Vec<RejectedEvent>) -> DoneBatch {
        let (key, end) = (format!("k{number}"), resume_point((number + 1) * 10));
        DoneBatch { number, key, end, bytes: 10, accepted, replayed: 0, rejected }
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
        let (four, two) = (Parts::equal(4, 4), Parts::equal(2, 4));
        tracker.split(1, four.clone());
        tracker.split(2, two.clone());
        assert_eq!(tracker.take_unsaved().unwrap().0.split, [(1, four), (2, two.clone())].into());
        tracker.done(batch(1, 2, vec![rejected]));
        assert_eq!((tracker.parts(1), tracker.parts(2)), (None, Some(&two)));
        tracker.done(batch(2, 3, vec![]));
        assert_eq!(tracker.bytes_done(), 20, "batches done out of order count");
        let (saved, rejects) = tracker.take_unsaved().unwrap();
        assert_eq!((saved.next_batch, saved.resume_point.position.offset, saved.done_beyond.len()), (0, 0, 2));
        assert_eq!((saved.rejects_bytes, saved.accepted, saved.rejected), (rejects.len() as u64, 5, 1));
        tracker.done(batch(0, 1, vec![]));
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
                            tracker.read_again(number, resume_point((number + 1) * 10), 10);
                        }
                    }
                }
                prop_assert!(tracker.key_if_done(*number).is_none() && tracker.next_batch() <= *number);
                tracker.done(batch(*number, 1, vec![]));
                prop_assert_eq!(tracker.checkpoint().accepted, step as u64 + 1);
                prop_assert_eq!(tracker.checkpoint().resume_point.position.offset, tracker.next_batch() * 10);
            }
            prop_assert_eq!((tracker.next_batch(), tracker.checkpoint().done_beyond.len()), (12, 0));
        }
    }
}
