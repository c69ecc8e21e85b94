//! The target `ordered`: a generated batch, sent twice to an ordered queue whose failures the input determines.

use super::checks::Checks;
use super::generate::{Plan, Size, body_of};
use super::messages::{Packing, assert_same_values};
use super::meter::Bound;
use super::ports::{Attempt, MemoryQueue};
use super::reference::in_message;
use super::tape::Tape;
use super::{KIB, MIB};
use arbitrary::{Result as Generated, Unstructured};
use contract::batch::Batch;
use event_ingest::delivery::SendResult;
use event_ingest::idempotency::Delivered;
use event_ingest::packing::Fifo;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU16;

/// Sends a valid batch that is generated from the input: to an ordered queue that fails, again after the
/// failure, and to another queue without failures.
///
/// # Panics
/// If an event is lost, duplicated, changed or out of order for its user, if the queue deduplicates a message
/// that it does not have, or if a limit of SQS is exceeded.
pub fn run(input: &[u8], checks: Checks) {
    let Ok(case) = Case::generate(input) else { return };
    let plan = &case.plan;
    let events = plan.events.len();
    let body = body_of(&plan.events);
    let batch = Batch::parse(body.as_bytes()).expect("generated batches are valid");

    // The attempt that fails, and the retry.
    let queue = MemoryQueue::default();
    queue.results.replace(plan.results.clone());
    let mut before = Delivered::none(events);
    plan.delivered.iter().for_each(|index| before.insert(*index));
    let delivery =
        delivering(&body, plan).check(checks.meter, || case.packing.deliver_to(&queue, &batch, before.clone()));
    let of_first = queue.attempts().len();
    assert_waits_for_each_lane(&queue.attempts());
    // A failure causes at most one resend of one message.
    assert!(of_first <= events + plan.results.len(), "{of_first} messages");
    queue.results.take();
    let delivery_of_retry = case.packing.deliver_to(&queue, &batch, delivery.delivered.clone());
    let attempts = queue.attempts();
    assert_waits_for_each_lane(&attempts[of_first..]);
    assert!(delivery_of_retry.delivered.covers(0..events), "the queue acknowledged all, yet some are missing");

    let groups = case.groups();
    let read: Vec<Vec<(usize, &str)>> = attempts.iter().map(|one| case.packing.read(&one.message.body)).collect();
    let mut acknowledged = before;
    let mut indexes_of: HashMap<&str, Vec<usize>> = HashMap::new();
    for (number, (attempt, events)) in attempts.iter().zip(&read).enumerate() {
        let Fifo { group_id, deduplication_id } = fifo(attempt);
        for (index, event) in events {
            assert_eq!(*event, in_message(&plan.events[*index]), "event {index} was changed");
            assert_eq!(*group_id, groups[*index], "the group of event {index}");
        }
        let indexes: Vec<usize> = events.iter().map(|(index, _)| *index).collect();
        let same = indexes_of.entry(deduplication_id).or_insert_with(|| indexes.clone());
        assert_eq!(*same, indexes, "messages with different events have the same deduplication id");
        if attempt.result == SendResult::Acknowledged && number < of_first {
            for index in &indexes {
                acknowledged.insert(*index);
            }
        }
    }
    assert_eq!(delivery.delivered, acknowledged);
    let ids: BTreeSet<&Vec<usize>> = indexes_of.values().collect();
    assert_eq!(ids.len(), indexes_of.len(), "the same events have two deduplication ids");
    assert_in_order(&case, &attempts, &read);

    let queue = MemoryQueue::default();
    let delivery = case.packing.deliver_to(&queue, &batch, Delivered::none(events));
    assert!(delivery.delivered.covers(0..events));
    let attempts = queue.attempts();
    assert_filled(&case, &attempts);
    if checks.are_slow(input) {
        let messages: Vec<_> = attempts.iter().map(|attempt| attempt.message.body.clone()).collect();
        assert_same_values(&plan.events.iter().enumerate().collect::<Vec<_>>(), &messages);
    }
}

/// As for a standard queue. In addition, each message has two ids, each round of a lane moves the waiting messages, and
/// the queue keeps a copy of the messages that it did not acknowledge.
fn delivering(body: &str, plan: &Plan) -> Bound {
    let (events, failures) = (plan.events.len(), plan.results.len());
    let Bound { count, bytes, peak } = Packing::bound(body.len(), events, failures);
    let rounds = events + failures;
    let resent = failures * MIB.min(2 * body.len() + KIB);
    Bound {
        count: count + 40 * rounds,
        bytes: bytes + 256 * rounds * rounds + resent,
        peak: peak + 512 * rounds + resent,
    }
}

