//! Rate limits over the local AWS, and the isolation of tenants (docs/contract.md, "Rate limits").

use crate::gateway_event::{GatewayEventBuilder, post};
use crate::test_app::{KEY, PROJECT, Resources, TestApp};
use aws_sdk_dynamodb::types::AttributeValue;
use contract::api_key::ApiKey;
use contract::rate_limit::RateLimit;
use event_ingest::auth::Authenticator;
use event_ingest::aws::api_keys::ApiKeysTable;
use event_ingest::aws::state_table::StateTable;
use event_ingest::clock::{Clock, SystemClock, Timestamp};
use event_ingest::rate_limit::{Capacity, Counter, GrantRequest, GrantResponse, WINDOW, Window, WindowStore};
use event_ingest::store::StoreError;
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

/// The partition key of the current counter of [`LIMITED_KEY`].
fn own_counter(test: &TestApp) -> String {
    let hash = ApiKey::parse(LIMITED_KEY).unwrap().hash().to_hex();
    format!("rate-key#{}#{}", &hash[..32], Window::at(test.clock.now()).start())
}

/// A function whose clock is stopped at the start of a window.
fn at_window_start(aws: Resources) -> TestApp {
    let test = TestApp::over(aws, 500);
    test.clock.stop_at(Window::at(test.clock.now() + Duration::from_hours(1)).end());
    test
}

#[tokio::test]
async fn a_project_over_its_limit_must_wait_for_the_next_window() {
    let aws = Resources::create().await;
    aws.put_key(LIMITED_KEY, PROJECT, &limit(100)).await;
    let test = at_window_start(aws);
    for events in [500, 400, 100] {
        test.send(&batch(LIMITED_KEY, events)).await.assert_accepted();
    }
    let over = batch(LIMITED_KEY, 1);
    let response = test.send(&over).await;
    response.assert_error(429, "rate_limited");
    assert_eq!(response.header("retry-after"), Some("10"));
    let events: usize = test.aws.drain_events().await.len();
    assert_eq!(events, 1000);

    test.clock.advance(Duration::from_millis(9999));
    assert_eq!(test.send(&over).await.header("retry-after"), Some("1"));
    test.clock.advance(Duration::from_millis(1));
    test.send(&over).await.assert_accepted();
    test.send(&batch(LIMITED_KEY, 500)).await.assert_accepted();
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
    let responses = join_all(sends).await;
    let accepted = responses.iter().filter(|response| response.status == 202).count();
    assert!(responses.iter().all(|response| matches!(response.status, 202 | 429)));
    // 11 batches of 90 events fit into a window of 1,000 events, and no sandbox keeps any events unspent.
    assert_eq!(accepted, 11);
    assert_eq!(aws.drain_events().await.len(), accepted * 90);
}

#[tokio::test]
async fn replays_and_refused_batches_are_not_counted() {
    let aws = Resources::create().await;
    aws.put_key(LIMITED_KEY, PROJECT, &limit(100)).await;
    let test = at_window_start(aws);
    let request = batch(LIMITED_KEY, 500);
    test.send(&request).await.assert_accepted();
    for _ in 0..5 {
        assert_eq!(test.send(&request).await.header("idempotency-replayed"), Some("true"));
    }
    let other_body = batch(LIMITED_KEY, 499).key("used");
    test.send(&other_body).await.assert_accepted();
    test.send(&batch(LIMITED_KEY, 1).key("used")).await.assert_error(422, "idempotency_key_reuse");
    test.send(&batch(LIMITED_KEY, 1)).await.assert_accepted();
    test.send(&batch(LIMITED_KEY, 1)).await.assert_error(429, "rate_limited");
    test.send(&request).await.assert_error(429, "rate_limited");
}

#[tokio::test]
async fn a_replay_refunds_only_events_that_were_counted() {
    let aws = Resources::create().await;
    aws.put_key(LIMITED_KEY, PROJECT, &limit(100)).await;
    aws.put_key(OTHER_KEY, PROJECT, &limit(0)).await;
    let test = at_window_start(aws);
    let uncounted = batch(OTHER_KEY, 500);
    test.send(&uncounted).await.assert_accepted();
    test.send(&batch(LIMITED_KEY, 500)).await.assert_accepted();
    test.send(&batch(LIMITED_KEY, 500)).await.assert_accepted();
    assert_eq!(test.send(&uncounted).await.header("idempotency-replayed"), Some("true"));
    test.send(&batch(LIMITED_KEY, 1)).await.assert_error(429, "rate_limited");
}

