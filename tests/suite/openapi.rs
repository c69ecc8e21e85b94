//! Compares openapi.yaml with the code and with the responses of the function.

use crate::gateway_event::{GatewayEventBuilder, gzip, post};
use crate::test_app::{KEY, PROJECT, Resources, Response, TestApp};
use aws_sdk_dynamodb::types::AttributeValue;
use contract::api_key::ApiKey;
use contract::batch::{Batch, Bulk};
use contract::idempotency_key::IdempotencyKey;
use contract::limits::{MAX_BODY_BYTES, MAX_BULK_EVENTS, MAX_EVENTS, MAX_IDEMPOTENCY_KEY_LEN, MAX_VIOLATIONS};
use contract::limits::{MAX_DEPTH, MAX_EVENT_BYTES, MAX_PROPERTIES_BYTES, MAX_PROPERTIES_KEYS, MAX_TEXT_CHARS};
use contract::tenant::{Mode, ProjectId, Tenant};
use event_ingest::clock::Clock;
use event_ingest::error::Error;
use event_ingest::idempotency::{Claimant, Delivered, Fingerprint, Record, RecordKey, State, StateStore};
use event_ingest::rate_limit::Window;
use jsonschema::Validator;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| yaml_serde::from_str(include_str!("../../openapi.yaml")).expect("the document is YAML"));

fn batch() -> &'static Value {
    at("/paths/~1api~1v1~1events~1batch/post")
}

fn bulk() -> &'static Value {
    at("/paths/~1api~1v1~1events~1bulk/post")
}

/// The documented responses of an operation by status.
fn responses(operation: &'static Value) -> impl Iterator<Item = (u64, &'static Value)> {
    let responses = operation["responses"].as_object().expect("responses").iter();
    responses.map(|(status, response)| (status.parse().expect("a status"), response))
}

/// Whether an operation responds with an error.
fn can_respond(operation: &'static Value, error: &Error) -> bool {
    let only_bulk = matches!(error, Error::InvalidBulk(_));
    let only_others = matches!(error, Error::ValidationFailed(_) | Error::IdempotencyKeyRequired);
    if operation == bulk() { !only_others } else { !only_bulk }
}

#[track_caller]
fn at(pointer: &str) -> &'static Value {
    DOCUMENT.pointer(pointer).unwrap_or_else(|| panic!("openapi.yaml has nothing at {pointer}"))
}

/// The validator of a schema, which may refer to the components of the document.
fn validator(schema: &Value) -> Validator {
    let mut schema = schema.clone();
    schema["components"] = DOCUMENT["components"].clone();
    jsonschema::draft202012::options().should_validate_formats(true).build(&schema).expect("a schema")
}

/// One error of each variant. A new variant does not compile until it is added here.
fn every_error() -> impl Iterator<Item = Error> {
    std::iter::successors(Some(Error::NotFound), |error| {
        Some(match error {
            Error::NotFound => Error::MethodNotAllowed,
            Error::MethodNotAllowed => Error::AuthRequired,
            Error::AuthRequired => Error::Forbidden,
            Error::Forbidden => Error::UnsupportedMediaType(""),
            Error::UnsupportedMediaType(_) => Error::IdempotencyKeyRequired,
            Error::IdempotencyKeyRequired => Error::IdempotencyKeyInvalid,
            Error::IdempotencyKeyInvalid => Error::PayloadTooLarge(""),
            Error::PayloadTooLarge(_) => Error::MalformedEncoding(""),
            Error::MalformedEncoding(_) => Error::MalformedJson(String::new()),
            Error::MalformedJson(_) => Error::ValidationFailed(Vec::new()),
            Error::ValidationFailed(_) => Error::InvalidBulk(Vec::new()),
            Error::InvalidBulk(_) => Error::RateLimited { wait: Duration::ZERO },
            Error::RateLimited { .. } => Error::KeyReused,
            Error::KeyReused => Error::InProgress { lease_left: Duration::ZERO },
            Error::InProgress { .. } => Error::Unavailable(String::new()),
            Error::Unavailable(_) => Error::Internal(String::new()),
            Error::Internal(_) => return None,
        })
    })
}

