//! Ordered queues (docs/contract.md, "Ordered queues").

use crate::gateway_event::post;
use crate::test_app::{KEY, PROJECT, Resources, TestApp};
use aws_sdk_sqs::types::{Message, MessageSystemAttributeName as Attribute};
use event_ingest::packing::Packing;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::num::NonZeroU16;

/// The function with an ordered queue of this many lanes.
fn over(aws: Resources, lanes: u16) -> TestApp {
    let mut test = TestApp::over(aws, 1000);
    test.app.pipeline.packing = Packing { lanes: NonZeroU16::new(lanes), ..test.app.pipeline.packing };
    test
}

async fn start() -> TestApp {
    let aws = Resources::ordered().await;
    aws.put_key(KEY, PROJECT, &[]).await;
    over(aws, 10)
}

/// Events of 100 users, in turn.
fn events(count: usize) -> Vec<Value> {
    (0..count).map(|index| json!({"external_user_id": format!("usr_{}", index % 100), "name": "n"})).collect()
}

fn attribute(message: &Message, name: &Attribute) -> String {
    message.attributes().and_then(|all| all.get(name)).expect("the attribute").clone()
}

/// The indexes of the events in each message group, in the order of the queue.
fn by_group(messages: &[Message]) -> BTreeMap<String, Vec<usize>> {
    let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for message in messages {
        let body: Value = serde_json::from_str(message.body().unwrap()).unwrap();
        let ids = body["events"].as_array().unwrap().iter().map(|event| event["id"].as_str().unwrap());
        let indexes = ids.map(|id| id.rsplit_once('-').unwrap().1.parse::<usize>().unwrap());
        groups.entry(attribute(message, &Attribute::MessageGroupId)).or_default().extend(indexes);
    }
    groups
}

#[tokio::test]
async fn five_hundred_events_are_one_message_per_lane_in_one_call() {
    let test = start().await;
    test.send(&post().events(&events(500))).await.assert_accepted();
    let line = test.log.take().remove(0);
    assert_eq!((&line["messages"], &line["send_calls"]), (&json!(10), &json!(1)));
    let groups = by_group(&test.aws.drain().await);
    assert_eq!(
        groups.keys().map(String::as_str).collect::<Vec<_>>(),
        (0..10).map(|lane| format!("acme.live.{lane}")).collect::<Vec<_>>()
    );
    assert!(groups.values().all(|indexes| indexes.is_sorted()));
    assert_eq!(groups.values().map(Vec::len).sum::<usize>(), 500);
}

#[tokio::test]
async fn the_lane_and_the_deduplication_id_are_those_of_the_contract() {
    let test = start().await;
    let user = json!({"external_user_id": "usr_42", "name": "n"});
    let response = test.send(&post().events(&[user.clone(), user])).await;
    let batch_id = response.header("x-batch-id").unwrap();
    let messages = test.aws.drain().await;
    assert_eq!(attribute(&messages[0], &Attribute::MessageGroupId), "acme.live.5");
    let deduplication_id = attribute(&messages[0], &Attribute::MessageDeduplicationId);
    assert!(deduplication_id.starts_with(&format!("{batch_id}.")) && deduplication_id.len() == 36 + 1 + 32);
}

#[tokio::test]
async fn a_retry_of_a_batch_that_was_not_completed_adds_nothing() {
    let test = start().await;
    let request = post().key("retried").events(&events(30));
    test.send(&request).await.assert_accepted();
    let first = test.aws.drain().await.len();
    test.aws.undo_completion("retried").await;
    let response = test.send(&request).await;
    response.assert_accepted();
    assert_eq!((first > 1, response.header("idempotency-replayed")), (true, None));
    assert_eq!(test.aws.drain().await.len(), 0);
}

#[tokio::test]
async fn a_take_over_with_another_number_of_lanes_loses_nothing() {
    let test = start().await;
    let request = post().key("retried").events(&events(30));
    test.send(&request).await.assert_accepted();
    let first = by_group(&test.aws.drain().await);
    test.aws.undo_completion("retried").await;
    over(test.aws.clone(), 3).send(&request).await.assert_accepted();
    let again = by_group(&test.aws.drain().await);
    assert_eq!(first.values().flatten().count(), 30);
    assert_eq!((again.len(), again.values().flatten().count()), (3, 30), "the events come a second time");
}

#[tokio::test]
async fn a_large_lane_is_sent_in_order() {
    let test = start().await;
    let pad = "x".repeat(400_000);
    let large = |index| json!({"external_user_id": "usr_42", "name": index, "properties": {"pad": pad}});
    let names = ["0", "1", "2", "3", "4"];
    test.send(&post().events(&names.map(large))).await.assert_accepted();
    let line = test.log.take().remove(0);
    assert_eq!((&line["messages"], &line["send_calls"]), (&json!(3), &json!(3)), "two events fit into a message");
    assert_eq!(by_group(&test.aws.drain().await)["acme.live.5"], [0, 1, 2, 3, 4]);
}