#[tokio::test]
async fn a_resumed_batch_is_counted_once_in_each_window() {
    let aws = Resources::create().await;
    aws.put_key(LIMITED_KEY, PROJECT, &limit(100)).await;
    let test = at_window_start(aws);
    let request = batch(LIMITED_KEY, 500).key("resumed");
    test.send(&request).await.assert_accepted();
    test.aws.undo_completion("resumed").await;
    test.send(&request).await.assert_accepted();
    test.send(&batch(LIMITED_KEY, 500)).await.assert_accepted();
    test.send(&batch(LIMITED_KEY, 1)).await.assert_error(429, "rate_limited");

    test.clock.advance(WINDOW);
    test.aws.undo_completion("resumed").await;
    let response = test.send(&request).await;
    response.assert_accepted();
    assert_eq!(response.header("idempotency-replayed"), None);
    test.send(&batch(LIMITED_KEY, 500)).await.assert_accepted();
    test.send(&batch(LIMITED_KEY, 1)).await.assert_error(429, "rate_limited");
}

#[tokio::test]
async fn a_limit_of_zero_is_no_limit_and_small_limits_count_as_one_hundred() {
    let aws = Resources::create().await;
    aws.put_key(LIMITED_KEY, PROJECT, &limit(1)).await;
    aws.put_key(OTHER_KEY, "globex", &limit(0)).await;
    let test = at_window_start(aws);
    test.send(&batch(LIMITED_KEY, 500)).await.assert_accepted();
    test.send(&batch(LIMITED_KEY, 500)).await.assert_accepted();
    test.send(&batch(LIMITED_KEY, 1)).await.assert_error(429, "rate_limited");
    for _ in 0..3 {
        test.send(&batch(OTHER_KEY, 500)).await.assert_accepted();
    }
}

#[tokio::test]
async fn the_counter_has_the_documented_attributes() {
    let aws = Resources::create().await;
    aws.put_key(LIMITED_KEY, PROJECT, &limit(100)).await;
    let test = at_window_start(aws);
    let window = Window::at(test.clock.now());
    test.send(&batch(LIMITED_KEY, 7)).await.assert_accepted();
    let item = test.aws.state_item(&own_counter(&test)).await.expect("a counter");
    let number = |name: &str| item[name].as_n().unwrap().parse::<u64>().unwrap();
    assert_eq!((item.len(), number("used"), number("ahead")), (4, 7, 0));
    assert_eq!(number("expires_at"), window.end().seconds() + 60);
    assert_eq!(window.start() % WINDOW.as_secs(), 0);
}

async fn grant(table: &StateTable, request: GrantRequest, capacity: Capacity) -> Result<GrantResponse, StoreError> {
    let counter = Counter::of_key(&ApiKey::parse(LIMITED_KEY).unwrap().hash());
    let now = SystemClock.now();
    table.grant(&counter, Window::at(Timestamp::from_millis(0)), request, capacity, now + Duration::from_secs(20)).await
}

/// Otherwise a sandbox could not spend or return events while the others keep too many unspent.
#[tokio::test]
async fn the_limit_for_unspent_events_applies_only_to_requests_that_add_to_them() {
    let aws = Resources::create().await;
    let table = StateTable::new(&aws.sdk, aws.state_table.clone());
    let granted = async |events, ahead, most_ahead| {
        let capacity = Capacity { events: 1000, ahead: most_ahead };
        let response = grant(&table, GrantRequest { events, ahead }, capacity).await;
        response.map(|GrantResponse { granted, used, ahead }| (granted, used, ahead))
    };
    assert_eq!(granted(150, 100, 100).await, Ok((true, 150, 100)));
    assert_eq!(granted(10, 1, 100).await, Ok((false, 150, 100)));
    assert_eq!(granted(10, 0, 50).await, Ok((true, 160, 100)));
    assert_eq!(granted(10, -30, 50).await, Ok((true, 170, 70)));
    assert_eq!(granted(831, 0, 100).await, Ok((false, 170, 70)));
    assert_eq!(granted(830, 30, 100).await, Ok((true, 1000, 100)));
}

#[tokio::test]
async fn an_error_of_the_table_is_not_a_refused_grant() {
    let table = StateTable::new(&Resources::create().await.sdk, "missing".to_owned());
    let response = grant(&table, GrantRequest { events: 1, ahead: 0 }, Capacity { events: 1, ahead: 0 }).await;
    assert!(matches!(&response, Err(StoreError::Unavailable(_))), "{response:?}");
}

/// The counters are in the state table, which must keep working. The test therefore makes only the counter
/// fail, with a value that is not a number.
#[tokio::test]
async fn requests_pass_if_the_counter_fails() {
    let aws = Resources::create().await;
    aws.put_key(LIMITED_KEY, PROJECT, &limit(100)).await;
    let test = at_window_start(aws);
    let pk = own_counter(&test);
    test.aws.put_state_item(&pk, "used", AttributeValue::S("not a number".to_owned())).await;
    for _ in 0..3 {
        test.send(&batch(LIMITED_KEY, 500)).await.assert_accepted();
    }
}

