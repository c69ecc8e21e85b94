//! One contract, two implementations: the same tests over the ports in memory and over
//! `DynamoDB` and SQS. The exploration may trust its ports for as long as these pass.

#[path = "../memory/ports.rs"]
#[expect(dead_code, reason = "what only the explorer does to a table")]
mod memory;

use crate::test_app::Resources;
use contract::idempotency_key::IdempotencyKey;
use contract::tenant::{Mode, ProjectId, Tenant};
use event_ingest::aws::{queue::SqsQueue, state_table::StateTable};
use event_ingest::clock::{Clock, SystemClock, Timestamp};
use event_ingest::delivery::{Envelope, MAX_CALL_BYTES, MAX_CALL_MESSAGES, Message, Queue, SendResult};
use event_ingest::idempotency::{
    BatchId, Claimed, Delivered, Fenced, Fingerprint, Owner, Record, RecordKey, State, StateStore, TakeOver,
};
use memory::{MemoryQueue, MemoryStore};
use std::time::Duration;

/// Makes each named function a test over both implementations.
macro_rules! contract {
    ($($test:ident)*) => {
        mod in_memory {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::in_memory_subject()).await;
            })*
        }
        mod aws {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::aws_subject().await).await;
            })*
        }
    };
}

contract! {
    a_claim_of_an_absent_key_writes_the_record
    a_claim_of_a_live_record_is_refused_and_tells_it
    a_claim_of_an_accepted_record_is_refused_and_tells_it
    a_repeated_claim_meets_its_own_record
    a_record_can_be_claimed_from_the_very_second_it_expires
    a_claim_of_an_expired_record_leaves_nothing_of_it
    an_expired_record_is_still_read
    keys_are_apart
    a_take_over_changes_the_holder_and_tells_the_new_record
    a_take_over_needs_the_owner_seen
    a_take_over_needs_a_batch_in_progress
    a_take_over_needs_a_lapsed_lease
    a_take_over_of_nothing_is_refused
    a_repeated_take_over_meets_its_own_record
    take_overs_count_attempts
    complete_marks_accepted_and_moves_the_expiry
    complete_is_for_the_owner_only
    complete_may_be_repeated
    complete_of_nothing_writes_nothing
    release_ends_the_lease_and_records_what_was_delivered
    release_of_nothing_delivered_leaves_what_was
    release_is_for_the_owner_only
    release_needs_a_batch_in_progress
    release_may_be_repeated
    release_of_nothing_writes_nothing
    a_released_key_can_be_taken_over_at_once
    an_equal_attempt_of_another_owner_gives_no_right
    every_bitmap_comes_back_as_it_was
    messages_are_acknowledged_and_taken
    a_full_call_is_taken
    a_call_of_exactly_the_limit_is_taken
    a_call_beyond_the_limit_is_not
    characters_that_sqs_refuses_are_rejected
}

/// What is tested, behind either implementation.
struct Subject<S, Q> {
    store: S,
    queue: Q,
}

/// A queue that can be looked into.
trait Drain: Queue {
    async fn bodies(&self) -> Vec<String>;
}

impl Drain for MemoryQueue {
    async fn bodies(&self) -> Vec<String> {
        sorted(self.drain())
    }
}

struct AwsQueue {
    resources: Resources,
    queue: SqsQueue,
}

impl Queue for AwsQueue {
    async fn send(&self, envelope: &Envelope, messages: &[Message], by: Timestamp) -> Vec<SendResult> {
        self.queue.send(envelope, messages, by).await
    }
}

impl Drain for AwsQueue {
    async fn bodies(&self) -> Vec<String> {
        let drained = self.resources.drain_unchecked().await;
        sorted(drained.into_iter().map(|message| message.body.expect("a body")).collect())
    }
}

fn sorted(mut bodies: Vec<String>) -> Vec<String> {
    bodies.sort();
    bodies
}

fn in_memory_subject() -> Subject<MemoryStore, MemoryQueue> {
    Subject { store: MemoryStore::default(), queue: MemoryQueue::default() }
}

async fn aws_subject() -> Subject<StateTable, AwsQueue> {
    let resources = Resources::create().await;
    let store = StateTable::new(&resources.sdk, resources.state_table.clone());
    let queue = SqsQueue::new(&resources.sdk, resources.queue_url.clone());
    Subject { store, queue: AwsQueue { resources, queue } }
}

/// A time at which records and leases of these tests begin; the ports take time as it is given.
const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_250);
const MILLISECOND: Duration = Duration::from_millis(1);

fn by() -> Timestamp {
    SystemClock.now() + Duration::from_secs(20)
}

