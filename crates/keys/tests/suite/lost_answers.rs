//! `create` when DynamoDB stores the key but its answer is lost.

use crate::scripted_dynamodb::scripted_dynamodb;
use crate::shell::{AssertExt, command};
use assert_cmd::assert::{Assert, OutputAssertExt};
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};

fn create_at(endpoint: &str) -> Assert {
    command("api-keys", endpoint).args(["create", "--project", "beta", "--name", "web"]).assert()
}

#[test]
fn a_retry_recognizes_the_key_that_the_first_attempt_stored() {
    let lost = AtomicBool::new(false);
    let endpoint = scripted_dynamodb(move |operation, input| match operation {
        "Scan" => Some((200, json!({"Items": []}))),
        // The first attempt is stored, but its answer is lost.
        _ if !lost.swap(true, Ordering::Relaxed) => None,
        _ => {
            let code = "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException";
            Some((400, json!({"__type": code, "message": "exists", "Item": input["Item"]})))
        }
    });
    create_at(&endpoint).new_key();
}

#[test]
fn a_key_that_may_have_been_stored_is_not_printed_and_can_be_found() {
    let endpoint = scripted_dynamodb(|operation, _| (operation == "Scan").then(|| (200, json!({"Items": []}))));
    create_at(&endpoint).fails(1, &["may have been stored", "revoke --hint sk_live_", "no answer from"]);
}
