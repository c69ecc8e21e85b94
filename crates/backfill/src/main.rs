//! `event-ingest-backfill`: moves a table or an export into the service, each event exactly once.
//!
//! `input` reads, `ndjson` and `table` make events of what is read, `packing` makes batches of them
//! and a key for each, `reader` does all this on a thread of its own. `client` makes one request,
//! `throttle` says when, `sending` gets a batch through. `ledger` knows what is done, `checkpoint`
//! makes it last, `rejects` is what is not sent. `run` puts it together, `dry_run` without sending;
//! `progress` and `summary` tell, `failure` is every way it can end badly, `args` what one may say.

mod args;
mod checkpoint;
mod client;
mod dry_run;
mod failure;
mod input;
mod ledger;
mod ndjson;
mod packing;
mod progress;
mod reader;
mod rejects;
mod run;
mod sending;
mod summary;
mod table;
mod throttle;

use args::Args;
use checkpoint::{Paths, beside};
use clap::Parser;
use client::Client;
use contract::api_key::ApiKey;
use contract::tenant::Mode;
use failure::Failure;
use input::Source;
use reader::Plan;
use run::Orders;
use std::io::{IsTerminal, Write, stderr, stdin, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use summary::Summary;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let json = args.json;
    match run(args).await {
        Ok(summary) => tell(&summary, json),
        Err(failure) => {
            say(&format!("error: {failure}"));
            failure.exit_code()
        }
    }
}

async fn run(args: Args) -> Result<Summary, Failure> {
    let plan = plan(&args)?;
    if args.dry_run {
        return dry_run::run(plan, args.rejects).await;
    }
    let target = args.url.ok_or_else(|| Failure::Usage("no --url".to_owned()))?;
    if target.is_exposed() && !args.insecure_http {
        return Err(Failure::Usage(format!(
            "{} would show the API key to the network: use https://, or allow it with --insecure-http",
            target.base()
        )));
    }
    if [Mode::Live, Mode::Test].iter().any(|mode| args.key_env.starts_with(mode.key_prefix())) {
        // Not to be repeated here: it may be one.
        return Err(Failure::Usage(
            "--key-env is the name of a variable that holds the API key, not the key".to_owned(),
        ));
    }
    let key = std::env::var(&args.key_env).unwrap_or_default();
    let mode = ApiKey::parse(&key).map(|key| key.mode()).ok_or_else(|| {
        Failure::Usage(format!("the environment variable {} holds no API key (sk_live_… or sk_test_…)", args.key_env))
    })?;
    let client = Client::new(&target, &key, args.host.as_deref(), args.timeout).map_err(Failure::Usage)?;
    let stem = plan.sources.iter().find_map(|source| source.path.clone()).unwrap_or_else(|| PathBuf::from("stdin"));
    let paths = Paths {
        checkpoint: args.checkpoint.unwrap_or_else(|| beside(&stem, ".checkpoint.json")),
        rejects: args.rejects.unwrap_or_else(|| beside(&stem, ".rejects.ndjson")),
    };
    if let Some(path) = [&paths.checkpoint, &paths.rejects].into_iter().find(|path| is_input(&plan, path)) {
        return Err(Failure::Usage(format!("{} is an input and would be overwritten", path.display())));
    }
    run::run(Orders {
        url: target.base().to_owned(),
        host: args.host,
        mode,
        plan,
        client,
        paths,
        restart: args.restart,
        concurrency: args.concurrency,
        give_up_after: args.give_up_after,
    })
    .await
}

fn is_input(plan: &Plan, path: &Path) -> bool {
    let inputs = plan.sources.iter().filter_map(|source| source.path.as_ref()?.canonicalize().ok());
    path.canonicalize().is_ok_and(|path| inputs.into_iter().any(|input| input == path))
}

fn plan(args: &Args) -> Result<Plan, Failure> {
    let mut files = args.files.clone();
    if files.is_empty() {
        if stdin().is_terminal() {
            return Err(Failure::Usage("no FILE, and standard input is a terminal".to_owned()));
        }
        files.push(PathBuf::from("-"));
    }
    if files.iter().filter(|file| file.as_path() == Path::new("-")).count() > 1 {
        return Err(Failure::Usage("standard input can be read only once".to_owned()));
    }
    let sources = files.iter().map(|path| Source::new(path, args.format)).collect::<Result<_, _>>()?;
    let plan = Plan { sources, types: args.types.clone(), max_events: args.max_events };
    reader::check_headers(&plan)?;
    Ok(plan)
}

/// Standard output gets the JSON alone, standard error all else.
fn tell(summary: &Summary, json: bool) -> ExitCode {
    if let Some(error) = &summary.error {
        say(&format!("error: {error}"));
    }
    if !json {
        say(&summary.text());
    } else if let Err(error) = writeln!(stdout(), "{}", summary.json()) {
        say(&format!("error: standard output could not be written ({error})\n{}", summary.text()));
    }
    summary.exit_code()
}

fn say(text: &str) {
    // Nobody is left to tell if standard error is gone.
    let _ = writeln!(stderr(), "{text}");
}