fn tenant() -> Tenant {
    Tenant { project: ProjectId::parse("acme").expect("a project id"), mode: Mode::Live }
}

fn key_named(name: &str) -> RecordKey {
    RecordKey::of_batch(&tenant(), IdempotencyKey::parse(name).expect("a key"))
}

fn key() -> RecordKey {
    key_named("key")
}

fn owner(name: &str) -> Owner {
    Owner::from_record(name.to_owned())
}

fn delivered(indexes: &[usize], events: usize) -> Delivered {
    let mut delivered = Delivered::none(events);
    for &index in indexes {
        delivered.insert(index);
    }
    delivered
}

/// What a first claim by `name` writes.
fn claimed_by(name: &str) -> Record {
    Record {
        state: State::InProgress,
        fingerprint: Fingerprint::of(b"body"),
        batch_id: BatchId::new(NOW),
        owner: owner(name),
        attempt: 1,
        lease_until: NOW + Duration::from_millis(4700),
        delivered: delivered(&[1, 9], 12),
        expires_at: NOW.seconds() + 100,
    }
}

fn take_over(seen: &str, name: &str) -> TakeOver {
    TakeOver {
        seen: owner(seen),
        owner: owner(name),
        lease_until: NOW + Duration::from_millis(9700),
        expires_at: NOW.seconds() + 200,
    }
}

impl<S: StateStore, Q> Subject<S, Q> {
    async fn get(&self) -> Option<Record> {
        self.store.get(&key(), by()).await.expect("an answer")
    }

    async fn claim(&self, record: &Record, now: Timestamp) -> Claimed {
        self.store.claim(&key(), record, now, by()).await.expect("an answer")
    }

    async fn take_over(&self, take_over: &TakeOver, now: Timestamp) -> Claimed {
        self.store.take_over(&key(), take_over, now, by()).await.expect("an answer")
    }

    async fn complete(&self, name: &str) -> Fenced {
        self.store.complete(&key(), &owner(name), NOW.seconds() + 300, by()).await.expect("an answer")
    }

    async fn release(&self, name: &str, delivered: Option<&Delivered>) -> Fenced {
        self.store.release(&key(), &owner(name), delivered, NOW.seconds() + 400, by()).await.expect("an answer")
    }

    /// The record of a key that `name` claimed.
    async fn after_claim_by(&self, name: &str) -> Record {
        let record = claimed_by(name);
        assert_eq!(self.claim(&record, NOW).await, Claimed::Done(record.clone()));
        record
    }

    #[track_caller]
    fn assert_refused(claimed: &Claimed, holds: &Record) {
        assert_eq!(*claimed, Claimed::Refused(Some(holds.clone())));
    }
}

async fn a_claim_of_an_absent_key_writes_the_record<S: StateStore, Q>(subject: Subject<S, Q>) {
    assert_eq!(subject.get().await, None);
    let record = subject.after_claim_by("a").await;
    assert_eq!(subject.get().await, Some(record));
}

async fn a_claim_of_a_live_record_is_refused_and_tells_it<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    // A lapsed lease makes no difference to a claim.
    for now in [NOW, first.lease_until, first.lease_until + MILLISECOND] {
        Subject::<S, Q>::assert_refused(&subject.claim(&claimed_by("b"), now).await, &first);
    }
    assert_eq!(subject.get().await, Some(first));
}

async fn a_claim_of_an_accepted_record_is_refused_and_tells_it<S: StateStore, Q>(subject: Subject<S, Q>) {
    subject.after_claim_by("a").await;
    subject.complete("a").await;
    let accepted = subject.get().await.expect("the record");
    Subject::<S, Q>::assert_refused(&subject.claim(&claimed_by("b"), NOW).await, &accepted);
    assert_eq!(subject.get().await, Some(accepted));
}

async fn a_repeated_claim_meets_its_own_record<S: StateStore, Q>(subject: Subject<S, Q>) {
    let record = subject.after_claim_by("a").await;
    Subject::<S, Q>::assert_refused(&subject.claim(&record, NOW).await, &record);
}

async fn a_record_can_be_claimed_from_the_very_second_it_expires<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    let expiry = Timestamp::from_millis(first.expires_at * 1000);
    let again = claimed_by("b");
    Subject::<S, Q>::assert_refused(&subject.claim(&again, expiry.minus(MILLISECOND)).await, &first);
    assert_eq!(subject.claim(&again, expiry).await, Claimed::Done(again.clone()));
    assert_eq!(subject.get().await, Some(again));
}

