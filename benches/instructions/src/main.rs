//! Counts the function's instructions under callgrind, which repeats them almost exactly however
//! busy the machine is, and compares them with those in `baseline.json`.
//!
//! ```text
//! instructions check     fail where one grew by more than 3 %
//! instructions accept    take what is counted now as the baseline
//! instructions run CASE  what callgrind runs
//! ```
//!
//! A `request` is the whole function, from the gateway event's JSON to the bytes of each AWS
//! call and on to the answer; only sockets are left out, by an HTTP client that answers at once.
//! `parse` and `pack` are parts of it. callgrind's processor has no SHA extensions, so that a
//! request's count holds far more for hashing than Lambda's processors spend.

mod cases;

use anyhow::{Context, Result, bail, ensure};
use cases::Case;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// How much of a growth is let pass, in percent: hash maps are seeded at random.
const TOLERANCE: f64 = 3.0;

/// Instructions by case.
type Counts = BTreeMap<String, u64>;

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["check"] => check(),
        ["accept"] => accept(),
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
        let now = count(&case)?;
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
            "\na count grew by more than {TOLERANCE} % or has no baseline; `make instructions-accept` takes these as right"
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn accept() -> Result<ExitCode> {
    let mut counts = Counts::new();
    for case in Case::all() {
        let now = count(&case)?;
        println!("{:<28}{now:>14}", case.name());
        counts.insert(case.name(), now);
    }
    std::fs::write(baseline_file(), serde_json::to_string_pretty(&counts)? + "\n")?;
    Ok(ExitCode::SUCCESS)
}

/// Runs one case under callgrind; its profile stays in `target/callgrind/` for a closer look.
fn count(case: &Case) -> Result<u64> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/callgrind");
    std::fs::create_dir_all(&directory)?;
    let profile = directory.join(format!("{}.out", case.name().replace(' ', "-")));
    let status = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--quiet",
            "--collect-atstart=no",
            "--toggle-collect=instructions::cases::measured*",
        ])
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(std::env::current_exe()?)
        .args(["run", &case.name()])
        .stdout(Stdio::null())
        .status()
        .context("valgrind is needed; on Debian: apt-get install valgrind")?;
    ensure!(status.success(), "{} failed under valgrind", case.name());
    let text = std::fs::read_to_string(&profile)?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    let total: u64 = total.context("callgrind counted nothing")?.trim().parse()?;
    ensure!(total > 0, "{}: callgrind did not find what to measure", case.name());
    Ok(total)
}
