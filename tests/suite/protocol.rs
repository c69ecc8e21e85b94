//! Idempotency over the real local AWS (contract section 3).

use crate::gateway_event::post;
use crate::test_app::{PROJECT, TestApp};
use serde_json::json;

#[tokio::test]
async fn the_contracts_example_is_accepted_once_and_replayed() {
    let test = TestApp::start().await;
    let request = post();
    let first = test.send(&request).await;
    first.assert_accepted();
    assert_eq!(first.header("idempotency-replayed"), None);

    let again = test.send(&request).await;
    again.assert_accepted();
    assert_eq!(again.header("idempotency-replayed"), Some("true"));

    let events = test.aws.drain_events().await;
    assert_eq!(events.len(), 1);
    assert_eq!(
        events[0].1,
        json!({"external_user_id": "usr_42", "name": "user_signed_up", "properties": {"plan": "trial"}})
    );
    let _ = PROJECT;
}
