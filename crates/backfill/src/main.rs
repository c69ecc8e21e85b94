//! `event-ingest-backfill` sends events from files to the service. The code is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    event_ingest_backfill::command::main()
}
