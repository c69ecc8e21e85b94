//! The command, from its arguments to its exit code.

use crate::args::{Args, Command};
use crate::checkpoint::Job;
use crate::client::Client;
use crate::error::Error;
use crate::input::Source;
use crate::reader::ReadPlan;
use crate::run::RunOptions;
use crate::run_files::{RunPaths, Treatment, with_suffix};
use crate::summary::Summary;
use clap::Parser;
use contract::api_key::ApiKey;
use contract::tenant::Mode;
use std::io::{IsTerminal, Write, stderr, stdin, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The longest name to which the suffixes of the run's files, such as `.checkpoint.json.lock`, can be added. File systems
/// allow 255 bytes.
const MAX_STATE_NAME_BYTES: usize = 230;

/// Runs the command.
#[expect(clippy::missing_panics_doc, reason = "it panics only if there is no thread for the runtime")]
#[tokio::main(flavor = "current_thread")]
pub async fn main() -> ExitCode {
    let mut args = Args::parse();
    if let Some(Command::Rejects { file }) = args.command.take() {
        return print_rejects(&file);
    }
    let json = args.json;
    let result = match args.preview {
        Some(events) => preview(&args, events).await,
        None => run(args).await.map(|summary| print_summary(&summary, json)),
    };
    match result {
        Ok(code) => code,
        Err(error) if json => {
            print_summary(&Summary::failed(&error), json);
            error.exit_code()
        }
        Err(error) => {
            print(&format!("error: {error}"));
            error.exit_code()
        }
    }
}

async fn preview(args: &Args, events: u64) -> Result<ExitCode, Error> {
    crate::preview::run(read_plan(args)?, events).await
}

async fn run(args: Args) -> Result<Summary, Error> {
    let plan = read_plan(&args)?;
    if args.dry_run {
        return crate::dry_run::run(plan, args.rejects, args.allow_empty).await;
    }
    let target = args.url.ok_or_else(|| Error::Usage("--url is missing".to_owned()))?;
    if target.is_exposed() && !args.insecure_http {
        return Err(Error::Usage(format!(
            "{} would expose the API key to the network: use https://, or pass --insecure-http to allow it",
            target.base_url()
        )));
    }
    let api_key = api_key(&args.key_env)?;
    let key = ApiKey::parse(&api_key).ok_or_else(|| {
        Error::Usage(format!(
            "the environment variable {} does not contain an API key (sk_live_… or sk_test_…)",
            args.key_env
        ))
    })?;
    let client = Client::new(&target, &api_key, args.host.as_deref()).map_err(Error::Usage)?;
    let by_default = |suffix| state_base(&plan, args.run_name.as_deref()).map(|base| with_suffix(&base, suffix));
    let paths = RunPaths {
        checkpoint: args.checkpoint.map_or_else(|| by_default(".checkpoint.json"), Ok)?,
        rejects: args.rejects.map_or_else(|| by_default(".rejects.ndjson"), Ok)?,
    };
    let inputs: Vec<_> = plan.sources.iter().filter_map(|source| source.location.path()).collect();
    let resolved = paths.resolve(&inputs)?;
    let job = Job {
        url: target.base_url().to_owned(),
        host: args.host,
        mode: key.mode().to_string(),
        api_key: key.hint(),
        run_name: args.run_name,
        ..Job::of(&plan)
    };
    let treatment = Treatment { restart: args.restart, same_project: args.same_project };
    let summary = crate::run::run(RunOptions {
        plan,
        job,
        client,
        paths: resolved,
        treatment,
        concurrency: args.concurrency,
        timeout: args.timeout,
        give_up_after: args.give_up_after,
        allow_empty: args.allow_empty,
    });
    summary.await.map(|summary| summary.with_files(&paths))
}

fn api_key(variable: &str) -> Result<String, Error> {
    if [Mode::Live, Mode::Test].iter().any(|mode| variable.starts_with(mode.key_prefix())) {
        // The message must not repeat the value, which may be a key.
        return Err(Error::Usage(
            "--key-env takes the name of an environment variable, not the API key itself".to_owned(),
        ));
    }
    Ok(std::env::var(variable).unwrap_or_default())
}

/// The path to which the suffixes of the run's files are added: that of the first file, with the run's name.
fn state_base(plan: &ReadPlan, run_name: Option<&str>) -> Result<PathBuf, Error> {
    let base = plan.sources.iter().find_map(Source::state_path).unwrap_or_else(|| PathBuf::from("stdin"));
    let base = run_name.map_or(base.clone(), |name| with_suffix(&base, &format!(".{name}")));
    // The key of an object can be longer than a file name.
    if base.file_name().is_some_and(|name| name.len() > MAX_STATE_NAME_BYTES) {
        let reason = "the name of the first input is too long for the names of the checkpoint and the rejects file; pass \
                      --checkpoint and --rejects";
        return Err(Error::Usage(reason.to_owned()));
    }
    Ok(base)
}

fn print_rejects(path: &Path) -> ExitCode {
    match crate::print_rejects::run(path, stdout()) {
        Ok(printed) if printed.without_text.is_empty() => ExitCode::SUCCESS,
        Ok(printed) => {
            let places = printed.without_text.join(", ");
            print(&format!("error: these events were too long to be kept; take them from the input: {places}"));
            ExitCode::from(1)
        }
        Err(error) => {
            print(&format!("error: {error}"));
            error.exit_code()
        }
    }
}

fn read_plan(args: &Args) -> Result<ReadPlan, Error> {
    let mut files = args.files.clone();
    if files.is_empty() {
        if stdin().is_terminal() {
            return Err(Error::Usage("no FILE is given, and standard input is a terminal".to_owned()));
        }
        files.push(PathBuf::from("-"));
    }
    if files.iter().filter(|file| file.as_path() == Path::new("-")).count() > 1 {
        return Err(Error::Usage("standard input (`-`) can be given only once".to_owned()));
    }
    let options = args.reading.options()?;
    let locations = crate::expand::expand(files)?.into_iter();
    let sources = locations.map(|location| Source::new(location, args.reading.format)).collect::<Result<_, _>>()?;
    let plan = ReadPlan {
        max_rejects: args.max_rejects,
        limit: args.limit,
        events_per_second: args.events_per_second,
        ..ReadPlan::new(sources, options, args.max_events)
    };
    crate::reader::check_headers(&plan)?;
    Ok(plan)
}

/// Prints the JSON to standard output, and everything else to standard error.
fn print_summary(summary: &Summary, json: bool) -> ExitCode {
    if let Some(error) = &summary.error {
        print(&format!("error: {error}"));
    }
    if !json {
        print(&summary.text());
    } else if let Err(error) = writeln!(stdout(), "{}", summary.json()) {
        print(&format!("error: cannot write to standard output ({error})\n{}", summary.text()));
    }
    summary.exit_code()
}

pub(crate) fn print(text: &str) {
    // If standard error is closed, the error cannot be reported anywhere.
    let _ = writeln!(stderr(), "{text}");
}
