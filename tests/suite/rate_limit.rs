//! Limits over the real local AWS, and what keeps tenants apart (contract section 2, row 10).

use crate::gateway_event::{GatewayEventBuilder, post};
use crate::test_app::{KEY, PROJECT, Resources, TestApp};
use aws_sdk_dynamodb::types::AttributeValue;
use event_ingest::clock::Clock;
use event_ingest::rate_limit::{WINDOW, Window};
use futures_util::future::join_all;
use serde_json::json;
use std::time::Duration;

const LIMITED_KEY: &str = "sk_live_limited_limited_limited_limited_0000";
const OTHER_KEY: &str = "sk_live_other_other_other_other_other_other0";

fn limit(events_per_second: u32) -> Vec<(&'static str, AttributeValue)> {
    vec![("rate_limit", AttributeValue::N(events_per_second.to_string()))]
}

fn batch(key: &str, events: usize) -> GatewayEventBuilder {
    let events: Vec<_> = (0..events).map(|n| json!({"external_user_id": "u", "name": format!("n{n}")})).collect();
    post().header("authorization", &format!("Bearer {key}")).events(&events)
}

/// A function whose clock stands still at the beginning of a window.
fn at_window_start(aws: Resources) -> TestApp {
    let test = TestApp::over(aws, 500);
    test.clock.stop_at(Window::at(test.clock.now() + Duration::from_hours(1)).end());
    test
}

#[tokio::test]
async fn a_project_over_its_limit_waits_for_the_next_window() {
    let aws = Resources::create().await;
    aws.put_key(LIMITED_KEY, PROJECT, &limit(50)).await;
    let test = at_window_start(aws);
    test.send(&batch(LIMITED_KEY, 400)).await.assert_accepted();
    test.send(&batch(LIMITED_KEY, 100)).await.assert_accepted();
    let over = batch(LIMITED_KEY, 1);
    let answer = test.send(&over).await;
    answer.assert_error(429, "rate_limited");
    assert_eq!(answer.header("retry-after"), Some("10"));
    let events: usize = test.aws.drain_events().await.len();
    assert_eq!(events, 500);

    test.clock.advance(Duration::from_millis(9999));
    assert_eq!(test.send(&over).await.header("retry-after"), Some("1"));
    test.clock.advance(Duration::from_millis(1));
    test.send(&over).await.assert_accepted();
    test.send(&batch(LIMITED_KEY, 500)).await.assert_error(429, "rate_limited");
    test.send(&batch(LIMITED_KEY, 499)).await.assert_accepted();
}

#[tokio::test]
async fn sandboxes_share_a_limit() {
    let aws = Resources::create().await;
    aws.put_key(LIMITED_KEY, PROJECT, &limit(100)).await;
    let sandboxes = (0..8).map(|_| at_window_start(aws.clone())).collect::<Vec<_>>();
    let requests: Vec<_> = (0..20).map(|_| batch(LIMITED_KEY, 90)).collect();
    let sends = requests.iter().enumerate().map(|(index, request)| sandboxes[index % 8].send(request));
    let answers = join_all(sends).await;
    let accepted = answers.iter().filter(|answer| answer.status == 202).count();
    assert!(answers.iter().all(|answer| matches!(answer.status, 202 | 429)));
    // 11 batches of 90 fit into 100 × 10; some of the last may have been granted elsewhere.
    assert!((6..=11).contains(&accepted), "{accepted}");
    assert_eq!(aws.drain_events().await.len(), accepted * 90);
}

#[tokio::test]
async fn replays_cost_nothing_and_no_more_is_asked_while_over() {
    let aws = Resources::create().await;
    aws.put_key(LIMITED_KEY, PROJECT, &limit(50)).await;
    let test = at_window_start(aws);
    let request = batch(LIMITED_KEY, 250);
    test.send(&request).await.assert_accepted();
    for _ in 0..5 {
        assert_eq!(test.send(&request).await.header("idempotency-replayed"), Some("true"));
    }
    let other_body = batch(LIMITED_KEY, 249).key("used");
    test.send(&other_body).await.assert_accepted();
    test.send(&batch(LIMITED_KEY, 1).key("used")).await.assert_error(422, "idempotency_key_reuse");
    test.send(&batch(LIMITED_KEY, 1)).await.assert_accepted();
    test.send(&batch(LIMITED_KEY, 1)).await.assert_error(429, "rate_limited");
    test.send(&request).await.assert_error(429, "rate_limited");
}

#[tokio::test]
async fn only_what_was_counted_is_given_back() {
    let aws = Resources::create().await;
    aws.put_key(LIMITED_KEY, PROJECT, &limit(50)).await;
    aws.put_key(OTHER_KEY, PROJECT, &limit(0)).await;
    let test = at_window_start(aws);
    let uncounted = batch(OTHER_KEY, 500);
    test.send(&uncounted).await.assert_accepted();
    test.send(&batch(LIMITED_KEY, 500)).await.assert_accepted();
    assert_eq!(test.send(&uncounted).await.header("idempotency-replayed"), Some("true"));
    test.send(&batch(LIMITED_KEY, 1)).await.assert_error(429, "rate_limited");
}