async fn a_claim_of_an_expired_record_leaves_nothing_of_it<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    subject.take_over(&take_over("a", "b"), first.lease_until).await;
    subject.complete("b").await;
    let again = Record { fingerprint: Fingerprint::of(b"other"), delivered: delivered(&[], 2), ..claimed_by("c") };
    let later = NOW + Duration::from_hours(1);
    assert_eq!(subject.claim(&again, later).await, Claimed::Done(again.clone()));
    assert_eq!(subject.get().await, Some(again));
}

async fn an_expired_record_is_still_read<S: StateStore, Q>(subject: Subject<S, Q>) {
    let long_ago = Record { expires_at: 1, ..claimed_by("a") };
    assert_eq!(subject.claim(&long_ago, NOW).await, Claimed::Done(long_ago.clone()));
    assert_eq!(subject.get().await, Some(long_ago));
}

async fn keys_are_apart<S: StateStore, Q>(subject: Subject<S, Q>) {
    let test_mode =
        RecordKey::of_batch(&Tenant { mode: Mode::Test, ..tenant() }, IdempotencyKey::parse("key").expect("a key"));
    let first = subject.after_claim_by("a").await;
    for other in [key_named("key2"), test_mode] {
        let record = claimed_by("b");
        assert_eq!(subject.store.get(&other, by()).await, Ok(None));
        assert_eq!(subject.store.claim(&other, &record, NOW, by()).await, Ok(Claimed::Done(record)));
    }
    assert_eq!(subject.get().await, Some(first));
}

async fn a_take_over_changes_the_holder_and_tells_the_new_record<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    let taken = Record {
        owner: owner("b"),
        attempt: 2,
        lease_until: NOW + Duration::from_millis(9700),
        expires_at: NOW.seconds() + 200,
        ..first.clone()
    };
    assert_eq!(subject.take_over(&take_over("a", "b"), first.lease_until).await, Claimed::Done(taken.clone()));
    assert_eq!(subject.get().await, Some(taken));
}

async fn a_take_over_needs_the_owner_seen<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    Subject::<S, Q>::assert_refused(&subject.take_over(&take_over("x", "b"), first.lease_until).await, &first);
    assert_eq!(subject.get().await, Some(first));
}

async fn a_take_over_needs_a_batch_in_progress<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    subject.complete("a").await;
    let accepted = subject.get().await.expect("the record");
    Subject::<S, Q>::assert_refused(&subject.take_over(&take_over("a", "b"), first.lease_until).await, &accepted);
    assert_eq!(subject.get().await, Some(accepted));
}

async fn a_take_over_needs_a_lapsed_lease<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    let take_over = take_over("a", "b");
    let last = first.lease_until.minus(MILLISECOND);
    Subject::<S, Q>::assert_refused(&subject.take_over(&take_over, last).await, &first);
    assert_eq!(subject.get().await, Some(first.clone()));
    assert!(matches!(subject.take_over(&take_over, first.lease_until).await, Claimed::Done(_)));
}

async fn a_take_over_of_nothing_is_refused<S: StateStore, Q>(subject: Subject<S, Q>) {
    assert_eq!(subject.take_over(&take_over("a", "b"), NOW).await, Claimed::Refused(None));
    assert_eq!(subject.get().await, None);
}

async fn a_repeated_take_over_meets_its_own_record<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    let take_over = take_over("a", "b");
    let Claimed::Done(taken) = subject.take_over(&take_over, first.lease_until).await else { panic!("refused") };
    Subject::<S, Q>::assert_refused(&subject.take_over(&take_over, first.lease_until).await, &taken);
    assert_eq!(subject.get().await, Some(taken));
}

async fn take_overs_count_attempts<S: StateStore, Q>(subject: Subject<S, Q>) {
    subject.after_claim_by("0").await;
    for attempt in 1..4_u64 {
        let take_over = take_over(&(attempt - 1).to_string(), &attempt.to_string());
        let later = NOW + Duration::from_mins(1);
        let Claimed::Done(record) = subject.take_over(&take_over, later).await else { panic!("refused") };
        assert_eq!(record.attempt, attempt + 1);
    }
}

async fn complete_marks_accepted_and_moves_the_expiry<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    assert_eq!(subject.complete("a").await, Fenced::Done);
    let accepted = Record { state: State::Accepted, expires_at: NOW.seconds() + 300, ..first };
    assert_eq!(subject.get().await, Some(accepted));
}