#[test]
fn every_code_is_documented_with_its_status_and_header() {
    for operation in [batch(), bulk()] {
        let mut codes = BTreeMap::<u64, BTreeSet<&str>>::new();
        for error in every_error().filter(|error| can_respond(operation, error)) {
            let status = error.status().into();
            codes.entry(status).or_default().insert(error.code().as_str());
            if let Some((header, _)) = error.header() {
                let headers = &operation["responses"][status.to_string()]["headers"];
                assert!(headers.get(header).is_some(), "{header} is not documented for {status}");
            }
        }
        let documented = responses(operation).filter(|(status, _)| *status > 202).map(|(status, response)| {
            let schema = &response["content"]["application/json"]["schema"];
            let codes = schema["properties"]["errors"]["items"]["properties"]["code"]["enum"].as_array();
            (status, codes.expect("codes").iter().map(|code| code.as_str().expect("text")).collect())
        });
        assert_eq!(documented.collect::<BTreeMap<_, BTreeSet<_>>>(), codes);
    }
}

#[test]
fn the_document_and_the_code_have_the_same_limits() {
    let limits = [
        ("/paths/~1api~1v1~1events~1batch/post/requestBody/x-max-bytes", MAX_BODY_BYTES),
        ("/paths/~1api~1v1~1events~1bulk/post/requestBody/x-max-bytes", MAX_BODY_BYTES),
        ("/components/schemas/EventBatch/properties/events/maxItems", MAX_EVENTS),
        ("/components/schemas/EventBulk/properties/events/maxItems", MAX_BULK_EVENTS),
        ("/components/schemas/Event/x-max-bytes", MAX_EVENT_BYTES),
        ("/components/schemas/Event/x-max-depth", MAX_DEPTH),
        ("/components/schemas/Event/properties/external_user_id/maxLength", MAX_TEXT_CHARS),
        ("/components/schemas/Event/properties/name/maxLength", MAX_TEXT_CHARS),
        ("/components/schemas/Event/properties/properties/maxProperties", MAX_PROPERTIES_KEYS),
        ("/components/schemas/Event/properties/properties/x-max-bytes", MAX_PROPERTIES_BYTES),
        ("/components/schemas/ErrorResponse/properties/errors/maxItems", MAX_VIOLATIONS),
        ("/components/parameters/IdempotencyKey/schema/maxLength", MAX_IDEMPOTENCY_KEY_LEN),
        ("/components/parameters/OptionalIdempotencyKey/schema/maxLength", MAX_IDEMPOTENCY_KEY_LEN),
    ];
    for (pointer, limit) in limits {
        assert_eq!(*at(pointer), limit, "{pointer}");
    }
    let prose = [
        ("/paths/~1api~1v1~1events~1batch/post/requestBody/description", MAX_BODY_BYTES),
        ("/components/schemas/Event/description", MAX_EVENT_BYTES),
        ("/components/schemas/Event/properties/properties/description", MAX_PROPERTIES_BYTES),
    ];
    for (pointer, limit) in prose {
        assert!(at(pointer).as_str().expect("text").contains(&grouped(limit)), "{pointer}");
    }
}

/// A number with thousands separators: `5,242,880`.
fn grouped(number: usize) -> String {
    if number < 1000 { number.to_string() } else { format!("{},{:03}", grouped(number / 1000), number % 1000) }
}

