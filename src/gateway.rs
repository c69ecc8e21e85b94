//! API Gateway's JSON ⇄ our types, for HTTP API (payload 2.0) and REST API (1.0) events.
//!
//! This module does not use `lambda_http`'s request type. That type panics if a body is wrongly marked
//! as base64 or a path is not a URI, and fails if a header is not ASCII. In each case the client would
//! get a response that is not in the contract.

use lambda_http::Body;
use lambda_http::aws_lambda_events::apigw::{ApiGatewayProxyResponse, ApiGatewayV2httpResponse};
use lambda_http::http::{HeaderMap, StatusCode};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;

/// The parts of a gateway event that the function uses, from either payload version.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayEvent {
    version: Option<String>,
    raw_path: Option<String>,
    path: Option<String>,
    http_method: Option<String>,
    headers: Headers,
    multi_value_headers: Headers,
    #[serde(deserialize_with = "null_is_absent")]
    request_context: RequestContext,
    /// The body as the gateway passed it on.
    pub body: Option<String>,
    /// Whether `body` is base64.
    #[serde(deserialize_with = "null_is_absent")]
    pub is_base64_encoded: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RequestContext {
    request_id: Option<String>,
    #[serde(deserialize_with = "null_is_absent")]
    http: HttpContext,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct HttpContext {
    method: Option<String>,
}

/// Reads `null` as the default. Test tools and proxies write `null` where a gateway leaves a member out.
fn null_is_absent<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// The payload version of the event, and therefore of the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadVersion {
    /// REST API.
    V1,
    /// HTTP API.
    V2,
}

impl GatewayEvent {
    /// The payload version.
    #[must_use]
    pub fn payload_version(&self) -> PayloadVersion {
        if self.version.as_deref() == Some("2.0") { PayloadVersion::V2 } else { PayloadVersion::V1 }
    }

    /// The HTTP method.
    #[must_use]
    pub fn method(&self) -> &str {
        self.request_context.http.method.as_deref().or(self.http_method.as_deref()).unwrap_or_default()
    }

    /// The path, which may have a stage prefix.
    #[must_use]
    pub fn path(&self) -> &str {
        self.raw_path.as_deref().or(self.path.as_deref()).unwrap_or_default()
    }

    /// The gateway's request id.
    #[must_use]
    pub fn request_id(&self) -> Option<&str> {
        self.request_context.request_id.as_deref()
    }

    /// The value of a header. The values of a repeated header are joined by commas, as HTTP API does.
    #[must_use]
    pub fn header(&self, header: Header) -> Option<&str> {
        let repeated = self.multi_value_headers.get(header);
        repeated.or_else(|| self.headers.get(header))
    }
}

/// The headers that the function reads. It skips all others.
#[derive(Clone, Copy, Debug)]
pub enum Header {
    /// `Authorization`
    Authorization,
    /// `Content-Type`
    ContentType,
    /// `Content-Encoding`
    ContentEncoding,
    /// `Idempotency-Key`
    IdempotencyKey,
}

impl Header {
    const ALL: [(Self, &str); 4] = [
        (Self::Authorization, "authorization"),
        (Self::ContentType, "content-type"),
        (Self::ContentEncoding, "content-encoding"),
        (Self::IdempotencyKey, "idempotency-key"),
    ];

    fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, known)| name.eq_ignore_ascii_case(known)).map(|(header, _)| header)
    }
}

/// The values of the known headers. No `Debug`, because one of them is an API key.
#[derive(Default)]
struct Headers([Option<String>; Header::ALL.len()]);

impl Headers {
    fn get(&self, header: Header) -> Option<&str> {
        self.0[header as usize].as_deref()
    }

    fn add(&mut self, header: Header, value: &str) {
        match &mut self.0[header as usize] {
            Some(values) => {
                values.push(',');
                values.push_str(value);
            }
            none => *none = Some(value.to_owned()),
        }
    }
}

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(HeadersVisitor)
    }
}

struct HeadersVisitor;

impl<'de> Visitor<'de> for HeadersVisitor {
    type Value = Headers;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of headers")
    }

    fn visit_unit<E>(self) -> Result<Headers, E> {
        Ok(Headers::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
        let mut headers = Headers::default();
        while let Some(Name(name)) = map.next_key()? {
            let Some(header) = Header::of_name(&name) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            match map.next_value()? {
                Values::None | Values::Other(_) => {}
                Values::One(value) => headers.add(header, &value),
                Values::Many(values) => values.iter().for_each(|value| headers.add(header, value)),
            }
        }
        Ok(headers)
    }
}

/// A key that borrows from the event if possible; a plain `Cow` would always copy.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    None,
    One(String),
    Many(Vec<String>),
    /// Any other value counts as absent.
    Other(IgnoredAny),
}

/// A response in the payload version of the event.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum GatewayResponse {
    /// For a REST API.
    V1(ApiGatewayProxyResponse),
    /// For an HTTP API.
    V2(ApiGatewayV2httpResponse),
}

impl GatewayResponse {
    /// Creates a response with a JSON body.
    #[must_use]
    pub fn new(version: PayloadVersion, status: StatusCode, headers: HeaderMap, body: String) -> Self {
        let status = i64::from(status.as_u16());
        let body = Some(Body::Text(body));
        match version {
            PayloadVersion::V1 => {
                let mut response = ApiGatewayProxyResponse::default();
                response.status_code = status;
                response.headers = headers;
                response.body = body;
                Self::V1(response)
            }
            PayloadVersion::V2 => {
                let mut response = ApiGatewayV2httpResponse::default();
                response.status_code = status;
                response.headers = headers;
                response.body = body;
                Self::V2(response)
            }
        }
    }
}
