//! The conditions and effects of each operation on idempotency records.

use super::{NOW, Subject, by, port_tests, tenant};
use crate::test_app::Resources;
use contract::idempotency_key::IdempotencyKey;
use contract::tenant::{Mode, Tenant};
use event_ingest::aws::state_table::StateTable;
use event_ingest::clock::Timestamp;
use event_ingest::idempotency::{
    BatchId, Claimed, Delivered, Fenced, Fingerprint, Owner, Record, RecordKey, State, StateStore, TakeOver,
};
use event_ingest::store::StoreError;
use std::time::Duration;

const MILLISECOND: Duration = Duration::from_millis(1);

port_tests! {
    a_claim_of_an_absent_key_writes_the_record
    a_claim_of_an_unexpired_record_is_refused_and_returns_the_record
    a_claim_of_an_accepted_record_is_refused_and_returns_the_record
    a_repeated_claim_is_refused_and_returns_its_own_record
    a_record_can_be_claimed_from_the_second_of_its_expiry
    a_claim_of_an_expired_record_replaces_it_completely
    a_read_returns_an_expired_record
    keys_of_other_names_and_modes_are_independent
    a_take_over_changes_the_owner_and_returns_the_new_record
    a_take_over_requires_the_owner_that_was_read
    a_take_over_requires_a_batch_in_progress
    a_take_over_requires_that_the_lease_has_ended
    a_take_over_of_an_absent_key_is_refused
    a_repeated_take_over_is_refused_and_returns_its_own_record
    each_take_over_increments_the_attempt
    complete_records_the_acceptance_its_events_and_the_expiry
    only_the_owner_can_complete
    a_repeated_complete_changes_nothing
    a_complete_of_an_absent_key_writes_nothing
    a_release_ends_the_lease_and_records_the_delivered_events
    a_release_without_a_bitmap_keeps_the_bitmap_of_the_record
    only_the_owner_can_release
    a_release_requires_a_batch_in_progress
    a_repeated_release_changes_nothing
    a_release_of_an_absent_key_writes_nothing
    a_released_key_can_be_taken_over_immediately
    an_equal_attempt_number_does_not_make_an_owner
    bitmaps_are_read_as_they_were_written
}

/// A throttled or failed write must be tried again, and a failed condition must not.
#[tokio::test]
async fn an_error_of_the_table_is_not_a_failed_condition() {
    let aws = Resources::create().await;
    let table = StateTable::new(&aws.sdk, "missing".to_owned());
    let owner = owner("a");
    let errors = [
        table.claim(&key(), &claimed_by("a"), NOW, by()).await.err(),
        table.take_over(&key(), &take_over("a", "b"), NOW, by()).await.err(),
        table.complete(&key(), &owner, &delivered(&[], 1), NOW.seconds(), by()).await.err(),
        table.release(&key(), &owner, None, NOW.seconds(), by()).await.err(),
        table.get(&key(), by()).await.err(),
    ];
    for error in errors {
        assert!(matches!(&error, Some(StoreError::Unavailable(_))), "{error:?}");
    }
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

/// The record that the first claim by `name` writes.
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
        self.store.get(&key(), by()).await.expect("a response")
    }

    async fn claim(&self, record: &Record, now: Timestamp) -> Claimed {
        self.store.claim(&key(), record, now, by()).await.expect("a response")
    }

    async fn take_over(&self, take_over: &TakeOver, now: Timestamp) -> Claimed {
        self.store.take_over(&key(), take_over, now, by()).await.expect("a response")
    }

    async fn complete(&self, name: &str) -> Fenced {
        self.store
            .complete(&key(), &owner(name), &delivered(&[0, 2], 3), NOW.seconds() + 300, by())
            .await
            .expect("a response")
    }

    async fn release(&self, name: &str, delivered: Option<&Delivered>) -> Fenced {
        self.store.release(&key(), &owner(name), delivered, NOW.seconds() + 400, by()).await.expect("a response")
    }

    /// Claims the key for `name`, and returns the record.
    async fn after_claim_by(&self, name: &str) -> Record {
        let record = claimed_by(name);
        assert_eq!(self.claim(&record, NOW).await, Claimed::Done(record.clone()));
        record
    }

    #[track_caller]
    fn assert_refused(claimed: &Claimed, record: &Record) {
        assert_eq!(*claimed, Claimed::Refused(Some(record.clone())));
    }
}

async fn a_claim_of_an_absent_key_writes_the_record<S: StateStore, Q>(subject: Subject<S, Q>) {
    assert_eq!(subject.get().await, None);
    let record = subject.after_claim_by("a").await;
    assert_eq!(subject.get().await, Some(record));
}

