//! Counts the function's instructions under callgrind and compares the counts with `baseline.json`. The
//! counts are almost the same in every run, however busy the machine is.
//!
//! ```text
//! instructions check     fail if a count grew by more than 3 %
//! instructions costs     print the CPU time of each stage for the costly requests
//! instructions search    print the same for every combination of the search
//! instructions accept    make the current counts the baseline
//! instructions run CASE  run one case, under callgrind
//! ```
//!
//! A `request` is the whole function, from the gateway event's JSON to the bytes of each AWS call and to
//! the response. Only sockets are left out: the HTTP client responds at once. `bulk` is a whole request to
//! the bulk endpoint, and `ordered` one with an ordered queue. `parse` and `pack` are parts of a request.
//! `init` creates the clients of AWS, without a call, and so without root certificates. Callgrind's
//! processor has no SHA extensions, so hashing accounts for a far larger share of a count than of the time
//! on Lambda's processors.

mod cases;
mod costs;

use anyhow::{Context, Result, bail, ensure};
use cases::Case;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// The growth of a count that passes, in percent. Counts vary because hash maps have random seeds.
const TOLERANCE: f64 = 3.0;

/// Instructions by case.
type Counts = BTreeMap<String, u64>;

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["check"] => check(),
        ["accept"] => accept(),
        ["costs"] => costs::report(shapes::costly::all()?.into_iter().map(Ok), 5).map(|()| ExitCode::SUCCESS),
        ["search"] => costs::report(shapes::costly::grid(), 2).map(|()| ExitCode::SUCCESS),
        ["run", name] => Case::named(name)?.run().map(|()| ExitCode::SUCCESS),
        _ => bail!("usage: instructions check | accept | run CASE"),
    }
}

fn baseline_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("baseline.json")
}

fn check() -> Result<ExitCode> {
    let text = std::fs::read_to_string(baseline_file()).context("no baseline: run `make instructions-accept`")?;
    let baseline: Counts = serde_json::from_str(&text)?;
    let mut failed = false;
    println!("{:<28}{:>14}{:>14}{:>9}", "", "baseline", "now", "change");
    for case in Case::all() {
        let now = count(&case.name())?;
        let Some(&before) = baseline.get(&case.name()) else {
            println!("{:<28}{:>14}{now:>14}", case.name(), "–");
            failed = true;
            continue;
        };
        let change = (now as f64 / before as f64 - 1.0) * 100.0;
        let regressed = change > TOLERANCE;
        failed |= regressed;
        println!(
            "{:<28}{before:>14}{now:>14}{change:>+8.1}%{}",
            case.name(),
            if regressed { "  REGRESSION" } else { "" }
        );
    }
    if failed {
        println!(
            "\na count grew by more than {TOLERANCE} % or has no baseline; `make instructions-accept` makes these counts the baseline"
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn accept() -> Result<ExitCode> {
    let mut counts = Counts::new();
    for case in Case::all() {
        let now = count(&case.name())?;
        println!("{:<28}{now:>14}", case.name());
        counts.insert(case.name(), now);
    }
    std::fs::write(baseline_file(), serde_json::to_string_pretty(&counts)? + "\n")?;
    Ok(ExitCode::SUCCESS)
}

/// Runs one case under callgrind. The profile stays in `target/callgrind/`.
fn count(name: &str) -> Result<u64> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/callgrind");
    std::fs::create_dir_all(&directory)?;
    let profile = directory.join(format!("{}.out", name.replace(|char: char| !char.is_alphanumeric(), "-")));
    let status = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--quiet",
            "--collect-atstart=no",
            "--toggle-collect=instructions::cases::measured*",
        ])
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(std::env::current_exe()?)
        .args(["run", name])
        // The settings of template.yaml.
        .env("MALLOC_MMAP_THRESHOLD_", "33554432")
        .env("MALLOC_TRIM_THRESHOLD_", "67108864")
        .env("GLIBC_TUNABLES", "glibc.malloc.tcache_count=127")
        // For `init`, which would otherwise ask the network.
        .env("AWS_REGION", "us-east-1")
        .stdout(Stdio::null())
        .status()
        .context("valgrind is needed; on Debian: apt-get install valgrind")?;
    ensure!(status.success(), "{name} failed under valgrind");
    let text = std::fs::read_to_string(&profile)?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    let total: u64 = total.context("callgrind counted nothing")?.trim().parse()?;
    ensure!(total > 0, "{name}: callgrind did not find the measured function");
    Ok(total)
}