#[test]
fn the_document_and_the_code_accept_the_same_keys() {
    let idempotency_key = validator(at("/components/parameters/IdempotencyKey/schema"));
    for key in ["x", "!~", &"k".repeat(255), "", " ", "a b", "é", "a\u{7f}", &"k".repeat(256)] {
        assert_eq!(idempotency_key.is_valid(&json!(key)), IdempotencyKey::parse(key).is_some(), "{key:?}");
    }
    let api_key = validator(&json!({ "pattern": at("/components/securitySchemes/apiKey/x-key-pattern") }));
    let of_length = |prefix: &str, length| format!("{prefix}{}", "aZ09_-".repeat(22).split_at(length).0);
    let mut keys: Vec<String> =
        [31, 32, 128, 129].iter().flat_map(|&n| ["sk_live_", "sk_test_", "sk_"].map(|p| of_length(p, n))).collect();
    keys.extend([of_length("SK_LIVE_", 40), of_length("sk_live_é", 40), of_length("sk_live_!", 40), String::new()]);
    for key in keys {
        assert_eq!(api_key.is_valid(&json!(key)), ApiKey::parse(&key).is_some(), "{key:?}");
    }
}

#[test]
fn the_schema_of_a_batch_and_the_code_accept_the_same_batches() {
    let bulk = validator(&bulk()["requestBody"]["content"]["application/json"]["schema"]);
    let schema = validator(&batch()["requestBody"]["content"]["application/json"]["schema"]);
    let single = validator(at("/paths/~1api~1v1~1events/post/requestBody/content/application~1json/schema"));
    let event = |member: &str, value: Value| {
        let mut event = json!({"external_user_id": "u", "name": "n"});
        event[member] = value;
        json!({ "events": [event] })
    };
    let events = |count: usize| json!({ "events": vec![json!({"external_user_id": "u", "name": "n"}); count] });
    let keys = |count: usize| (0..count).map(|key| (format!("k{key}"), Value::Null)).collect::<Value>();
    let counts = [0, 1, MAX_EVENTS, MAX_EVENTS + 1, MAX_BULK_EVENTS, MAX_BULK_EVENTS + 1];
    let mut batches: Vec<Value> = counts.map(events).into();
    for text in ["external_user_id", "name"] {
        batches.extend([0, 1, MAX_TEXT_CHARS, MAX_TEXT_CHARS + 1].map(|length| event(text, "é".repeat(length).into())));
        batches.push(json!({ "events": [{ text: "x" }] }));
    }
    batches.extend([0, MAX_PROPERTIES_KEYS, MAX_PROPERTIES_KEYS + 1].map(|count| event("properties", keys(count))));
    let times = ["2026-11-23T09:14:03Z", "2026-11-23t09:14:03.5+01:00", "2026-11-23 09:14:03Z", "2026-02-29T00:00:00Z"];
    batches.extend(times.map(|time| event("timestamp", time.into())));
    for value in [json!(null), json!(true), json!(1), json!("x"), json!([]), json!({})] {
        for member in ["external_user_id", "name", "properties", "timestamp", "other"] {
            batches.push(event(member, value.clone()));
        }
        batches.push(json!({ "events": [value] }));
        batches.push(json!({ "events": value }));
        batches.push(value);
    }
    for batch in batches {
        let body = batch.to_string();
        let shown = body.get(..200).unwrap_or(&body);
        assert_eq!(schema.is_valid(&batch), Batch::parse(body.as_bytes()).is_ok(), "{shown}");
        let all_valid = Bulk::parse(body.as_bytes()).is_ok_and(|bulk| bulk.violations.is_empty());
        assert_eq!(bulk.is_valid(&batch), all_valid, "{shown}");
        let event = &batch["events"][0];
        assert_eq!(single.is_valid(event), Batch::parse_single(event.to_string().as_bytes()).is_ok(), "{event}");
    }
}

#[test]
fn every_example_matches_its_schema_and_every_code_has_an_example() {
    let mut shown = BTreeSet::new();
    for (status, response) in responses(batch()).chain(responses(bulk())) {
        let content = &response["content"]["application/json"];
        let schema = validator(&content["schema"]);
        for (name, example) in content["examples"].as_object().expect("examples") {
            assert!(schema.is_valid(&example["value"]), "{name}");
            shown.extend(example["value"]["errors"][0]["code"].as_str());
        }
        assert!(!schema.is_valid(&json!({"errors": [{"code": "other", "message": ""}]})), "{status}");
    }
    assert_eq!(shown, every_error().map(|error| error.code().as_str()).collect());
}

