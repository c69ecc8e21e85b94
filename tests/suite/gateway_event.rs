//! API Gateway events for tests.

use crate::test_app::KEY;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use std::io::Write;

/// A builder of gateway events. It starts as a valid `POST` of one event.
#[derive(Clone)]
pub struct GatewayEventBuilder {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Option<String>,
    is_base64_encoded: bool,
}

/// A valid request with a new idempotency key.
pub fn post() -> GatewayEventBuilder {
    let builder = GatewayEventBuilder {
        method: "POST".to_owned(),
        path: "/api/v1/events/batch".to_owned(),
        headers: Vec::new(),
        body: None,
        is_base64_encoded: false,
    };
    builder
        .header("authorization", &format!("Bearer {KEY}"))
        .header("content-type", "application/json")
        .header("idempotency-key", &uuid::Uuid::new_v4().to_string())
        .body(r#"{"events":[{"external_user_id":"usr_42","name":"user_signed_up","properties":{"plan":"trial"}}]}"#)
}

impl GatewayEventBuilder {
    pub fn method(mut self, method: &str) -> Self {
        method.clone_into(&mut self.method);
        self
    }

    pub fn path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// Sets a header, and replaces any earlier value.
    pub fn header(self, name: &str, value: &str) -> Self {
        let mut event = self.without(name);
        event.headers.push((name.to_owned(), value.to_owned()));
        event
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
        self
    }

    pub fn key(self, idempotency_key: &str) -> Self {
        self.header("idempotency-key", idempotency_key)
    }

    pub fn body(mut self, body: &str) -> Self {
        self.body = Some(body.to_owned());
        self.is_base64_encoded = false;
        self
    }

    pub fn events(self, events: &[Value]) -> Self {
        self.body(&json!({ "events": events }).to_string())
    }

    /// A body that the gateway passes on as base64.
    pub fn binary(mut self, body: &[u8]) -> Self {
        self.body = Some(BASE64_STANDARD.encode(body));
        self.is_base64_encoded = true;
        self
    }

    pub fn gzip(self, body: &[u8]) -> Self {
        self.header("content-type", "application/gzip").header("content-encoding", "gzip").binary(&gzip(body))
    }

    pub fn no_body(mut self) -> Self {
        self.body = None;
        self
    }

    pub fn raw_body(mut self, body: &str, is_base64_encoded: bool) -> Self {
        self.body = Some(body.to_owned());
        self.is_base64_encoded = is_base64_encoded;
        self
    }

    /// The event as an HTTP API sends it (payload 2.0): repeated headers joined by commas.
    pub fn build(&self) -> Value {
        let mut headers = serde_json::Map::new();
        for (name, value) in &self.headers {
            let name = name.to_lowercase();
            let joined = headers.get(&name).and_then(Value::as_str).map(|first| format!("{first},{value}"));
            headers.insert(name, joined.unwrap_or_else(|| value.clone()).into());
        }
        json!({
            "version": "2.0",
            "routeKey": "POST /api/v1/events/batch",
            "rawPath": self.path,
            "rawQueryString": "",
            "headers": headers,
            "requestContext": {
                "accountId": "123456789012",
                "apiId": "a1b2c3d4e5",
                "http": {
                    "method": self.method, "path": self.path, "protocol": "HTTP/1.1",
                    "sourceIp": "192.0.2.1", "userAgent": "tests",
                },
                "requestId": "gateway-request-id",
                "stage": "$default",
                "time": "23/Nov/2026:09:14:03 +0000",
                "timeEpoch": 1_795_425_243_127_u64,
            },
            "body": self.body,
            "isBase64Encoded": self.is_base64_encoded,
        })
    }

    /// The event as a REST API sends it (payload 1.0).
    pub fn build_v1(&self) -> Value {
        let mut headers = serde_json::Map::new();
        let mut repeated = serde_json::Map::new();
        for (name, value) in &self.headers {
            headers.insert(name.clone(), value.clone().into());
            let values = repeated.entry(name.clone()).or_insert_with(|| json!([]));
            values.as_array_mut().expect("an array").push(value.clone().into());
        }
        json!({
            "version": "1.0",
            "resource": "/{proxy+}",
            "path": self.path,
            "httpMethod": self.method,
            "headers": headers,
            "multiValueHeaders": repeated,
            "queryStringParameters": null,
            "multiValueQueryStringParameters": null,
            "requestContext": {
                "accountId": "123456789012", "apiId": "a1b2c3d4e5", "httpMethod": self.method,
                "path": self.path, "protocol": "HTTP/1.1", "requestId": "gateway-request-id",
                "resourcePath": "/{proxy+}", "stage": "prod",
                "identity": { "sourceIp": "192.0.2.1", "userAgent": "tests" },
            },
            "pathParameters": null,
            "stageVariables": null,
            "body": self.body,
            "isBase64Encoded": self.is_base64_encoded,
        })
    }
}

pub fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body).expect("in memory");
    encoder.finish().expect("in memory")
}