fn fifo(attempt: &Attempt) -> &Fifo {
    attempt.message.fifo.as_ref().expect("a message of an ordered queue has a group")
}

/// Asserts that a call has one message per lane, that a lane sends a message again until it is acknowledged, and that
/// it sends nothing after a message that will never be accepted.
fn assert_waits_for_each_lane(attempts: &[Attempt]) {
    let mut last: HashMap<&str, &Attempt> = HashMap::new();
    for attempt in attempts {
        if let Some(before) = last.insert(&fifo(attempt).group_id, attempt) {
            assert_ne!(before.call, attempt.call, "two messages of a lane in one call");
            match before.result {
                SendResult::Acknowledged => assert_ne!(before.message, attempt.message, "sent again"),
                SendResult::Retryable | SendResult::Unknown => assert_eq!(before.message, attempt.message, "skipped"),
                SendResult::Permanent => panic!("a message follows one that was refused"),
            }
        }
    }
}

/// Asserts that the queue has each event once, and those of a lane in order, whether or not messages with an unknown
/// result arrived.
fn assert_in_order(case: &Case, attempts: &[Attempt], read: &[Vec<(usize, &str)>]) {
    for unknown_arrives in [false, true] {
        let mut ids = BTreeSet::new();
        let mut times = vec![0; case.plan.events.len()];
        case.plan.delivered.iter().for_each(|index| times[*index] += 1);
        let mut last: BTreeMap<&str, usize> = BTreeMap::new();
        for (attempt, events) in attempts.iter().zip(read) {
            let arrives = match attempt.result {
                SendResult::Acknowledged => true,
                SendResult::Unknown => unknown_arrives,
                SendResult::Retryable | SendResult::Permanent => false,
            };
            let Fifo { group_id, deduplication_id } = fifo(attempt);
            if arrives && ids.insert((group_id, deduplication_id)) {
                for (index, _) in events {
                    times[*index] += 1;
                    let before = last.insert(group_id, *index);
                    assert!(before.is_none_or(|before| before < *index), "event {index} follows {before:?}");
                }
            }
        }
        assert!(times.iter().all(|times| *times == 1), "the queue has events this often: {times:?}");
    }
}

/// Asserts that the first event of a message has no room in the previous message of its lane.
fn assert_filled(case: &Case, attempts: &[Attempt]) {
    let most = usize::from(case.plan.max_events_per_message.get());
    let attributes = "schemaStringevent-batch/1project_idStringmodeString".len() + case.plan.project.len() + 4;
    let mut last: HashMap<&str, (usize, usize)> = HashMap::new();
    for attempt in attempts {
        let (group_id, message) = (&*fifo(attempt).group_id, &attempt.message);
        let events = case.packing.read(&message.body);
        let (index, event) = events[0];
        let entry = r#",{"id":"-","event":}"#.len() + 36 + index.to_string().len() + event.len();
        if let Some((count, bytes)) = last.insert(group_id, (events.len(), message.body.len() + attributes)) {
            assert!(count == most || bytes + entry > MIB, "event {index} would fit into the message before it");
        }
    }
}

struct Case {
    plan: Plan,
    lanes: NonZeroU16,
    packing: Packing,
}

impl Case {
    fn generate(input: &[u8]) -> Generated<Self> {
        let mut bytes = Unstructured::new(input);
        let most = if bytes.ratio(3, 4)? { 3 } else { 999 };
        let lanes = NonZeroU16::MIN.saturating_add(bytes.int_in_range(0..=most)?);
        let plan = Plan::generate(bytes, Size::of(input))?;
        let max_events_per_message = plan.max_events_per_message;
        let packing = event_ingest::packing::Packing { max_events_per_message, lanes: Some(lanes) };
        let packing = Packing::of(&plan.project, plan.mode, packing);
        Ok(Self { plan, lanes, packing })
    }

    /// docs/contract.md, "Ordered queues": the message group of each event.
    fn groups(&self) -> Vec<String> {
        let group = |event: &str| {
            let tape = Tape::read(event).expect("a generated event is JSON");
            let mut users =
                tape.members(0).filter(|(name, _)| tape.string(*name).as_deref() == Some("external_user_id"));
            let user = tape.string(users.next().expect("a user").1).expect("a string");
            let digest = Sha256::digest(user.as_bytes());
            let number = u64::from_be_bytes(*digest.first_chunk().expect("32 bytes"));
            format!("{}.{}.{}", self.plan.project, self.plan.mode, number % u64::from(self.lanes.get()))
        };
        self.plan.events.iter().map(|event| group(event)).collect()
    }
}
