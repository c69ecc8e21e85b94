//! `event-ingest-keys` creates, lists, limits, rotates and revokes the API keys in the API keys table
//! (docs/contract.md, "API keys table").
//!
//! ```text
//! args        command-line arguments
//! generate    the text of a new key
//! key         items of the API keys table
//!   ├ select  finds the key that a command applies to
//!   ├ render  formats keys as a table or JSON
//!   └ table   the table in DynamoDB
//!       └ failure     reasons why a command fails, and their exit codes
//!           └ commands
//! ```

mod args;
mod commands;
mod failure;
mod generate;
mod key;
mod render;
mod select;
mod table;

use args::{Args, Command};
use clap::Parser;
use commands::Session;
use failure::Failure;
use std::io::{Write, stderr, stdin, stdout};
use std::process::ExitCode;
use table::ApiKeysTable;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Err(failure) = run(Args::parse()).await else { return ExitCode::SUCCESS };
    // If standard error is closed, the error cannot be reported anywhere else.
    let _ = writeln!(stderr(), "error: {failure}");
    failure.exit_code()
}

async fn run(args: Args) -> Result<(), Failure> {
    let table = args.table.ok_or(Failure::Usage("no table: pass --table or set API_KEYS_TABLE".to_owned()))?;
    for variable in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_DYNAMODB"] {
        // The SDK would panic at its first call.
        if std::env::var_os(variable).is_some_and(|value| value.is_empty()) {
            return Err(Failure::Usage(format!("{variable} must not be empty: unset it, or set it to a URL")));
        }
    }
    let table = ApiKeysTable::connect(table).await?;
    let mut session = Session { table, stdin: stdin(), stdout: stdout(), stderr: stderr() };
    match args.command {
        Command::Create(create) => session.create(create).await,
        Command::List(list) => session.list(list).await,
        Command::Limit(limit) => session.limit(limit).await,
        Command::Revoke(revoke) => session.revoke(revoke).await,
        Command::Rotate(rotate) => session.rotate(rotate).await,
    }
}
