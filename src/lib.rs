//! The batch event ingest endpoint: `POST /api/v1/events/batch` → SQS, nothing lost, nothing
//! doubled.
//!
//! A request flows down once and an answer comes back; nothing calls upward:
//!
//! ```text
//! API Gateway event
//!   → gateway       event of either shape → method, path, headers, body
//!   → http          the checks, in the contract's order
//!       → auth          bearer key → Caller            (API keys table, remembered 60 s)
//!       → batch, event  body bytes → Batch<'body>      (borrowed; all faults collected)
//!       → ingest        the protocol
//!           ├ idempotency   claim · take over · complete · release     (state table)
//!           └ delivery      pack → send → which events were acknowledged   (SQS)
//!   → http          outcome → answer
//! ```
//!
//! `deadline` is each request's time budget, `clock` the only source of time, `error` the one
//! table of answers that are not 202, `telemetry` what is logged, `config` the environment, and
//! `aws` the only code that calls the SDK.

pub mod auth;
pub mod aws;
pub mod batch;
pub mod clock;
pub mod config;
pub mod deadline;
pub mod delivery;
pub mod error;
pub mod event;
pub mod gateway;
pub mod http;
pub mod idempotency;
pub mod ingest;
pub mod rate_limit;
pub mod telemetry;
