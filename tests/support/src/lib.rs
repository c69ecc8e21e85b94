//! Helpers that the tests of several packages share.
#![expect(clippy::expect_used, clippy::missing_panics_doc, reason = "a helper that panics is a failed test")]
#![expect(clippy::missing_errors_doc, clippy::must_use_candidate, reason = "only tests use this crate")]

pub mod deployment;
pub mod fuzz_corpus;
pub mod http_server;
pub mod local_aws;
pub mod tables;
