//! The benchmark: runs the function, a floor and its peers under an emulated Lambda, `DynamoDB`
//! and SQS, checks that every event arrives exactly once, and writes what it measured to
//! `docs/benchmarks/`.
//!
//! ```text
//! suite     what is run, in which order
//!   measure   one round of one shape on one target → figures
//!     sandbox   the process: environment, CPU, memory
//!       lambda    the Runtime API
//!       stub      DynamoDB and SQS, with latency, limits and counts
//!     verify    what must come of it (what is sent is in the package `shapes`)
//! prices, goals → report, plot
//! ```

mod clock;
mod goals;
mod lambda;
mod measure;
mod plot;
mod prices;
mod report;
mod sandbox;
mod stub;
mod suite;
mod targets;
mod verify;

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use suite::Plan;

const USAGE: &str = "\
usage: harness [OPTION]...
  --full               also every shape without latency, growth, 100,000 requests, 1, 2, 4 sandboxes
  --quick              one round of a tenth of the requests
  --rounds N           instead of 5
  --without-peers      only the function and the floor
  --shape NAME         only this shape
  --against BINARY     beside them another build of the function, such as the one before a change
  --output DIRECTORY   instead of docs/benchmarks";

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let (plan, output) = arguments(&root)?;
    // One thread, as the function has one: on two cores the two then do not fight.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let results = tokio::task::LocalSet::new().block_on(&runtime, suite::run(&root, &plan))?;
    eprintln!();
    std::fs::create_dir_all(&output)?;
    let machine = report::machine();
    let markdown = report::markdown(&results, &machine);
    std::fs::write(output.join("results.md"), &markdown)?;
    std::fs::write(output.join("results.json"), serde_json::to_string_pretty(&results)? + "\n")?;
    plot::all(&results, &output)?;
    print!("{markdown}");
    println!("\nwritten to {}", output.display());
    Ok(())
}

fn arguments(root: &Path) -> Result<(Plan, PathBuf)> {
    let mut plan = Plan { rounds: 5, divide: 1, peers: true, full: false, shape: None, against: None };
    let mut output = root.join("docs/benchmarks");
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--full" => plan.full = true,
            "--quick" => plan = Plan { rounds: 1, divide: 10, ..plan },
            "--without-peers" => plan.peers = false,
            "--shape" => plan.shape = Some(arguments.next().context(USAGE)?),
            "--rounds" => plan.rounds = arguments.next().context(USAGE)?.parse().context(USAGE)?,
            "--against" => plan.against = Some(PathBuf::from(arguments.next().context(USAGE)?).canonicalize()?),
            "--output" => output = arguments.next().context(USAGE)?.into(),
            _ => bail!(USAGE),
        }
    }
    Ok((plan, output))
}
