//! The checks of docs/contract.md, "Order of checks", and their order.

use crate::gateway_event::{GatewayEventBuilder, gzip, post};
use crate::test_app::{KEY, TestApp};
use aws_sdk_dynamodb::types::AttributeValue;
use contract::limits::MAX_BODY_BYTES;
use serde_json::json;
use std::io::Write;
use std::time::Duration;

const REVOKED_KEY: &str = "sk_live_revoked_revoked_revoked_revoked_0000";
const READ_ONLY_KEY: &str = "sk_live_readonly_readonly_readonly_readonly0";
const SCOPED_KEY: &str = "sk_live_scoped_scoped_scoped_scoped_scoped00";
const UNKNOWN_KEY: &str = "sk_live_unknown_unknown_unknown_unknown_0000";

async fn app_with_keys() -> TestApp {
    let test = TestApp::start().await;
    let s = |text: &str| AttributeValue::S(text.to_owned());
    let ss = |scopes: &[&str]| AttributeValue::Ss(scopes.iter().map(ToString::to_string).collect());
    test.aws.put_key(REVOKED_KEY, "acme", &[("status", s("revoked"))]).await;
    test.aws.put_key(READ_ONLY_KEY, "acme", &[("scopes", ss(&["events:read"]))]).await;
    test.aws.put_key(SCOPED_KEY, "acme", &[("scopes", ss(&["events:read", "events:write"]))]).await;
    test
}

fn bearer(event: GatewayEventBuilder, key: &str) -> GatewayEventBuilder {
    event.header("authorization", &format!("Bearer {key}"))
}

/// Asserts that the queue and the state table are empty.
async fn assert_no_trace(test: &TestApp) {
    assert_eq!(test.aws.drain().await.len(), 0);
    assert_eq!(test.aws.count_records().await, 0);
}