async fn complete_is_for_the_owner_only<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    assert_eq!(subject.complete("b").await, Fenced::Lost);
    assert_eq!(subject.get().await, Some(first.clone()));
    subject.take_over(&take_over("a", "b"), first.lease_until).await;
    let taken = subject.get().await;
    assert_eq!(subject.complete("a").await, Fenced::Lost);
    assert_eq!(subject.get().await, taken);
}

async fn complete_may_be_repeated<S: StateStore, Q>(subject: Subject<S, Q>) {
    subject.after_claim_by("a").await;
    subject.complete("a").await;
    let accepted = subject.get().await;
    assert_eq!(subject.complete("a").await, Fenced::Done);
    assert_eq!(subject.get().await, accepted);
}

async fn complete_of_nothing_writes_nothing<S: StateStore, Q>(subject: Subject<S, Q>) {
    assert_eq!(subject.complete("a").await, Fenced::Lost);
    assert_eq!(subject.get().await, None);
}

async fn release_ends_the_lease_and_records_what_was_delivered<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    let now_delivered = delivered(&[1, 2, 9], 12);
    assert_eq!(subject.release("a", Some(&now_delivered)).await, Fenced::Done);
    let released = Record {
        lease_until: Timestamp::from_millis(0),
        delivered: now_delivered,
        expires_at: NOW.seconds() + 400,
        ..first
    };
    assert_eq!(subject.get().await, Some(released));
}

async fn release_of_nothing_delivered_leaves_what_was<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    assert_eq!(subject.release("a", None).await, Fenced::Done);
    let released = Record { lease_until: Timestamp::from_millis(0), expires_at: NOW.seconds() + 400, ..first };
    assert_eq!(subject.get().await, Some(released));
}

async fn release_is_for_the_owner_only<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    for delivered in [None, Some(&delivered(&[0], 12))] {
        assert_eq!(subject.release("b", delivered).await, Fenced::Lost);
    }
    assert_eq!(subject.get().await, Some(first.clone()));
    subject.take_over(&take_over("a", "b"), first.lease_until).await;
    let taken = subject.get().await;
    assert_eq!(subject.release("a", None).await, Fenced::Lost);
    assert_eq!(subject.get().await, taken);
}

async fn release_needs_a_batch_in_progress<S: StateStore, Q>(subject: Subject<S, Q>) {
    subject.after_claim_by("a").await;
    subject.complete("a").await;
    let accepted = subject.get().await;
    for delivered in [None, Some(&delivered(&[0], 12))] {
        assert_eq!(subject.release("a", delivered).await, Fenced::Lost);
    }
    assert_eq!(subject.get().await, accepted);
}

async fn release_may_be_repeated<S: StateStore, Q>(subject: Subject<S, Q>) {
    subject.after_claim_by("a").await;
    let delivered = delivered(&[3], 12);
    subject.release("a", Some(&delivered)).await;
    let released = subject.get().await;
    assert_eq!(subject.release("a", Some(&delivered)).await, Fenced::Done);
    assert_eq!(subject.get().await, released);
}

async fn release_of_nothing_writes_nothing<S: StateStore, Q>(subject: Subject<S, Q>) {
    assert_eq!(subject.release("a", None).await, Fenced::Lost);
    assert_eq!(subject.get().await, None);
}

async fn a_released_key_can_be_taken_over_at_once<S: StateStore, Q>(subject: Subject<S, Q>) {
    subject.after_claim_by("a").await;
    let recorded = delivered(&[0, 11], 12);
    subject.release("a", Some(&recorded)).await;
    let Claimed::Done(taken) = subject.take_over(&take_over("a", "b"), NOW).await else { panic!("refused") };
    assert_eq!((taken.delivered, taken.attempt), (recorded, 2));
}

async fn an_equal_attempt_of_another_owner_gives_no_right<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    let again = claimed_by("b");
    subject.claim(&again, Timestamp::from_millis(first.expires_at * 1000)).await;
    assert_eq!(subject.complete("a").await, Fenced::Lost);
    assert_eq!(subject.release("a", Some(&delivered(&[0], 12))).await, Fenced::Lost);
    assert_eq!(subject.get().await, Some(again));
}

async fn every_bitmap_comes_back_as_it_was<S: StateStore, Q>(subject: Subject<S, Q>) {
    for (number, (events, indexes)) in
        [(1, vec![]), (1, vec![0]), (8, vec![7]), (9, vec![8]), (500, vec![0, 255, 499]), (500, (0..500).collect())]
            .into_iter()
            .enumerate()
    {
        let key = key_named(&number.to_string());
        let record = Record { delivered: delivered(&indexes, events), ..claimed_by("a") };
        assert_eq!(subject.store.claim(&key, &record, NOW, by()).await, Ok(Claimed::Done(record.clone())));
        let read = subject.store.get(&key, by()).await.expect("an answer").expect("a record");
        assert_eq!(read.delivered, record.delivered);
        assert_eq!(
            (read.delivered.count(), read.delivered.covers(0..events)),
            (indexes.len(), indexes.len() == events)
        );
    }
}

