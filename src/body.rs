//! Decodes the body: the gateway's base64, the client's gzip, and the size limit
//! (docs/contract.md, "Order of checks", 5, 7 and 8).

use crate::error::Error;
use crate::gateway::{GatewayEvent, Header};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use contract::limits::{MAX_BODY_BYTES, MAX_GZIP_MEMBERS};
use flate2::bufread::GzDecoder;
use serde::de::IgnoredAny;
use std::io::Read;

/// How the client encoded the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Plain JSON.
    Identity,
    /// JSON compressed with gzip.
    Gzip,
}

impl Encoding {
    /// Check 5: the encoding that `Content-Type` and `Content-Encoding` declare.
    ///
    /// # Errors
    /// [`Error::UnsupportedMediaType`] if the combination is not supported.
    pub fn of(event: &GatewayEvent) -> Result<Self, Error> {
        let encoding = match event.header(Header::ContentEncoding) {
            None => Self::Identity,
            Some(value) if value.eq_ignore_ascii_case("identity") => Self::Identity,
            Some(value) if value.eq_ignore_ascii_case("gzip") => Self::Gzip,
            Some(_) => {
                return Err(Error::UnsupportedMediaType("Content-Encoding must be absent, identity or gzip"));
            }
        };
        let media_type = event.header(Header::ContentType).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim();
        let is = |name: &str| media_type.eq_ignore_ascii_case(name);
        match encoding {
            _ if is("application/json") => Ok(encoding),
            Self::Gzip if is("application/gzip") || is("application/octet-stream") => Ok(encoding),
            Self::Gzip => Err(Error::UnsupportedMediaType(
                "Content-Type must be application/json, application/gzip or application/octet-stream",
            )),
            Self::Identity if is("application/gzip") || is("application/octet-stream") => {
                Err(Error::UnsupportedMediaType(
                    "Content-Encoding: gzip is missing; without it, Content-Type must be application/json",
                ))
            }
            Self::Identity => Err(Error::UnsupportedMediaType("Content-Type must be application/json")),
        }
    }

    /// Checks 7 and 8: the decoded body.
    ///
    /// # Errors
    /// [`Error::PayloadTooLarge`] or [`Error::MalformedEncoding`].
    pub fn decode(self, body: Vec<u8>) -> Result<Vec<u8>, Error> {
        match self {
            Self::Identity if body.starts_with(&GZIP_MAGIC) => {
                Err(Error::MalformedEncoding("the body is gzip; send it with the header Content-Encoding: gzip"))
            }
            Self::Identity => Ok(body),
            Self::Gzip if body.starts_with(&GZIP_MAGIC) => gunzip(&body),
            // A proxy decompressed the body but kept the header.
            Self::Gzip if body.trim_ascii_start().starts_with(b"{") || is_json(&body) => Ok(body),
            Self::Gzip if body.first() == GZIP_MAGIC.first() => Err(Error::MalformedEncoding(
                "the gzip body was damaged in transit: API Gateway treats a body with a JSON content type as text; \
                 send it as Content-Type: application/gzip",
            )),
            Self::Gzip => Err(Error::MalformedEncoding(
                "the body is not gzip; compress it, or leave out the header Content-Encoding",
            )),
        }
    }
}

/// Checks 7 and 8: the bytes that the client sent, without the gateway's base64.
///
/// # Errors
/// [`Error::PayloadTooLarge`] or [`Error::MalformedEncoding`].
pub fn received(event: GatewayEvent) -> Result<Vec<u8>, Error> {
    let body = event.body.unwrap_or_default();
    let bytes = if event.is_base64_encoded {
        BASE64_STANDARD
            .decode(body)
            .map_err(|_| Error::MalformedEncoding("the gateway marked the body as base64, but it is not base64"))?
    } else {
        body.into_bytes()
    };
    if bytes.len() > MAX_BODY_BYTES {
        return Err(Error::PayloadTooLarge(
            "the body is larger than 5 MB (5,242,880 bytes); send fewer events per batch",
        ));
    }
    Ok(bytes)
}

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

fn is_json(body: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(body).is_ok()
}

/// Decompresses at most [`MAX_GZIP_MEMBERS`] members and [`MAX_BODY_BYTES`].
fn gunzip(body: &[u8]) -> Result<Vec<u8>, Error> {
    let mut decoded = Vec::new();
    let mut rest = body;
    for _ in 0..MAX_GZIP_MEMBERS {
        let room = MAX_BODY_BYTES - decoded.len();
        let mut member = GzDecoder::new(rest).take(room as u64 + 1);
        member.read_to_end(&mut decoded).map_err(|_| {
            Error::MalformedEncoding("the gzip body is damaged or truncated; compress it and send it again")
        })?;
        if decoded.len() > MAX_BODY_BYTES {
            return Err(Error::PayloadTooLarge(
                "the decompressed body is larger than 5 MB (5,242,880 bytes); send fewer events per batch",
            ));
        }
        rest = member.into_inner().into_inner();
        if rest.is_empty() {
            return Ok(decoded);
        }
    }
    Err(Error::MalformedEncoding("the gzip body has more than 1,024 members; compress it as a single member"))
}
