//! The compiled command against an in-memory service.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a helper that panics is a failed test")]
#![expect(clippy::needless_raw_string_hashes, reason = "snapbox writes snapshots with hashes")]

mod changing_inputs;
mod checkpoint;
mod command;
mod command_line;
mod csv;
mod dependencies;
mod deployed;
mod dry_run;
mod exports;
mod formats;
mod fuzz_corpus;
mod mapping;
mod network;
mod outputs;
mod parquet_files;
mod rejects;
mod resume;
mod retries;
#[cfg(feature = "s3")]
mod s3;
mod sending;
mod service;