#[tokio::test]
async fn a_replay_does_not_refund_events_that_passed_uncounted() {
    let aws = Resources::create().await;
    aws.put_key(LIMITED_KEY, PROJECT, &limit(100)).await;
    let test = at_window_start(aws);
    test.send(&batch(LIMITED_KEY, 500)).await.assert_accepted();
    test.send(&batch(LIMITED_KEY, 400)).await.assert_accepted();
    let pk = own_counter(&test);
    test.aws.put_state_item(&pk, "used", AttributeValue::S("not a number".to_owned())).await;
    let request = batch(LIMITED_KEY, 100);
    test.send(&request).await.assert_accepted();
    assert_eq!(test.send(&request).await.header("idempotency-replayed"), Some("true"));
    test.aws.put_state_item(&pk, "used", AttributeValue::N("1000".to_owned())).await;
    test.send(&batch(LIMITED_KEY, 100)).await.assert_error(429, "rate_limited");
}

#[tokio::test]
async fn tenants_do_not_affect_each_other() {
    let aws = Resources::create().await;
    aws.put_key(LIMITED_KEY, PROJECT, &limit(100)).await;
    aws.put_key(OTHER_KEY, "globex", &limit(100)).await;
    aws.put_key(KEY, "initech", &[]).await;
    let test = at_window_start(aws);
    test.send(&batch(LIMITED_KEY, 500).key("shared")).await.assert_accepted();
    test.send(&batch(LIMITED_KEY, 500)).await.assert_accepted();
    test.send(&batch(LIMITED_KEY, 1)).await.assert_error(429, "rate_limited");
    let other = test.send(&batch(OTHER_KEY, 400).key("shared")).await;
    other.assert_accepted();
    assert_eq!(other.header("idempotency-replayed"), None);
    test.send(&batch(KEY, 500).key("shared")).await.assert_accepted();

    // A flood of unknown keys evicts no known key from the cache, and unknown keys are cached too.
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

#[tokio::test]
async fn keys_of_one_project_with_limits_of_their_own_do_not_affect_each_other() {
    let aws = Resources::create().await;
    aws.put_key(LIMITED_KEY, PROJECT, &limit(100)).await;
    aws.put_key(OTHER_KEY, PROJECT, &limit(1000)).await;
    let test = at_window_start(aws);
    test.send(&batch(OTHER_KEY, 500)).await.assert_accepted();
    // Use up the lower limit, which must not use up events of the other key.
    for _ in 0..2 {
        test.send(&batch(LIMITED_KEY, 500)).await.assert_accepted();
    }
    test.send(&batch(LIMITED_KEY, 1)).await.assert_error(429, "rate_limited");
    // The other key still has 95 % of its window.
    for _ in 0..19 {
        test.send(&batch(OTHER_KEY, 500)).await.assert_accepted();
    }
    test.send(&batch(OTHER_KEY, 1)).await.assert_error(429, "rate_limited");
}

#[tokio::test]
async fn keys_without_a_limit_of_their_own_share_the_default_limit_of_their_project() {
    let aws = Resources::create().await;
    aws.put_key(KEY, PROJECT, &[]).await;
    aws.put_key(OTHER_KEY, PROJECT, &[]).await;
    aws.put_key(LIMITED_KEY, PROJECT, &limit(100)).await;
    let mut test = at_window_start(aws);
    let keys = ApiKeysTable::new(&test.aws.sdk, test.aws.api_keys_table.clone());
    test.app.auth = Authenticator::new(keys, RateLimit::parse(100).unwrap());
    test.send(&batch(LIMITED_KEY, 500)).await.assert_accepted();
    test.send(&batch(KEY, 500)).await.assert_accepted();
    test.send(&batch(OTHER_KEY, 500)).await.assert_accepted();
    for key in [KEY, OTHER_KEY] {
        test.send(&batch(key, 1)).await.assert_error(429, "rate_limited");
    }
    // A key with its own limit does not count against the limit of its project.
    let pk = format!("rate#{PROJECT}#live#{}", Window::at(test.clock.now()).start());
    let counter = test.aws.state_item(&pk).await.expect("a counter");
    assert_eq!(counter["used"], AttributeValue::N("1000".to_owned()));
    test.send(&batch(LIMITED_KEY, 500)).await.assert_accepted();
}

/// A sandbox expects as many events as in the previous window, but it must not take the window from the others.
#[tokio::test]
async fn a_busy_sandbox_leaves_the_window_to_the_others() {
    const CAPACITY: usize = 10_000;
    let aws = Resources::create().await;
    aws.put_key(LIMITED_KEY, PROJECT, &limit(1000)).await;
    let sandboxes: Vec<_> = (0..4).map(|_| at_window_start(aws.clone())).collect();
    for _ in 0..16 {
        sandboxes[0].send(&batch(LIMITED_KEY, 500)).await.assert_accepted();
    }
    for sandbox in &sandboxes {
        sandbox.clock.advance(WINDOW);
    }
    sandboxes[0].send(&batch(LIMITED_KEY, 500)).await.assert_accepted();
    let mut accepted = 500;
    for sandbox in sandboxes[1..].iter().cycle() {
        if sandbox.send(&batch(LIMITED_KEY, 500)).await.status != 202 {
            break;
        }
        accepted += 500;
    }
    assert!((CAPACITY * 6 / 10..=CAPACITY).contains(&accepted), "{accepted} events are accepted");
}
