//! `event-ingest-keys`: an operator's command over the API keys table (contract section 6).
//!
//! `args` is what one may say, `generate` makes a key, `choice` finds the one that is meant,
//! `render` shows keys, `commands` does the work, `failure` is every way it can end badly.

mod args;
mod choice;
mod commands;
mod failure;
mod generate;
mod render;

use args::{Args, Command};
use clap::Parser;
use commands::Operator;
use event_ingest::aws::key_admin::KeyAdmin;
use event_ingest::aws::sdk_config;
use failure::Failure;
use std::io::{Write, stderr, stdin, stdout};
use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Err(failure) = run(Args::parse()).await else { return ExitCode::SUCCESS };
    // Nobody is left to tell if standard error is gone.
    let _ = writeln!(stderr(), "error: {failure}");
    failure.exit_code()
}

async fn run(args: Args) -> Result<(), Failure> {
    let table = args.table.ok_or(Failure::Usage("no table: give --table or set API_KEYS_TABLE".to_owned()))?;
    for variable in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_DYNAMODB"] {
        // The SDK would panic at its first call.
        if std::env::var_os(variable).is_some_and(|value| value.is_empty()) {
            return Err(Failure::Usage(format!("{variable} must not be empty: unset it, or give a URL")));
        }
    }
    let keys = KeyAdmin::connect(&sdk_config().await, table.clone()).await?;
    let mut operator = Operator { keys, table, stdin: stdin(), stdout: stdout(), stderr: stderr() };
    match args.command {
        Command::Create(create) => operator.create(create).await,
        Command::List(list) => operator.list(list).await,
        Command::Revoke(revoke) => operator.revoke(revoke).await,
        Command::Rotate(rotate) => operator.rotate(rotate).await,
    }
}