#[tokio::test]
async fn the_function_accepts_every_request_example_and_sends_every_response_example() {
    let test = TestApp::start().await;
    for (operation, path, status) in [(batch(), post(), 202), (bulk(), post().path(BULK), 200)] {
        let content = &operation["requestBody"]["content"]["application/json"];
        for (name, example) in content["examples"].as_object().expect("examples") {
            let request = path.clone().key(name).body(&example["value"].to_string());
            assert_eq!(test.send(&request).await.status, status, "{name}");
        }
    }
    let single = at("/paths/~1api~1v1~1events/post/requestBody/content/application~1json/examples/one_event/value");
    assert_eq!(test.send(&post().path("/api/v1/events").body(&single.to_string())).await.status, 202);
    for (status, response) in responses(batch()).chain(responses(bulk())) {
        for (name, example) in response["content"]["application/json"]["examples"].as_object().expect("examples") {
            let actual = response_to(name).await;
            assert_eq!((actual.status, &actual.body), (status, &example["value"]), "{name}");
            assert_headers_are_documented(&actual, &response["headers"], name);
        }
    }
}

/// Asserts that each header is documented and matches its schema, and that the required headers are present.
fn assert_headers_are_documented(response: &Response, documented: &Value, name: &str) {
    let documented = documented.as_object().expect("headers").iter().map(|(header, described)| {
        let reference = described["$ref"].as_str().map(|reference| reference.trim_start_matches('#'));
        (header.as_str(), reference.map_or(described, |pointer| at(pointer)))
    });
    let documented: BTreeMap<&str, &Value> = documented.collect();
    for (header, described) in &documented {
        assert!(described["required"] != true || response.header(header).is_some(), "{header} is missing from {name}");
    }
    for (header, value) in response.headers.iter().filter(|(header, _)| *header != "content-type") {
        let described = documented.get(header.as_str());
        let schema = &described.unwrap_or_else(|| panic!("{name}: {header} is not documented"))["schema"];
        let value = if schema["type"] == "integer" { json!(value.parse::<u64>().ok()) } else { json!(value) };
        assert!(validator(schema).is_valid(&value), "{name}: {header}: {value}");
    }
    assert_eq!(response.header("content-type"), Some("application/json"));
    assert_eq!(response.header("idempotency-replayed"), (name == "replayed").then_some("true"), "{name}");
}

const BULK: &str = "/api/v1/events/bulk";

fn event() -> Value {
    json!({"external_user_id": "usr_42", "name": "user_signed_up"})
}

