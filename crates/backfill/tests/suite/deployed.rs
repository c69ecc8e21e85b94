//! The command against template.yaml, deployed to a local AWS.

use serde_json::Value;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use test_support::deployment::{API_KEY, Deployment};
use tokio::process::Command;

const ROWS: u64 = 4_000;

/// The walk-through of docs/backfill.md, "Try a kill and a resume", on a smaller scale.
#[tokio::test]
async fn a_run_killed_half_way_and_resumed_queues_every_event_once() {
    let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let deployment = Deployment::start("backfill", temporary, &[]);
    let directory = tempfile::tempdir_in(temporary).expect("a directory");
    let row = |id| format!("{{\"external_user_id\":\"{id}\",\"name\":\"n\"}}\n");
    let events: String = (0..ROWS).map(row).collect();
    std::fs::write(directory.path().join("events.ndjson"), events).expect("written");
    let backfill = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_event-ingest-backfill"));
        command
            .args(["--url", deployment.output("BaseUrl")])
            .args(["--max-events", "100", "events.ndjson"])
            .env("VIBEFOLLOW_API_KEY", API_KEY)
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    };
    let accepted = || {
        let checkpoint = std::fs::read(directory.path().join("events.ndjson.checkpoint.json")).ok()?;
        serde_json::from_slice::<Value>(&checkpoint).ok()?["accepted"].as_u64()
    };

    let mut first = backfill().spawn().expect("it starts");
    let deadline = Instant::now() + Duration::from_mins(2);
    while accepted().is_none_or(|accepted| accepted < ROWS / 2) {
        assert!(Instant::now() < deadline, "timed out waiting for half of the events");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    first.kill().await.expect("killed");
    assert!(accepted().is_some_and(|accepted| accepted < ROWS), "the run ended before it was killed");
    assert!(backfill().status().await.expect("it runs").success());

    let mut ids = Vec::new();
    loop {
        let messages = deployment.messages().await;
        if messages.is_empty() {
            break;
        }
        for message in messages {
            let body: Value = serde_json::from_str(message.body().expect("a body")).expect("JSON");
            let events = body["events"].as_array().expect("events");
            ids.extend(events.iter().map(|event| {
                let id = event["event"]["external_user_id"].as_str().expect("an id");
                id.parse::<u64>().expect("a number")
            }));
        }
    }
    ids.sort_unstable();
    assert!(ids.iter().copied().eq(0..ROWS), "{} events, not each exactly once", ids.len());
}
