//! The batch event ingest endpoint: `POST /api/v1/events/batch` → SQS, without loss or duplicates.
//!
//! A request passes through the modules from top to bottom; each imports only modules below it:
//!
//! ```text
//! main               configuration → clients → run
//! http               the checks in the contract's order → response
//!   gateway          API Gateway's JSON ⇄ our types
//!   auth             API key → caller                        (API keys table, cached for 60 s)
//!   body             base64, gzip, size
//!   bulk             the response to a bulk request
//!   rate_limit       the tenant's limit, shared by all sandboxes           (state table)
//!   telemetry        one log line per request, which is also its metrics
//!   ingest           the protocol
//!     idempotency    the record: claim, take over, complete, release       (state table)
//!     delivery       messages → acknowledgements                           (SQS)
//!       packing      events → messages → calls
//!     deadline       the time budget of a request
//! error              every response that is not a success
//! store, clock       the error of all stores; the time
//! aws                the implementations of the ports; the only code that calls the AWS SDK
//! ```
//!
//! The rules for keys, tenants, events and batches are in the crate `contract`.

pub mod auth;
pub mod aws;
pub mod body;
pub mod bulk;
pub mod clock;
pub mod config;
pub mod deadline;
pub mod delivery;
pub mod error;
pub mod gateway;
pub mod http;
pub mod idempotency;
pub mod ingest;
pub mod packing;
pub mod rate_limit;
pub mod store;
pub mod telemetry;
