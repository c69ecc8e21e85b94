//! The target `headers`: lines such as `Idempotency-Key: x`.

use super::checks::Checks;
use super::function::Function;
use super::reference;
use contract::api_key::ApiKey;
use contract::idempotency_key::IdempotencyKey;
use event_ingest::gateway::{GatewayEvent, Header};
use serde_json::{Value, json};

const ONE_EVENT: &str = r#"{"events":[{"external_user_id":"u","name":"n"}]}"#;

/// Sends headers in a gateway event of either shape. Each header must be parsed, and the request
/// answered, as docs/contract.md says.
///
/// # Panics
/// If a header or a response differs.
pub fn run(input: &[u8], checks: Checks) {
    let text = String::from_utf8_lossy(input);
    let lines: Vec<(&str, Option<&str>)> = text
        .split('\n')
        .map(|line| line.split_once(':').map_or((line, None), |(name, value)| (name, Some(value.trim_start()))))
        .collect();
    let joined = |header: &str| {
        let values = lines.iter().filter(|(name, _)| name.eq_ignore_ascii_case(header)).filter_map(|(_, value)| *value);
        values.map(str::to_owned).reduce(|values, value| format!("{values},{value}"))
    };
    let headers = [
        (Header::Authorization, joined("authorization")),
        (Header::ContentType, joined("content-type")),
        (Header::ContentEncoding, joined("content-encoding")),
        (Header::IdempotencyKey, joined("idempotency-key")),
    ];
    let [(_, authorization), (_, content_type), (_, content_encoding), (_, idempotency_key)] = &headers;
    let expected = reference::Headers {
        authorization: authorization.as_deref(),
        content_type: content_type.as_deref(),
        content_encoding: content_encoding.as_deref(),
        idempotency_key: idempotency_key.as_deref(),
    };
    if let Some(value) = expected.authorization {
        let key = ApiKey::from_header(value);
        assert_eq!(key.is_some(), reference::is_authorization(value), "{value:?}");
        assert!(key.is_none_or(|key| key.hint().len() == 12 && value.ends_with(&key.hint()[8..])));
    }
    if let Some(value) = expected.idempotency_key {
        assert_eq!(IdempotencyKey::parse(value).is_some(), reference::is_idempotency_key(value), "{value:?}");
    }

    for payload in [http_event(&lines), rest_event(&lines)] {
        let parse = || serde_json::from_str::<GatewayEvent>(&payload).expect("a gateway event");
        let event = Function::decoding(payload.len()).check(checks.meter, parse);
        for (header, value) in &headers {
            assert_eq!(event.header(*header), value.as_deref(), "{header:?} of {payload}");
        }
        let function = Function::new();
        let response = Function::handling(payload.len()).check(checks.meter, || function.invoke(event));
        assert_eq!(
            (response.status, response.body["errors"][0]["code"].as_str()),
            expected.response(true),
            "{payload}"
        );
        let calls = function.calls();
        assert!(calls.keys <= 1 && calls.windows <= 1, "{calls:?}");
        let is_accepted = usize::from(response.status == 202);
        assert_eq!((calls.records, calls.sends), (2 * is_accepted, is_accepted));
    }
}

/// Writes an object. Names may be in any case and may repeat, which a `serde_json` map does not allow.
fn members(lines: &[(&str, Option<&str>)], value: impl Fn(Option<&str>) -> Value) -> String {
    let members: Vec<String> = lines.iter().map(|(name, line)| format!("{}:{}", json!(name), value(*line))).collect();
    format!("{{{}}}", members.join(","))
}

fn http_event(lines: &[(&str, Option<&str>)]) -> String {
    let headers = members(lines, |value| json!(value));
    let context = r#"{"http":{"method":"POST"},"requestId":"r"}"#;
    let body = json!(ONE_EVENT);
    format!(
        r#"{{"version":"2.0","rawPath":"/api/v1/events/batch","headers":{headers},"requestContext":{context},"body":{body}}}"#
    )
}

fn rest_event(lines: &[(&str, Option<&str>)]) -> String {
    let repeated = members(lines, |value| value.map_or(Value::Null, |value| json!([value])));
    // In `headers`, a REST API lists only the last value of a repeated header.
    let last: Vec<_> = lines.iter().rev().take(1).copied().collect();
    let headers = members(&last, |value| json!(value));
    let body = json!(ONE_EVENT);
    format!(
        r#"{{"path":"/api/v1/events/batch","httpMethod":"POST","headers":{headers},"multiValueHeaders":{repeated},"body":{body}}}"#
    )
}
