//! Checks queue messages against schema/event-batch-1.schema.json.

use contract::batch::Batch;
use contract::limits::{MAX_BULK_EVENTS, MAX_DEPTH, MAX_EVENT_BYTES, MAX_PROPERTIES_KEYS, MAX_TEXT_CHARS};
use contract::tenant::{Mode, ProjectId};
use event_ingest::idempotency::BatchId;
use event_ingest::packing::SCHEMA;
use jsonschema::Validator;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::LazyLock;

static SCHEMA_FILE: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../schema/event-batch-1.schema.json")).expect("the schema is JSON")
});

static VALIDATOR: LazyLock<Validator> = LazyLock::new(|| {
    let options = jsonschema::draft202012::options().should_validate_formats(true);
    options.build(&SCHEMA_FILE).expect("the schema is valid")
});

/// Panics unless `body` matches the schema and has only members that the schema names.
///
/// The schema allows unknown members, because consumers must ignore them. The function sends none.
#[track_caller]
pub fn check(body: &str) {
    let message: Value = serde_json::from_str(body).expect("a message is JSON");
    if let Err(error) = VALIDATOR.validate(&message) {
        panic!("the message breaks the schema at {}: {error}", error.instance_path());
    }
    assert_eq!(members(&message), members(&SCHEMA_FILE["properties"]));
    let documented = members(&SCHEMA_FILE["properties"]["events"]["items"]["properties"]);
    let batch_id = message["batch_id"].as_str().expect("text");
    for event in message["events"].as_array().expect("an array") {
        assert_eq!(members(event), documented);
        assert!(event["id"].as_str().expect("text").starts_with(&format!("{batch_id}-")));
    }
    let received_at = BatchId::parse(batch_id).expect("a batch id").received_at();
    assert_eq!(message["received_at"], *received_at, "the time inside batch_id");
}

fn members(object: &Value) -> BTreeSet<&str> {
    object.as_object().expect("an object").keys().map(String::as_str).collect()
}

fn example() -> Value {
    SCHEMA_FILE["examples"][0].clone()
}

#[test]
fn the_examples_of_the_schema_are_messages_of_valid_events() {
    jsonschema::meta::validate(&SCHEMA_FILE).expect("a valid schema");
    for example in SCHEMA_FILE["examples"].as_array().expect("examples") {
        check(&example.to_string());
        let events: Vec<&Value> = example["events"].as_array().unwrap().iter().map(|entry| &entry["event"]).collect();
        Batch::parse(json!({ "events": events }).to_string().as_bytes()).expect("a valid batch");
    }
}

#[test]
fn the_schema_and_the_code_have_the_same_limits() {
    let properties = &SCHEMA_FILE["properties"];
    assert_eq!(properties["schema"]["const"], SCHEMA);
    assert_eq!(properties["mode"]["enum"], json!([Mode::Live.as_str(), Mode::Test.as_str()]));
    assert_eq!(properties["events"]["maxItems"], MAX_BULK_EVENTS);
    let event = &properties["events"]["items"]["properties"]["event"];
    for text in ["external_user_id", "name"] {
        assert_eq!(event["properties"][text]["maxLength"], MAX_TEXT_CHARS);
    }
    assert_eq!(event["properties"]["properties"]["maxProperties"], MAX_PROPERTIES_KEYS);
    let limits = format!("At most {MAX_EVENT_BYTES} bytes, nested at most {MAX_DEPTH} deep");
    assert!(event["description"].as_str().unwrap().contains(&limits), "{limits}");

    let id = |index: usize| format!("{}-{index}", example()["batch_id"].as_str().unwrap());
    let accepts_id = |id: String| accepts(|message| message["events"][0]["id"] = id.into());
    assert!((0..MAX_BULK_EVENTS).all(|index| accepts_id(id(index))));
    assert!(!accepts_id(id(MAX_BULK_EVENTS)) && !accepts_id(id(0).replace("-0", "-00")));
    for project in ["a", "a-b_9", &"x".repeat(64), "", "A", "é", "a b", &"x".repeat(65)] {
        let is_valid = ProjectId::parse(project).is_some();
        assert_eq!(accepts(|message| message["project_id"] = (*project).into()), is_valid, "{project:?}");
    }
}

/// Whether the schema accepts its first example after `change`.
fn accepts(change: impl FnOnce(&mut Value)) -> bool {
    let mut message = example();
    change(&mut message);
    VALIDATOR.is_valid(&message)
}

#[test]
fn the_schema_allows_new_members_and_refuses_wrong_ones() {
    assert!(accepts(|message| message["new"] = json!(1)));
    assert!(accepts(|message| message["events"][0]["new"] = json!(1)));
    assert!(accepts(|message| message["events"][0]["event"]["new"] = json!(1)));
    for member in members(&SCHEMA_FILE["properties"]) {
        assert!(!accepts(|message| message[member] = json!(null)), "{member}");
        assert!(!accepts(|message| drop(message.as_object_mut().unwrap().remove(member))), "{member}");
    }
    let wrong: [fn(&mut Value); 7] = [
        |message| message["schema"] = json!("event-batch/2"),
        |message| message["batch_id"] = json!("01a207af-0ff7-4cc3-9d4e-0a1b2c3d4e5f"),
        |message| message["received_at"] = json!("2026-11-23T09:14:03Z"),
        |message| message["events"] = json!([]),
        |message| message["events"][0]["event"] = json!("{}"),
        |message| message["events"][0]["event"]["name"] = json!(""),
        |message| message["events"][0]["event"]["timestamp"] = json!("yesterday"),
    ];
    for (index, change) in wrong.into_iter().enumerate() {
        assert!(!accepts(change), "the schema accepts wrong message {index}");
    }
}
