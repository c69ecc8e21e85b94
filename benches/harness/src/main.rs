//! The benchmark: runs the function, the floor and the peers under an emulated Lambda, `DynamoDB` and
//! SQS, checks that every event arrives exactly once, and writes the figures to `docs/benchmarks/`.
//!
//! ```text
//! suite     the rounds, in order
//!   measure   one round of one shape on one target → figures
//!     sandbox   the process: environment, CPU, memory
//!       share     the CPU share of a memory size
//!       lambda    the Runtime API
//!       stub      DynamoDB and SQS, with latency, limits and counts
//!     verify    the checks of each request (the package `shapes` has the requests)
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
mod share;
mod stub;
mod suite;
mod targets;
mod verify;

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use suite::Plan;

const USAGE: &str = "\
usage: harness [OPTION]...
  --full               also measure every shape without latency, growth, 100,000 requests,
                       and 1, 2 and 4 sandboxes
  --quick              run one round with a tenth of the requests
  --rounds N           run N rounds (default: 3)
  --without-peers      measure only the function and the floor
  --shape NAME         measure only this shape
  --against BINARY     also measure another build of the function, for example the previous one
  --train BINARY DIRECTORY
                       measure nothing: send every shape to BINARY, a build of the function with
                       counters, which writes its profiles to DIRECTORY
  --output DIRECTORY   write to DIRECTORY (default: docs/benchmarks)";

struct Arguments {
    plan: Plan,
    /// An instrumented build, and the directory for its profiles.
    train: Option<(PathBuf, PathBuf)>,
    output: PathBuf,
}

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let Arguments { plan, train, output } = arguments(&root)?;
    // One thread for the harness and one for the function, so that each has one of two cores.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = tokio::task::LocalSet::new();
    if let Some((binary, profiles)) = train {
        return tasks.block_on(&runtime, suite::train(&root, &binary, &profiles));
    }
    let results = tasks.block_on(&runtime, suite::run(&root, &plan))?;
    eprintln!();
    std::fs::create_dir_all(&output)?;
    let markdown = report::markdown(&results);
    std::fs::write(output.join("results.md"), &markdown)?;
    std::fs::write(output.join("results.json"), serde_json::to_string_pretty(&results)? + "\n")?;
    plot::all(&results, &output)?;
    print!("{markdown}");
    println!("\nwritten to {}", output.display());
    Ok(())
}

fn arguments(root: &Path) -> Result<Arguments> {
    let mut plan = Plan { rounds: 3, divide: 1, peers: true, full: false, shape: None, against: None };
    let (mut train, mut output) = (None, root.join("docs/benchmarks"));
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--full" => plan.full = true,
            "--quick" => plan = Plan { rounds: 1, divide: 10, ..plan },
            "--without-peers" => plan.peers = false,
            "--shape" => plan.shape = Some(arguments.next().context(USAGE)?),
            "--rounds" => plan.rounds = arguments.next().context(USAGE)?.parse().context(USAGE)?,
            "--against" => plan.against = Some(PathBuf::from(arguments.next().context(USAGE)?).canonicalize()?),
            "--train" => {
                let binary = PathBuf::from(arguments.next().context(USAGE)?);
                let profiles = PathBuf::from(arguments.next().context(USAGE)?);
                std::fs::create_dir_all(&profiles)?;
                train = Some((binary.canonicalize()?, profiles.canonicalize()?));
            }
            "--output" => output = arguments.next().context(USAGE)?.into(),
            _ => bail!(USAGE),
        }
    }
    Ok(Arguments { plan, train, output })
}
