//! The rules of the wire format as pure code: no I/O and no async.
//!
//! The function, the commands, the fuzzers and the benchmarks share this crate. docs/contract.md
//! states the same rules in prose.
//!
//! ```text
//! batch             body → events, with every violation; the endpoints' two body shapes
//!   └ event         the rules for one event
//!       └ scan      a scanner that splits an event's JSON text into values
//!           └ block eight bytes at a time
//! api_key           API keys, and the items of the API keys table
//!   └ tenant        project and mode
//! idempotency_key   the header Idempotency-Key
//! rate_limit        a limit in events per second
//! error_code        the wire names and statuses of errors
//! limits            every size and count
//! ```

pub mod api_key;
pub mod batch;
pub mod block;
pub mod error_code;
pub mod event;
pub mod idempotency_key;
pub mod limits;
pub mod rate_limit;
mod scan;
pub mod tenant;
