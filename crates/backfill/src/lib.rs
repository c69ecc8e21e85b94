//! `event-ingest-backfill` sends events from files to the service. A run can be resumed, without duplicates.
//!
//! A module imports only modules below it:
//!
//! ```text
//! command                   the command, from its arguments to its exit code
//! args · read_args          command-line arguments
//! run · dry_run · preview   a run that sends, one that only validates, and one that only prints
//! print_rejects             the events of a rejects file
//! expand                    directories and patterns → files and objects
//! forecast                  what is known before sending
//! progress · summary        what the user sees during a run, and at its end
//! run_files                 the checkpoint, rejects and lock files on disk
//! batch_tracker             which batches are done
//! checkpoint                the content of the checkpoint file
//! reader                    inputs → batches, on a separate thread
//! records                   inputs → validated events, in any format
//! ndjson · json · csv       the formats
//! csv_parser                delimited text → cells
//! mapping · times           how a record becomes an event
//! batch_sender              one batch, until each event is accepted or rejected
//! packing                   events → batches, and their idempotency keys
//! client · throttle         one request and its answer; when to send the next one
//! input                     inputs: decompressed, counted and hashed
//! sized_file                a file, up to the size that it had at the beginning
//! parquet_rows              Parquet files → lines of JSON
//! object_reader             an object in Amazon S3, from front to back
//! object_chunks             parts of an object, for Parquet
//! location                  where an input is
//! s3                        objects in Amazon S3, with the feature `s3`
//! sniff                     what an input is, by its first bytes
//! rejects                   rejected events, and lines of the rejects file
//! target · column_types · format · position · counters · error
//! ```
#![expect(
    clippy::len_without_is_empty,
    clippy::must_use_candidate,
    reason = "only the command and the fuzzers use this library"
)]

mod args;
mod batch_sender;
mod batch_tracker;
mod checkpoint;
mod client;
pub mod column_types;
pub mod command;
mod counters;
pub mod csv;
pub mod csv_parser;
mod dry_run;
mod error;
mod expand;
mod forecast;
mod format;
pub mod input;
pub mod json;
mod location;
pub mod mapping;
pub mod ndjson;
mod object_chunks;
mod object_reader;
mod packing;
mod parquet_rows;
pub mod position;
mod preview;
mod print_rejects;
mod progress;
mod read_args;
mod reader;
mod records;
mod rejects;
mod run;
mod run_files;
#[cfg_attr(not(feature = "s3"), path = "s3_unavailable.rs")]
mod s3;
mod sized_file;
mod sniff;
mod summary;
mod target;
mod throttle;
pub mod times;
