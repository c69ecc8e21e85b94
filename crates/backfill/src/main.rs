//! `event-ingest-backfill` sends events from files to the service. The library has the code.

use std::process::ExitCode;

fn main() -> ExitCode {
    event_ingest_backfill::command::main()
}