#[tokio::test]
async fn the_first_check_that_fails_determines_the_response() {
    type Break = fn(GatewayEventBuilder) -> GatewayEventBuilder;
    let test = app_with_keys().await;
    let used = post().key("used");
    test.send(&used).await.assert_accepted();
    test.aws.drain().await;
    // Each row makes one more check fail. The rows are applied from last to first.
    let rows: [(Break, u64, &str); 9] = [
        (|event| event.path("/api/v1/event"), 404, "not_found"),
        (|event| event.method("PUT"), 405, "method_not_allowed"),
        (|event| event.without("authorization"), 401, "auth_required"),
        (|event| bearer(event, READ_ONLY_KEY), 403, "forbidden"),
        (|event| event.header("content-type", "text/plain"), 415, "unsupported_media_type"),
        (|event| event.key("not visible"), 400, "idempotency_key_invalid"),
        (|event| event.body(&"x".repeat(MAX_BODY_BYTES + 1)), 413, "payload_too_large"),
        (|event| event.body(r#"{"events":[{}"#), 400, "malformed_json"),
        (|event| event.body(r#"{"events":[{}]}"#), 422, "validation_failed"),
    ];
    let mut event = used.body(r#"{"events":[{"external_user_id":"u","name":"another body"}]}"#);
    test.send(&event).await.assert_error(422, "idempotency_key_reuse");
    for (break_it, status, code) in rows.into_iter().rev() {
        event = break_it(event);
        test.send(&event).await.assert_error(status, code);
    }
    assert_eq!(test.aws.drain().await.len(), 0);
}

#[tokio::test]
async fn paths_are_found_behind_a_stage_or_a_base_path() {
    let test = TestApp::start().await;
    for path in [
        "/api/v1/events/batch",
        "/prod/api/v1/events/batch",
        "/$default/api/v1/events/batch",
        "/ingest/v2/api/v1/events/batch",
    ] {
        test.send(&post().path(path)).await.assert_accepted();
    }
    let unknown = [
        "",
        "/",
        "/api/v1/event",
        "/api/v1/events/",
        "/api/v1/events/batch/",
        "/api/v1/events/batch/x",
        "/API/v1/events/batch",
        "/a//api/v1/events/batch",
        "/a//b/api/v1/events/batch",
        "//api/v1/events/batch",
        "prod/api/v1/events/batch",
        "/xapi/v1/events/batch",
        "/api/v1/events/bat ch",
        "/é",
        "/api/v1/events/batch\u{0}",
        "/%",
        "http://[",
    ];
    for path in unknown {
        test.send(&post().path(path)).await.assert_error(404, "not_found");
    }
}

#[tokio::test]
async fn only_post_is_allowed() {
    let test = TestApp::start().await;
    for method in ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "post", ""] {
        let response = test.send(&post().method(method)).await;
        response.assert_error(405, "method_not_allowed");
        assert_eq!(response.header("allow"), Some("POST"));
    }
}

#[tokio::test]
async fn requests_without_an_active_api_key_get_a_401() {
    let test = app_with_keys().await;
    let good = "0123456789abcdefghijklmnopqrstuvwxyzABCD";
    let short = format!("Bearer sk_live_{}", &good[..31]);
    let long = format!("Bearer sk_live_{}", "x".repeat(129));
    let refused = [
        "",
        "Bearer",
        "Bearer ",
        KEY,
        &format!("Basic {KEY}"),
        &format!("Bearer  {KEY}"),
        &format!("Bearer\t{KEY}"),
        &format!(" Bearer {KEY}"),
        &format!("Bearer {KEY} "),
        &format!("Bearer {KEY},Bearer {KEY}"),
        &format!("Bearer pk_live_{good}"),
        &format!("Bearer SK_LIVE_{good}"),
        &format!("Bearer sk_live_{good}!"),
        &format!("Bearer sk_live_é{good}"),
        &short,
        &long,
        &format!("Bearer {UNKNOWN_KEY}"),
        &format!("Bearer {REVOKED_KEY}"),
        &format!("Bearer sk_test_{good}"),
    ];
    for value in refused {
        let response = test.send(&post().header("authorization", value)).await;
        response.assert_error(401, "auth_required");
        assert_eq!(response.header("www-authenticate"), Some("Bearer"), "{value}");
    }
    test.send(&post().without("authorization")).await.assert_error(401, "auth_required");
    assert_no_trace(&test).await;
}

#[tokio::test]
async fn api_keys_of_32_to_128_characters_are_accepted_after_bearer_in_any_case() {
    let test = app_with_keys().await;
    for key in [format!("sk_live_{}", "x".repeat(32)), format!("sk_test_{}", "_-Z9".repeat(32))] {
        test.aws.put_key(&key, "acme", &[]).await;
        for scheme in ["Bearer", "bearer", "BEARER"] {
            test.send(&post().header("authorization", &format!("{scheme} {key}"))).await.assert_accepted();
        }
    }
    test.send(&bearer(post(), SCOPED_KEY)).await.assert_accepted();
    test.send(&bearer(post(), READ_ONLY_KEY)).await.assert_error(403, "forbidden");
}

#[tokio::test]
async fn an_api_key_with_an_invalid_item_is_refused() {
    let test = TestApp::start().await;
    let s = |text: &str| AttributeValue::S(text.to_owned());
    let wrong = [
        ("project_id", s("Not Allowed"), 500, "internal_error"),
        ("project_id", s(""), 500, "internal_error"),
        ("status", s("Active"), 401, "auth_required"),
        ("scopes", s("events:write"), 500, "internal_error"),
        ("rate_limit", AttributeValue::N("-1".to_owned()), 500, "internal_error"),
    ];
    for (index, (name, value, status, code)) in wrong.into_iter().enumerate() {
        let key = format!("sk_live_wrong{index}_{}", "x".repeat(32));
        test.aws.put_key(&key, "acme", &[(name, value)]).await;
        test.send(&bearer(post(), &key)).await.assert_error(status, code);
    }
    assert_no_trace(&test).await;
}

#[tokio::test]
async fn known_api_keys_are_cached_for_a_minute_and_unknown_ones_for_ten_seconds() {
    let test = app_with_keys().await;
    test.send(&post()).await.assert_accepted();
    let s = |text: &str| AttributeValue::S(text.to_owned());
    test.aws.put_key(KEY, "acme", &[("status", s("revoked"))]).await;
    test.clock.advance(Duration::from_secs(55));
    test.send(&post()).await.assert_accepted();
    test.clock.advance(Duration::from_secs(5));
    test.send(&post()).await.assert_error(401, "auth_required");

    test.send(&bearer(post(), UNKNOWN_KEY)).await.assert_error(401, "auth_required");
    test.aws.put_key(UNKNOWN_KEY, "acme", &[]).await;
    test.send(&bearer(post(), UNKNOWN_KEY)).await.assert_error(401, "auth_required");
    test.clock.advance(Duration::from_secs(10));
    test.send(&bearer(post(), UNKNOWN_KEY)).await.assert_accepted();
}

#[tokio::test]
async fn without_the_api_keys_table_only_cached_keys_are_accepted() {
    let test = TestApp::start().await;
    test.send(&post()).await.assert_accepted();
    let dynamodb = aws_sdk_dynamodb::Client::new(&test.aws.sdk);
    dynamodb.delete_table().table_name(&test.aws.api_keys_table).send().await.expect("the table is deleted");
    test.send(&post()).await.assert_accepted();
    let unavailable = test.send(&bearer(post(), UNKNOWN_KEY)).await;
    unavailable.assert_error(503, "service_unavailable");
    assert_eq!(unavailable.header("retry-after"), Some("1"));
    test.clock.advance(Duration::from_mins(1));
    test.send(&post()).await.assert_error(503, "service_unavailable");
}

#[tokio::test]
async fn only_documented_content_types_and_encodings_are_accepted() {
    let test = TestApp::start().await;
    let body = br#"{"events":[{"external_user_id":"u","name":"n"}]}"#;
    for value in ["application/json", "Application/JSON", "application/json; charset=utf-8", "application/json ;a=b"] {
        test.send(&post().header("content-type", value)).await.assert_accepted();
    }
    for value in
        ["", "text/plain", "application/jsonx", "application/gzip", "application/json,application/json", "json"]
    {
        test.send(&post().header("content-type", value)).await.assert_error(415, "unsupported_media_type");
    }
    test.send(&post().without("content-type")).await.assert_error(415, "unsupported_media_type");

    for value in ["identity", "IDENTITY"] {
        test.send(&post().header("content-encoding", value)).await.assert_accepted();
    }
    for value in ["", "br", "deflate", "gzip, gzip", "gzip,identity", "x-gzip"] {
        test.send(&post().header("content-encoding", value)).await.assert_error(415, "unsupported_media_type");
    }
    for encoding in ["gzip", "GZIP"] {
        for value in ["application/json", "application/gzip", "application/octet-stream;x=y", "Application/GZIP"] {
            let event = post().gzip(body).header("content-type", value).header("content-encoding", encoding);
            test.send(&event).await.assert_accepted();
        }
    }
    test.send(&post().gzip(body).header("content-type", "text/plain"))
        .await
        .assert_error(415, "unsupported_media_type");
    // If Content-Encoding is missing, the message says so.
    for value in ["application/gzip", "application/octet-stream"] {
        let response = test.send(&post().gzip(body).header("content-type", value).without("content-encoding")).await;
        response.assert_error(415, "unsupported_media_type");
        assert!(response.message().contains("Content-Encoding: gzip is missing"), "{response:?}");
    }
    let undeclared = post().gzip(body).header("content-type", "application/json").without("content-encoding");
    let response = test.send(&undeclared).await;
    response.assert_error(400, "malformed_encoding");
    assert!(response.message().contains("Content-Encoding: gzip"), "{response:?}");
}

#[tokio::test]
async fn idempotency_keys_are_1_to_255_visible_characters() {
    let test = TestApp::start().await;
    test.send(&post().without("idempotency-key")).await.assert_error(400, "idempotency_key_required");
    for good in ["x".to_owned(), "k".repeat(255), "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~".to_owned()] {
        test.send(&post().key(&good)).await.assert_accepted();
    }
    for bad in [String::new(), "k".repeat(256), " ".to_owned(), "a b".to_owned(), "é".to_owned(), "a\u{7f}".to_owned()]
    {
        test.send(&post().key(&bad)).await.assert_error(400, "idempotency_key_invalid");
    }
}

/// A valid body of exactly `bytes` bytes.
fn body_of(bytes: usize) -> String {
    let body = r#"{"events":[{"external_user_id":"u","name":"n"}],"pad":""}"#;
    body.replace(r#""pad":"""#, &format!(r#""pad":"{}""#, "x".repeat(bytes - body.len())))
}

#[tokio::test]
async fn bodies_have_at_most_5_mb_before_and_after_decoding() {
    let test = TestApp::start().await;
    let most = body_of(MAX_BODY_BYTES);
    let more = body_of(MAX_BODY_BYTES + 1);
    test.send(&post().body(&most)).await.assert_accepted();
    test.send(&post().binary(most.as_bytes())).await.assert_accepted();
    test.send(&post().gzip(most.as_bytes())).await.assert_accepted();
    test.send(&post().body(&more)).await.assert_error(413, "payload_too_large");
    test.send(&post().binary(more.as_bytes())).await.assert_error(413, "payload_too_large");
    test.send(&post().gzip(more.as_bytes())).await.assert_error(413, "payload_too_large");
    // A decompression bomb: a few kilobytes of gzip, in many members, that decompress to a gigabyte.
    let bomb = gzip(&vec![b' '; 1 << 24]).repeat(64);
    test.send(&post().gzip(b"").binary(&bomb)).await.assert_error(413, "payload_too_large");
    // Even an empty member costs CPU time: 230,000 of them took 0.8 s.
    let events = gzip(br#"{"events":[{"external_user_id":"u","name":"n"}]}"#);
    let with_empty_members = |members: usize| [gzip(b"").repeat(members), events.clone()].concat();
    test.send(&post().gzip(b"").binary(&with_empty_members(1023))).await.assert_accepted();
    for members in [1024, 230_000] {
        let response = test.send(&post().gzip(b"").binary(&with_empty_members(members))).await;
        response.assert_error(400, "malformed_encoding");
        assert!(response.message().contains("1,024 members"), "{response:?}");
    }
    // The limit applies to the compressed bytes too.
    let incompressible: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(MAX_BODY_BYTES).collect();
    test.send(&post().gzip(&incompressible)).await.assert_error(413, "payload_too_large");
}

#[tokio::test]
async fn gzip_bodies_are_decoded_or_refused_with_advice() {
    let test = TestApp::start().await;
    let json = br#"{"events":[{"external_user_id":"u","name":"n"}]}"#;
    let gzipped = || post().gzip(json);
    let plain = gzipped().raw_body(std::str::from_utf8(json).unwrap(), false);
    test.send(&plain).await.assert_accepted();
    test.send(&gzipped().binary(b" \n{\"events\":")).await.assert_error(400, "malformed_json");
    for plain in ["[]", " null", "7"] {
        test.send(&gzipped().binary(plain.as_bytes())).await.assert_error(422, "validation_failed");
    }
    let members: Vec<u8> = [gzip(&json[..10]), gzip(&json[10..])].concat();
    test.send(&gzipped().binary(&members)).await.assert_accepted();

    // API Gateway replaces invalid UTF-8 in a gzip body with a JSON content type.
    let corrupted = String::from_utf8_lossy(&gzip(json)).into_owned();
    let response = test.send(&gzipped().header("content-type", "application/json").raw_body(&corrupted, false)).await;
    response.assert_error(400, "malformed_encoding");
    assert!(response.message().contains("application/gzip"), "{response:?}");

    let complete = gzip(json);
    let truncated = &complete[..complete.len() - 1];
    let mut damaged = complete.clone();
    let last = damaged.len() - 6;
    damaged[last] ^= 1;
    let trailing = [complete.as_slice(), b"x"].concat();
    for bad in [truncated, &complete[..10], &damaged, &trailing, b"", b"not gzip", &[0x1f, 0x8b]] {
        test.send(&gzipped().binary(bad)).await.assert_error(400, "malformed_encoding");
    }
    test.send(&gzipped().raw_body("!not base64!", true)).await.assert_error(400, "malformed_encoding");
    test.send(&gzipped().binary(&gzip(b"{"))).await.assert_error(400, "malformed_json");
    assert_eq!(test.aws.drain().await.len(), 2, "only the two accepted batches are queued");
}

/// One gzip member with the bytes of `body` in blocks of one byte.
fn gzip_of_small_blocks(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    for byte in body {
        encoder.write_all(&[*byte]).unwrap();
        encoder.flush().unwrap();
    }
    encoder.finish().unwrap()
}

#[tokio::test]
async fn a_gzip_body_has_at_most_8192_members_and_blocks() {
    let test = TestApp::start().await;
    let event = r#"{"external_user_id":"u","name":"n"}"#;
    // Each flush ends a block and adds an empty one.
    let few = format!(r#"{{"events":[{event}{}]}}"#, " ".repeat(4_000 - event.len()));
    test.send(&post().gzip(b"").binary(&gzip_of_small_blocks(few.as_bytes()))).await.assert_accepted();
    let many = format!(r#"{{"events":[{event}{}]}}"#, " ".repeat(8_200 - event.len()));
    let many = gzip_of_small_blocks(many.as_bytes());
    // Blocks of ten bits that contain nothing.
    let empty = [&gzip(b"")[..10], &[0x02, 0x08, 0x20, 0x80, 0x00].repeat(900_000)].concat();
    for many in [&many, &empty] {
        let response = test.send(&post().gzip(b"").binary(many)).await;
        response.assert_error(400, "malformed_encoding");
        assert!(response.message().contains("8,192 deflate blocks"), "{response:?}");
    }
}

#[tokio::test]
async fn malformed_and_invalid_batches_leave_no_trace() {
    let test = TestApp::start().await;
    let response = test.send(&post().body("{\n  \"events\": [,]\n}")).await;
    response.assert_error(400, "malformed_json");
    assert!(response.body["errors"][0]["message"].as_str().unwrap().contains("line 2 column 14"), "{response:?}");
    test.send(&post().no_body()).await.assert_error(400, "malformed_json");

    let good = json!({"external_user_id": "u", "name": "n"});
    let events = [good.clone(), json!({"external_user_id": "", "timestamp": "now"}), good];
    let response = test.send(&post().events(&events)).await;
    response.assert_error(422, "validation_failed");
    assert_eq!(response.fields(), ["events[1].external_user_id", "events[1].name", "events[1].timestamp"]);
    assert!(response.body["errors"].as_array().unwrap().iter().all(|error| error["code"] == "validation_failed"));
    assert_no_trace(&test).await;
}

#[tokio::test]
async fn events_of_a_rest_api_get_the_same_responses() {
    let test = TestApp::start().await;
    let event = post().path("/prod/api/v1/events/batch");
    let odd_case = event.without("authorization").header("AUTHORIZATION", &format!("Bearer {KEY}")).key("rest");
    let response = test.send_raw(&odd_case.build_v1()).await;
    response.assert_accepted();
    assert_eq!(response.header("x-request-id"), Some("gateway-request-id"));
    test.send_raw(&odd_case.build()).await.assert_accepted();
    assert_eq!(test.send_raw(&odd_case.build()).await.header("idempotency-replayed"), Some("true"));

    let mut single_values_only = odd_case.clone().key("rest-2").build_v1();
    single_values_only["multiValueHeaders"] = json!(null);
    test.send_raw(&single_values_only).await.assert_accepted();
    let mut repeated = odd_case.clone().key("rest-3").build_v1();
    repeated["multiValueHeaders"]["AUTHORIZATION"] = json!([format!("Bearer {KEY}"), format!("Bearer {KEY}")]);
    test.send_raw(&repeated).await.assert_error(401, "auth_required");
}

#[tokio::test]
async fn unexpected_gateway_events_get_a_response() {
    let test = TestApp::start().await;
    test.send_raw(&json!({})).await.assert_error(404, "not_found");
    let mut event = post().build();
    event["headers"]["user-agent"] = json!("naïve 🦀");
    event["headers"]["cookie"] = json!(["a", "b"]);
    event["headers"]["content-encoding"] = json!(7);
    event["isBase64Encoded"] = json!(null);
    test.send_raw(&event).await.assert_accepted();
    for nothing in [json!(null), json!({ "http": null })] {
        let event = json!({ "version": "2.0", "rawPath": event["rawPath"], "requestContext": nothing });
        test.send_raw(&event).await.assert_error(405, "method_not_allowed");
    }
    event["headers"] = json!(null);
    test.send_raw(&event).await.assert_error(401, "auth_required");
}

#[tokio::test]
async fn no_error_response_repeats_the_request() {
    let test = app_with_keys().await;
    let canary = "C4n4ry";
    let events = [json!({"external_user_id": canary, "name": "n", canary: "\u{1}", "timestamp": canary})];
    let requests = [
        post().events(&events),
        post().body(&format!(r#"{{"{canary}": nope}}"#)),
        post().body(&format!(r#"{{"events": "{canary}"}}"#)),
        post().header("content-type", canary),
        post().header("content-encoding", canary),
        post().key(&format!("{canary} {canary}")),
        post().path(&format!("/{canary}")),
        bearer(post(), &format!("sk_live_{}", canary.repeat(6))),
    ];
    for request in requests {
        let response = test.send(&request).await;
        assert!(response.status >= 400 && !format!("{response:?}").contains(canary), "{response:?}");
    }
}