async fn a_claim_of_an_unexpired_record_is_refused_and_returns_the_record<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    // The end of the lease makes no difference to a claim.
    for now in [NOW, first.lease_until, first.lease_until + MILLISECOND] {
        Subject::<S, Q>::assert_refused(&subject.claim(&claimed_by("b"), now).await, &first);
    }
    assert_eq!(subject.get().await, Some(first));
}

async fn a_claim_of_an_accepted_record_is_refused_and_returns_the_record<S: StateStore, Q>(subject: Subject<S, Q>) {
    subject.after_claim_by("a").await;
    subject.complete("a").await;
    let accepted = subject.get().await.expect("the record");
    Subject::<S, Q>::assert_refused(&subject.claim(&claimed_by("b"), NOW).await, &accepted);
    assert_eq!(subject.get().await, Some(accepted));
}

async fn a_repeated_claim_is_refused_and_returns_its_own_record<S: StateStore, Q>(subject: Subject<S, Q>) {
    let record = subject.after_claim_by("a").await;
    Subject::<S, Q>::assert_refused(&subject.claim(&record, NOW).await, &record);
}

async fn a_record_can_be_claimed_from_the_second_of_its_expiry<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    let expiry = Timestamp::from_millis(first.expires_at * 1000);
    let again = claimed_by("b");
    Subject::<S, Q>::assert_refused(&subject.claim(&again, expiry.minus(MILLISECOND)).await, &first);
    assert_eq!(subject.claim(&again, expiry).await, Claimed::Done(again.clone()));
    assert_eq!(subject.get().await, Some(again));
}

async fn a_claim_of_an_expired_record_replaces_it_completely<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    subject.take_over(&take_over("a", "b"), first.lease_until).await;
    subject.complete("b").await;
    let again = Record { fingerprint: Fingerprint::of(b"other"), delivered: delivered(&[], 2), ..claimed_by("c") };
    let later = NOW + Duration::from_hours(1);
    assert_eq!(subject.claim(&again, later).await, Claimed::Done(again.clone()));
    assert_eq!(subject.get().await, Some(again));
}

async fn a_read_returns_an_expired_record<S: StateStore, Q>(subject: Subject<S, Q>) {
    let long_ago = Record { expires_at: 1, ..claimed_by("a") };
    assert_eq!(subject.claim(&long_ago, NOW).await, Claimed::Done(long_ago.clone()));
    assert_eq!(subject.get().await, Some(long_ago));
}

async fn keys_of_other_names_and_modes_are_independent<S: StateStore, Q>(subject: Subject<S, Q>) {
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

async fn a_take_over_changes_the_owner_and_returns_the_new_record<S: StateStore, Q>(subject: Subject<S, Q>) {
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

async fn a_take_over_requires_the_owner_that_was_read<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    Subject::<S, Q>::assert_refused(&subject.take_over(&take_over("x", "b"), first.lease_until).await, &first);
    assert_eq!(subject.get().await, Some(first));
}

async fn a_take_over_requires_a_batch_in_progress<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    subject.complete("a").await;
    let accepted = subject.get().await.expect("the record");
    Subject::<S, Q>::assert_refused(&subject.take_over(&take_over("a", "b"), first.lease_until).await, &accepted);
    assert_eq!(subject.get().await, Some(accepted));
}

async fn a_take_over_requires_that_the_lease_has_ended<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    let take_over = take_over("a", "b");
    let last = first.lease_until.minus(MILLISECOND);
    Subject::<S, Q>::assert_refused(&subject.take_over(&take_over, last).await, &first);
    assert_eq!(subject.get().await, Some(first.clone()));
    assert!(matches!(subject.take_over(&take_over, first.lease_until).await, Claimed::Done(_)));
}

async fn a_take_over_of_an_absent_key_is_refused<S: StateStore, Q>(subject: Subject<S, Q>) {
    assert_eq!(subject.take_over(&take_over("a", "b"), NOW).await, Claimed::Refused(None));
    assert_eq!(subject.get().await, None);
}

async fn a_repeated_take_over_is_refused_and_returns_its_own_record<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    let take_over = take_over("a", "b");
    let Claimed::Done(taken) = subject.take_over(&take_over, first.lease_until).await else { panic!("refused") };
    Subject::<S, Q>::assert_refused(&subject.take_over(&take_over, first.lease_until).await, &taken);
    assert_eq!(subject.get().await, Some(taken));
}

async fn each_take_over_increments_the_attempt<S: StateStore, Q>(subject: Subject<S, Q>) {
    subject.after_claim_by("0").await;
    for attempt in 1..4_u64 {
        let take_over = take_over(&(attempt - 1).to_string(), &attempt.to_string());
        let later = NOW + Duration::from_mins(1);
        let Claimed::Done(record) = subject.take_over(&take_over, later).await else { panic!("refused") };
        assert_eq!(record.attempt, attempt + 1);
    }
}

