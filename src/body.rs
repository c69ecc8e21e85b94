//! Decodes the body: the gateway's base64, the client's gzip, and the size limit
//! (docs/contract.md, "Order of checks", 5, 7 and 8).

use crate::error::Error;
use crate::gateway::{GatewayEvent, Header};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use contract::limits::{MAX_BODY_BYTES, MAX_GZIP_MEMBERS, MAX_GZIP_STEPS};
use serde::de::IgnoredAny;
use zlib_rs::{Inflate, InflateFlush, Status};

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
    // `from_slice` would ignore bytes that are not UTF-8.
    std::str::from_utf8(body).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok())
}

/// Makes zlib expect a gzip header and allow the largest window.
const GZIP_WINDOW_BITS: u8 = 16 + 15;

/// The smallest initial size of the buffer for the decoded body.
const LEAST_ROOM: usize = 64 * 1024;

/// Decompresses at most [`MAX_GZIP_MEMBERS`] members, [`MAX_GZIP_STEPS`] steps and [`MAX_BODY_BYTES`].
fn gunzip(body: &[u8]) -> Result<Vec<u8>, Error> {
    let mut decoded = vec![0; body.len().saturating_mul(2).clamp(LEAST_ROOM, MAX_BODY_BYTES + 1)];
    let (mut rest, mut length, mut steps) = (body, 0, 0);
    for _ in 0..MAX_GZIP_MEMBERS {
        let mut member = Inflate::new(true, GZIP_WINDOW_BITS);
        loop {
            let (read, written) = (member.total_in(), member.total_out());
            let status = member.decompress(rest, &mut decoded[length..], InflateFlush::Block);
            let (read, written) = (member.total_in() - read, member.total_out() - written);
            rest = &rest[usize::try_from(read).unwrap_or(rest.len()).min(rest.len())..];
            length += usize::try_from(written).unwrap_or_default();
            if length > MAX_BODY_BYTES {
                return Err(Error::PayloadTooLarge(
                    "the decompressed body is larger than 5 MB (5,242,880 bytes); send fewer events per batch",
                ));
            }
            match status {
                Ok(Status::StreamEnd) => break,
                Ok(_) if length == decoded.len() => {
                    decoded.resize((2 * length).min(MAX_BODY_BYTES + 1), 0);
                    continue;
                }
                Ok(_) if read > 0 || written > 0 => {}
                Ok(_) | Err(_) => {
                    return Err(Error::MalformedEncoding(
                        "the gzip body is damaged or truncated; compress it and send it again",
                    ));
                }
            }
            steps += 1;
            if steps > MAX_GZIP_STEPS {
                return Err(Error::MalformedEncoding(
                    "the gzip body has more than 8,192 deflate blocks; compress it without flushing after each event",
                ));
            }
        }
        if rest.is_empty() {
            decoded.truncate(length);
            return Ok(decoded);
        }
    }
    Err(Error::MalformedEncoding("the gzip body has more than 1,024 members; compress it as a single member"))
}