/// The response of the function to the request of an example.
async fn response_to(name: &str) -> Response {
    let test = TestApp::start().await;
    let too_large = " ".repeat(MAX_BODY_BYTES + 1);
    let request = match name {
        "accepted" => post(),
        "bulk_accepted" => post().path(BULK),
        "bulk_partly_accepted" => post().path(BULK).events(&[event(), json!({"external_user_id": "usr_42"})]),
        "bulk_rejected" => post().path(BULK).events(&[json!("user_signed_up")]),
        "bulk_validation_failed" => post().path(BULK).events(&[]),
        "bulk_idempotency_key_reuse" => {
            let request = post().path(BULK);
            test.send(&request).await;
            request.events(&[event()])
        }
        "replayed" | "idempotency_key_reuse" => return response_to_a_used_key(&test, name).await,
        "idempotency_key_required" => post().without("idempotency-key"),
        "idempotency_key_invalid" => post().key(&"k".repeat(256)),
        "malformed_encoding" => {
            let corrupted = String::from_utf8_lossy(&gzip(b"{}")).into_owned();
            post().header("content-encoding", "gzip").raw_body(&corrupted, false)
        }
        "malformed_json" => post().body(r#"{"events":[{"external_user_id":"usr_42""#),
        "auth_required" => post().without("authorization"),
        "forbidden" => with_key(&test, ("scopes", AttributeValue::Ss(vec!["events:read".to_owned()]))).await,
        "not_found" => post().path("/api/v1/event"),
        "method_not_allowed" => post().method("GET"),
        "payload_too_large" => post().body(&too_large),
        "payload_too_large_decompressed" => post().gzip(too_large.as_bytes()),
        "unsupported_content_type" => post().header("content-type", "text/csv"),
        "unsupported_content_encoding" => post().header("content-encoding", "br"),
        "validation_failed" => post().events(&[
            event(),
            json!({"name": "user_signed_up", "properties": ["plan", "trial"]}),
            json!("user_signed_up"),
        ]),
        "rate_limited" => return response_over_the_limit(test.aws).await,
        "internal_error" => with_key(&test, ("project_id", AttributeValue::S("No Project".to_owned()))).await,
        "request_in_progress" => owned_by_another(&test).await,
        "service_unavailable" => {
            let dynamodb = aws_sdk_dynamodb::Client::new(&test.aws.sdk);
            dynamodb.delete_table().table_name(&test.aws.state_table).send().await.expect("the table is deleted");
            post()
        }
        other => panic!("there is no request for the example {other}"),
    };
    test.send(&request).await
}

async fn response_to_a_used_key(test: &TestApp, name: &str) -> Response {
    let request = post();
    test.send(&request).await.assert_accepted();
    let again = if name == "replayed" {
        request
    } else {
        request.events(&[json!({"external_user_id": "usr_42", "name": "another_body"})])
    };
    test.send(&again).await
}

/// A request with an API key whose item has `attribute` in addition to the usual attributes.
async fn with_key(test: &TestApp, attribute: (&str, AttributeValue)) -> GatewayEventBuilder {
    let key = KEY.replace("ABCD", "EFGH");
    test.aws.put_key(&key, PROJECT, &[attribute]).await;
    post().header("authorization", &format!("Bearer {key}"))
}

async fn response_over_the_limit(aws: Resources) -> Response {
    let test = TestApp::over(aws, 50);
    test.clock.stop_at(Window::at(test.clock.now() + Duration::from_hours(1)).end());
    let limited = with_key(&test, ("rate_limit", AttributeValue::N("100".to_owned()))).await;
    let full = limited.clone().events(&vec![json!({"external_user_id": "usr_42", "name": "page_viewed"}); MAX_EVENTS]);
    for key in ["first", "second"] {
        test.send(&full.clone().key(key)).await.assert_accepted();
    }
    test.send(&limited).await
}

/// A request whose key another sandbox owns for longer than a request waits.
async fn owned_by_another(test: &TestApp) -> GatewayEventBuilder {
    // Time-outs use the system clock, so with a clock that is ahead no call times out on a busy machine.
    test.clock.advance(Duration::from_hours(1));
    let now = test.clock.now();
    let body = br#"{"events":[{"external_user_id":"usr_42","name":"user_signed_up"}]}"#;
    let fingerprint = Fingerprint::of(body);
    let owner = Claimant::new(now, fingerprint);
    let record = Record {
        state: State::InProgress,
        fingerprint,
        batch_id: owner.batch_id,
        owner: owner.owner,
        attempt: 1,
        lease_until: now + Duration::from_mins(1),
        delivered: Delivered::none(1),
        expires_at: (now + Duration::from_hours(24)).seconds(),
    };
    let tenant = Tenant { project: ProjectId::parse(PROJECT).expect("a project"), mode: Mode::Live };
    let key = RecordKey::of_batch(&tenant, IdempotencyKey::parse("owned").expect("a key"));
    let by = now + Duration::from_secs(5);
    test.app.pipeline.store.claim(&key, &record, now, by).await.expect("the state table responds");
    post().key("owned").body(std::str::from_utf8(body).expect("UTF-8"))
}