fn envelope() -> Envelope {
    Envelope::new(tenant(), BatchId::new(NOW))
}

fn message(body: impl Into<String>) -> Message {
    Message { body: body.into() }
}

/// What SQS counts for the attributes of [`envelope`].
fn attribute_bytes() -> usize {
    envelope().attributes().iter().map(|(name, value)| name.len() + "String".len() + value.len()).sum()
}

async fn messages_are_acknowledged_and_taken<S, Q: Drain>(subject: Subject<S, Q>) {
    let bodies = ["one", "two with \t, \r, \n and ", "three: \u{20}\u{D7FF}\u{E000}\u{FFFD}\u{10000}\u{10FFFF}"];
    let fates = subject.queue.send(&envelope(), &bodies.map(message), by()).await;
    assert_eq!(fates, [SendResult::Acknowledged; 3]);
    assert_eq!(subject.queue.bodies().await, sorted(bodies.map(str::to_owned).to_vec()));
}

async fn a_full_call_is_taken<S, Q: Drain>(subject: Subject<S, Q>) {
    let bodies: Vec<String> = (0..MAX_CALL_MESSAGES).map(|number| format!("message {number}")).collect();
    let messages: Vec<Message> = bodies.iter().map(message).collect();
    assert_eq!(subject.queue.send(&envelope(), &messages, by()).await, [SendResult::Acknowledged; MAX_CALL_MESSAGES]);
    assert_eq!(subject.queue.bodies().await, sorted(bodies));
    let eleven = vec![message("one too many"); MAX_CALL_MESSAGES + 1];
    let fates = subject.queue.send(&envelope(), &eleven, by()).await;
    assert!(fates.len() == eleven.len() && !fates.contains(&SendResult::Acknowledged), "{fates:?}");
    assert_eq!(subject.queue.bodies().await, Vec::<String>::new());
}

async fn a_call_of_exactly_the_limit_is_taken<S, Q: Drain>(subject: Subject<S, Q>) {
    let half = MAX_CALL_BYTES / 2 - attribute_bytes();
    for lengths in [vec![MAX_CALL_BYTES - attribute_bytes()], vec![half, half]] {
        let messages: Vec<Message> = lengths.iter().map(|&length| message("x".repeat(length))).collect();
        let fates = subject.queue.send(&envelope(), &messages, by()).await;
        assert_eq!(fates, vec![SendResult::Acknowledged; lengths.len()]);
        assert_eq!(subject.queue.bodies().await.iter().map(String::len).collect::<Vec<_>>(), lengths);
    }
}

async fn a_call_beyond_the_limit_is_not<S, Q: Drain>(subject: Subject<S, Q>) {
    assert_rejected(&subject.queue, &[MAX_CALL_BYTES + 1]).await;
    assert_rejected(&subject.queue, &[MAX_CALL_BYTES / 2, MAX_CALL_BYTES / 2 + 1]).await;
}

/// AWS counts attributes too; the local AWS, as of this version, does not.
#[tokio::test]
async fn attributes_count() {
    let queue = MemoryQueue::default();
    let half = MAX_CALL_BYTES / 2 - attribute_bytes();
    assert_rejected(&queue, &[MAX_CALL_BYTES - attribute_bytes() + 1]).await;
    assert_rejected(&queue, &[half, half + 1]).await;
}

async fn assert_rejected(queue: &impl Drain, lengths: &[usize]) {
    let messages: Vec<Message> = lengths.iter().map(|&length| message("x".repeat(length))).collect();
    assert_eq!(queue.send(&envelope(), &messages, by()).await, vec![SendResult::Permanent; lengths.len()]);
    assert_eq!(queue.bodies().await, Vec::<String>::new());
}

async fn characters_that_sqs_refuses_are_rejected<S, Q: Drain>(subject: Subject<S, Q>) {
    for refused in ['\u{FFFE}', '\u{FFFF}', '\u{0}', '\u{8}', '\u{B}', '\u{C}', '\u{1F}'] {
        let fates = subject.queue.send(&envelope(), &[message(format!("a{refused}b"))], by()).await;
        assert_eq!(fates, [SendResult::Permanent], "{refused:?}");
        assert_eq!(subject.queue.bodies().await, Vec::<String>::new(), "{refused:?}");
    }
}
