//! Every sample in events/ gets the response in events/expected.json.

use crate::test_app::{PROJECT, TestApp};
use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

/// The API keys of the samples, from `tools/make_events.py`.
const KEY: &str = "sk_test_LOCAL_ONLY_not_a_secret_0123456789";
const REVOKED_KEY: &str = "sk_test_LOCAL_ONLY_revoked_key_0123456789";
const READ_ONLY_KEY: &str = "sk_test_LOCAL_ONLY_read_scope_0123456789";

#[derive(serde::Deserialize)]
struct Expected {
    event: String,
    status: u64,
    code: Option<String>,
    fields: Vec<String>,
    headers: HashMap<String, String>,
}

fn read(name: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("events").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).expect("JSON")
}

#[tokio::test]
async fn every_sample_gets_the_expected_response() {
    let test = TestApp::start().await;
    test.aws.put_key(KEY, PROJECT, &[]).await;
    test.aws.put_key(REVOKED_KEY, PROJECT, &[("status", AttributeValue::S("revoked".to_owned()))]).await;
    let scopes = AttributeValue::Ss(vec!["events:read".to_owned()]);
    test.aws.put_key(READ_ONLY_KEY, PROJECT, &[("scopes", scopes)]).await;

    let expected: Vec<Expected> = serde_json::from_value(read("expected.json")).expect("expectations");
    for sample in &expected {
        let response = test.send_raw(&read(&format!("{}.json", sample.event))).await;
        assert_eq!(response.status, sample.status, "{}: {response:?}", sample.event);
        assert_eq!(response.body["errors"][0]["code"].as_str(), sample.code.as_deref(), "{}", sample.event);
        if !sample.fields.is_empty() {
            assert_eq!(response.fields(), sample.fields, "{}", sample.event);
        }
        for (name, value) in &sample.headers {
            assert_eq!(response.header(name), Some(value.as_str()), "{}: {name}", sample.event);
        }
    }
    let expected: BTreeSet<String> = expected.into_iter().map(|sample| format!("{}.json", sample.event)).collect();
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("events");
    let names = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    let present: BTreeSet<String> = names
        .map(|name| name.into_string().expect("UTF-8"))
        .filter(|name| !matches!(name.as_str(), "expected.json" | "README.md"))
        .collect();
    assert_eq!(present, expected, "events/expected.json must list exactly the samples");
}