#[tokio::test]
async fn a_resumed_batch_counts_once_in_each_window_it_runs_in() {
    let aws = Resources::create().await;
    aws.put_key(LIMITED_KEY, PROJECT, &limit(50)).await;
    let test = at_window_start(aws);
    let request = batch(LIMITED_KEY, 250).key("resumed");
    test.send(&request).await.assert_accepted();
    test.aws.forget_acceptance("resumed").await;
    test.send(&request).await.assert_accepted();
    test.send(&batch(LIMITED_KEY, 250)).await.assert_accepted();
    test.send(&batch(LIMITED_KEY, 1)).await.assert_error(429, "rate_limited");

    test.clock.advance(WINDOW);
    test.aws.forget_acceptance("resumed").await;
    let answer = test.send(&request).await;
    answer.assert_accepted();
    assert_eq!(answer.header("idempotency-replayed"), None);
    test.send(&batch(LIMITED_KEY, 250)).await.assert_accepted();
    test.send(&batch(LIMITED_KEY, 1)).await.assert_error(429, "rate_limited");
}

#[tokio::test]
async fn a_limit_of_zero_is_none_and_small_ones_count_as_fifty() {
    let aws = Resources::create().await;
    aws.put_key(LIMITED_KEY, PROJECT, &limit(1)).await;
    aws.put_key(OTHER_KEY, "globex", &limit(0)).await;
    let test = at_window_start(aws);
    test.send(&batch(LIMITED_KEY, 500)).await.assert_accepted();
    test.send(&batch(LIMITED_KEY, 1)).await.assert_error(429, "rate_limited");
    for _ in 0..3 {
        test.send(&batch(OTHER_KEY, 500)).await.assert_accepted();
    }
}

#[tokio::test]
async fn the_counter_is_the_documented_one() {
    let aws = Resources::create().await;
    aws.put_key(LIMITED_KEY, PROJECT, &limit(50)).await;
    let test = at_window_start(aws);
    let window = Window::at(test.clock.now());
    test.send(&batch(LIMITED_KEY, 7)).await.assert_accepted();
    let item = test.aws.state_item(&format!("rate#{PROJECT}#live#{}", window.start())).await.expect("a counter");
    let number = |name: &str| item[name].as_n().unwrap().parse::<u64>().unwrap();
    assert_eq!((item.len(), number("used")), (3, 7));
    assert!(number("expires_at") >= window.end().seconds());
    assert_eq!(window.start() % WINDOW.as_secs(), 0);
}

/// The limiter's table is also the idempotency table, so its failure alone is made by an item
/// that cannot be counted up.
#[tokio::test]
async fn a_failing_limiter_lets_requests_pass() {
    let aws = Resources::create().await;
    aws.put_key(LIMITED_KEY, PROJECT, &limit(50)).await;
    let test = at_window_start(aws);
    let pk = format!("rate#{PROJECT}#live#{}", Window::at(test.clock.now()).start());
    test.aws.put_state_item(&pk, "used", AttributeValue::S("not a number".to_owned())).await;
    for _ in 0..3 {
        test.send(&batch(LIMITED_KEY, 500)).await.assert_accepted();
    }
}

#[tokio::test]
async fn what_passed_uncounted_is_not_given_back() {
    let aws = Resources::create().await;
    aws.put_key(LIMITED_KEY, PROJECT, &limit(50)).await;
    let test = at_window_start(aws);
    test.send(&batch(LIMITED_KEY, 400)).await.assert_accepted();
    let pk = format!("rate#{PROJECT}#live#{}", Window::at(test.clock.now()).start());
    test.aws.put_state_item(&pk, "used", AttributeValue::S("not a number".to_owned())).await;
    let request = batch(LIMITED_KEY, 100);
    test.send(&request).await.assert_accepted();
    assert_eq!(test.send(&request).await.header("idempotency-replayed"), Some("true"));
    test.aws.put_state_item(&pk, "used", AttributeValue::N("500".to_owned())).await;
    test.send(&batch(LIMITED_KEY, 100)).await.assert_error(429, "rate_limited");
}

#[tokio::test]
async fn one_tenant_cannot_see_block_or_exhaust_another() {
    let aws = Resources::create().await;
    aws.put_key(LIMITED_KEY, PROJECT, &limit(50)).await;
    aws.put_key(OTHER_KEY, "globex", &limit(50)).await;
    aws.put_key(KEY, "initech", &[]).await;
    let test = at_window_start(aws);
    test.send(&batch(LIMITED_KEY, 500).key("shared")).await.assert_accepted();
    test.send(&batch(LIMITED_KEY, 1)).await.assert_error(429, "rate_limited");
    let other = test.send(&batch(OTHER_KEY, 400).key("shared")).await;
    other.assert_accepted();
    assert_eq!(other.header("idempotency-replayed"), None);
    test.send(&batch(KEY, 500).key("shared")).await.assert_accepted();

    // A flood of unknown keys neither drives the known ones out of memory nor is asked twice.
    for n in 0..1500 {
        let unknown = format!("sk_live_flood_{n:04}_{}", "x".repeat(32));
        test.send(&batch(&unknown, 1)).await.assert_error(401, "auth_required");
    }
    let dynamodb = aws_sdk_dynamodb::Client::new(&test.aws.sdk);
    dynamodb.delete_table().table_name(&test.aws.api_keys_table).send().await.expect("the table is deleted");
    test.send(&batch(OTHER_KEY, 1)).await.assert_accepted();
    let flooded = format!("sk_live_flood_1499_{}", "x".repeat(32));
    test.send(&batch(&flooded, 1)).await.assert_error(401, "auth_required");
}
