//! The limits of requests and API keys that docs/contract.md states.

use std::time::Duration;

/// The most events in a batch.
pub const MAX_EVENTS: usize = 500;
/// The most events in a bulk request.
pub const MAX_BULK_EVENTS: usize = 1000;
/// The most bytes of a decoded body: 5 MB.
pub const MAX_BODY_BYTES: usize = 5 * 1024 * 1024;
/// The most members of a gzip body. Each member costs CPU time even if it is empty.
pub const MAX_GZIP_MEMBERS: usize = 1024;
/// The most steps in which a gzip body is decompressed. A member takes one for its header and one for
/// each of its deflate blocks. With default settings, compressors start a new block after 16 KB or more, and
/// at each flush.
pub const MAX_GZIP_STEPS: usize = 8192;
/// The most violations that one response lists, except the response to a bulk request.
pub const MAX_VIOLATIONS: usize = 100;

/// The most bytes of one event in a queue message: 1 MiB less 1 KiB for the rest of the message.
pub const MAX_EVENT_BYTES: usize = 1_047_552;
/// The most bytes of an event's `properties`, as JSON text: 1 MB.
pub const MAX_PROPERTIES_BYTES: usize = 1_000_000;
/// The most keys at the top level of an event's `properties`.
pub const MAX_PROPERTIES_KEYS: usize = 100;
/// The most levels of nesting in an event. The event itself is the first level.
pub const MAX_DEPTH: usize = 32;
/// The most characters (Unicode scalar values) of an `external_user_id` or a `name`.
pub const MAX_TEXT_CHARS: usize = 1024;

/// The most characters of an idempotency key.
pub const MAX_IDEMPOTENCY_KEY_LEN: usize = 255;

/// How long the function caches a key that it found, and therefore the longest time for which a
/// revoked key still works.
pub const KNOWN_KEY_CACHED_FOR: Duration = Duration::from_mins(1);
/// How long the function remembers that a key does not exist, and therefore the longest time before a
/// new key works.
pub const UNKNOWN_KEY_CACHED_FOR: Duration = Duration::from_secs(10);
