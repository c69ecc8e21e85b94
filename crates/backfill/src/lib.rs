//! `event-ingest-backfill` sends events from files to the service. A run can be resumed, without duplicates.
//!
//! A module imports only modules below it:
//!
//! ```text
//! command                   the command, from its arguments to its exit code
//! args · read_args          command-line arguments
//! run · dry_run · preview   a run that sends, one that only validates, and one that only prints
//! print_rejects             the events of a rejects file
//! expand                    directories and patterns → files
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
//! input · sized_file        files and standard input: decompressed, counted and hashed
//! parquet_rows              Parquet files → lines of JSON
//! sniff                     what an input is, by its first bytes
//! rejects                   rejected events, and lines of the rejects file
//! target · column_types · format · position · counters · error
//! ```
#![expect(clippy::must_use_candidate, reason = "only the command and the fuzzers use this library")]

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
pub mod format;
pub mod input;
pub mod json;
pub mod mapping;
pub mod ndjson;
mod packing;
mod parquet_rows;
pub mod position;
mod preview;
mod print_rejects;
mod progress;
mod read_args;
mod reader;
pub mod records;
pub mod rejects;
mod run;
mod run_files;
mod sized_file;
mod sniff;
mod summary;
mod target;
mod throttle;
pub mod times;
