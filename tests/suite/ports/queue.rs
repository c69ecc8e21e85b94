//! The limits of `SendMessageBatch`, and its results.

use super::memory::MemoryQueue;
use super::{Drain, NOW, Subject, by, port_tests, sorted, tenant};
use crate::test_app::Resources;
use event_ingest::aws::queue::SqsQueue;
use event_ingest::delivery::{Queue, SendResult};
use event_ingest::idempotency::BatchId;
use event_ingest::packing::{Envelope, Fifo, MAX_CALL_BYTES, MAX_CALL_MESSAGES, Message};
use test_support::local_aws;

port_tests! {
    messages_are_acknowledged_and_queued
    a_call_of_ten_messages_is_accepted_and_one_of_eleven_is_not
    a_call_of_exactly_the_size_limit_is_accepted
    a_call_over_the_size_limit_fails_permanently
    characters_that_sqs_refuses_fail_permanently
}

fn envelope() -> Envelope {
    Envelope::new(tenant(), BatchId::new(NOW))
}

fn message(body: impl Into<String>) -> Message {
    Message { body: body.into(), fifo: None }
}

fn ordered(body: &str, group_id: &str, deduplication_id: &str) -> Message {
    let fifo = Fifo { group_id: group_id.to_owned(), deduplication_id: deduplication_id.to_owned() };
    Message { body: body.to_owned(), fifo: Some(fifo) }
}

mod ordered_queue {
    use super::super::{aws_subject_over, in_memory_subject};
    use super::drops_a_duplicate_in_the_same_group_and_keeps_the_order;
    use crate::test_app::Resources;

    #[tokio::test]
    async fn in_memory() {
        drops_a_duplicate_in_the_same_group_and_keeps_the_order(in_memory_subject()).await;
    }

    #[tokio::test]
    async fn aws() {
        drops_a_duplicate_in_the_same_group_and_keeps_the_order(aws_subject_over(Resources::ordered().await)).await;
    }
}

async fn drops_a_duplicate_in_the_same_group_and_keeps_the_order<S, Q: Drain>(subject: Subject<S, Q>) {
    let sends = [
        vec![ordered("1", "g", "a"), ordered("2", "h", "a")],
        vec![ordered("again", "g", "a"), ordered("3", "g", "b")],
        vec![ordered("4", "g", "c")],
    ];
    for messages in sends {
        let count = messages.len();
        let results = subject.queue.send(&envelope(), messages, by()).await;
        assert_eq!(results, vec![SendResult::Acknowledged; count]);
    }
    let bodies = subject.queue.drained().await;
    assert_eq!(sorted(bodies.clone()), ["1", "2", "3", "4"]);
    assert_eq!(bodies.iter().filter(|body| *body != "2").collect::<Vec<_>>(), ["1", "3", "4"]);
}

/// The bytes that SQS counts for the attributes of [`envelope`].
fn attribute_bytes() -> usize {
    envelope().attributes().iter().map(|(name, value)| name.len() + "String".len() + value.len()).sum()
}

#[tokio::test]
async fn a_call_that_sqs_refuses_can_be_repeated_and_one_without_a_response_is_unknown() {
    let Resources { sdk, queue_url, .. } = Resources::create().await;
    let missing = SqsQueue::new(&sdk, format!("{queue_url}-missing"));
    assert_eq!(missing.send(&envelope(), vec![message("m")], by()).await, [SendResult::Retryable]);
    let closed = local_aws::test_config(&format!("http://127.0.0.1:{}", local_aws::free_port())).await;
    let unreachable = SqsQueue::new(&closed, queue_url);
    assert_eq!(unreachable.send(&envelope(), vec![message("m")], by()).await, [SendResult::Unknown]);
}

async fn messages_are_acknowledged_and_queued<S, Q: Drain>(subject: Subject<S, Q>) {
    let bodies = ["one", "two with \t, \r, \n and ", "three: \u{20}\u{D7FF}\u{E000}\u{FFFD}\u{10000}\u{10FFFF}"];
    let results = subject.queue.send(&envelope(), bodies.map(message).to_vec(), by()).await;
    assert_eq!(results, [SendResult::Acknowledged; 3]);
    assert_eq!(subject.queue.bodies().await, sorted(bodies.map(str::to_owned).to_vec()));
}

async fn a_call_of_ten_messages_is_accepted_and_one_of_eleven_is_not<S, Q: Drain>(subject: Subject<S, Q>) {
    let bodies: Vec<String> = (0..MAX_CALL_MESSAGES).map(|number| format!("message {number}")).collect();
    let messages = bodies.iter().map(message).collect();
    assert_eq!(subject.queue.send(&envelope(), messages, by()).await, [SendResult::Acknowledged; MAX_CALL_MESSAGES]);
    assert_eq!(subject.queue.bodies().await, sorted(bodies));
    let eleven = vec![message("one too many"); MAX_CALL_MESSAGES + 1];
    let results = subject.queue.send(&envelope(), eleven, by()).await;
    assert!(results.len() == MAX_CALL_MESSAGES + 1 && !results.contains(&SendResult::Acknowledged), "{results:?}");
    assert_eq!(subject.queue.bodies().await, Vec::<String>::new());
}

async fn a_call_of_exactly_the_size_limit_is_accepted<S, Q: Drain>(subject: Subject<S, Q>) {
    let half = MAX_CALL_BYTES / 2 - attribute_bytes();
    for lengths in [vec![MAX_CALL_BYTES - attribute_bytes()], vec![half, half]] {
        let messages = lengths.iter().map(|&length| message("x".repeat(length))).collect();
        let results = subject.queue.send(&envelope(), messages, by()).await;
        assert_eq!(results, vec![SendResult::Acknowledged; lengths.len()]);
        assert_eq!(subject.queue.bodies().await.iter().map(String::len).collect::<Vec<_>>(), lengths);
    }
}

async fn a_call_over_the_size_limit_fails_permanently<S, Q: Drain>(subject: Subject<S, Q>) {
    assert_permanent_failure(&subject.queue, &[MAX_CALL_BYTES + 1]).await;
    assert_permanent_failure(&subject.queue, &[MAX_CALL_BYTES / 2, MAX_CALL_BYTES / 2 + 1]).await;
}

/// SQS counts the attributes too, but the local AWS does not.
#[tokio::test]
async fn attributes_count_toward_the_size_limit() {
    let queue = MemoryQueue::default();
    let half = MAX_CALL_BYTES / 2 - attribute_bytes();
    assert_permanent_failure(&queue, &[MAX_CALL_BYTES - attribute_bytes() + 1]).await;
    assert_permanent_failure(&queue, &[half, half + 1]).await;
}

async fn assert_permanent_failure(queue: &impl Drain, lengths: &[usize]) {
    let messages = lengths.iter().map(|&length| message("x".repeat(length))).collect();
    assert_eq!(queue.send(&envelope(), messages, by()).await, vec![SendResult::Permanent; lengths.len()]);
    assert_eq!(queue.bodies().await, Vec::<String>::new());
}

async fn characters_that_sqs_refuses_fail_permanently<S, Q: Drain>(subject: Subject<S, Q>) {
    for refused in ['\u{FFFE}', '\u{FFFF}', '\u{0}', '\u{8}', '\u{B}', '\u{C}', '\u{1F}'] {
        let results = subject.queue.send(&envelope(), vec![message(format!("a{refused}b"))], by()).await;
        assert_eq!(results, [SendResult::Permanent], "{refused:?}");
        assert_eq!(subject.queue.bodies().await, Vec::<String>::new(), "{refused:?}");
    }
}