async fn complete_records_the_acceptance_its_events_and_the_expiry<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    assert_eq!(subject.complete("a").await, Fenced::Done);
    let delivered = delivered(&[0, 2], 3);
    let accepted = Record { state: State::Accepted, delivered, expires_at: NOW.seconds() + 300, ..first };
    assert_eq!(subject.get().await, Some(accepted));
}

async fn only_the_owner_can_complete<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    assert_eq!(subject.complete("b").await, Fenced::Lost);
    assert_eq!(subject.get().await, Some(first.clone()));
    subject.take_over(&take_over("a", "b"), first.lease_until).await;
    let taken = subject.get().await;
    assert_eq!(subject.complete("a").await, Fenced::Lost);
    assert_eq!(subject.get().await, taken);
}

async fn a_repeated_complete_changes_nothing<S: StateStore, Q>(subject: Subject<S, Q>) {
    subject.after_claim_by("a").await;
    subject.complete("a").await;
    let accepted = subject.get().await;
    assert_eq!(subject.complete("a").await, Fenced::Done);
    assert_eq!(subject.get().await, accepted);
}

async fn a_complete_of_an_absent_key_writes_nothing<S: StateStore, Q>(subject: Subject<S, Q>) {
    assert_eq!(subject.complete("a").await, Fenced::Lost);
    assert_eq!(subject.get().await, None);
}

async fn a_release_ends_the_lease_and_records_the_delivered_events<S: StateStore, Q>(subject: Subject<S, Q>) {
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

async fn a_release_without_a_bitmap_keeps_the_bitmap_of_the_record<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    assert_eq!(subject.release("a", None).await, Fenced::Done);
    let released = Record { lease_until: Timestamp::from_millis(0), expires_at: NOW.seconds() + 400, ..first };
    assert_eq!(subject.get().await, Some(released));
}

async fn only_the_owner_can_release<S: StateStore, Q>(subject: Subject<S, Q>) {
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

async fn a_release_requires_a_batch_in_progress<S: StateStore, Q>(subject: Subject<S, Q>) {
    subject.after_claim_by("a").await;
    subject.complete("a").await;
    let accepted = subject.get().await;
    for delivered in [None, Some(&delivered(&[0], 12))] {
        assert_eq!(subject.release("a", delivered).await, Fenced::Lost);
    }
    assert_eq!(subject.get().await, accepted);
}

async fn a_repeated_release_changes_nothing<S: StateStore, Q>(subject: Subject<S, Q>) {
    subject.after_claim_by("a").await;
    let delivered = delivered(&[3], 12);
    subject.release("a", Some(&delivered)).await;
    let released = subject.get().await;
    assert_eq!(subject.release("a", Some(&delivered)).await, Fenced::Done);
    assert_eq!(subject.get().await, released);
}

async fn a_release_of_an_absent_key_writes_nothing<S: StateStore, Q>(subject: Subject<S, Q>) {
    assert_eq!(subject.release("a", None).await, Fenced::Lost);
    assert_eq!(subject.get().await, None);
}

async fn a_released_key_can_be_taken_over_immediately<S: StateStore, Q>(subject: Subject<S, Q>) {
    subject.after_claim_by("a").await;
    let recorded = delivered(&[0, 11], 12);
    subject.release("a", Some(&recorded)).await;
    let Claimed::Done(taken) = subject.take_over(&take_over("a", "b"), NOW).await else { panic!("refused") };
    assert_eq!((taken.delivered, taken.attempt), (recorded, 2));
}

async fn an_equal_attempt_number_does_not_make_an_owner<S: StateStore, Q>(subject: Subject<S, Q>) {
    let first = subject.after_claim_by("a").await;
    let again = claimed_by("b");
    subject.claim(&again, Timestamp::from_millis(first.expires_at * 1000)).await;
    assert_eq!(subject.complete("a").await, Fenced::Lost);
    assert_eq!(subject.release("a", Some(&delivered(&[0], 12))).await, Fenced::Lost);
    assert_eq!(subject.get().await, Some(again));
}

async fn bitmaps_are_read_as_they_were_written<S: StateStore, Q>(subject: Subject<S, Q>) {
    for (number, (events, indexes)) in
        [(1, vec![]), (1, vec![0]), (8, vec![7]), (9, vec![8]), (500, vec![0, 255, 499]), (500, (0..500).collect())]
            .into_iter()
            .enumerate()
    {
        let key = key_named(&number.to_string());
        let record = Record { delivered: delivered(&indexes, events), ..claimed_by("a") };
        assert_eq!(subject.store.claim(&key, &record, NOW, by()).await, Ok(Claimed::Done(record.clone())));
        let read = subject.store.get(&key, by()).await.expect("a response").expect("a record");
        assert_eq!(read.delivered, record.delivered);
        assert_eq!(
            (read.delivered.count(), read.delivered.covers(0..events)),
            (indexes.len(), indexes.len() == events)
        );
    }
}
