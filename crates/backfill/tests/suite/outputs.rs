//! The checkpoint and the rejects file: which paths a run takes, and whom they bind.

use crate::command::{Backfill, lines, wait, wait_until};
use crate::formats::gzip;
use crate::service::{Reply, Service, forbidden};
use serde_json::json;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

#[tokio::test]
async fn two_runs_at_once_cannot_use_one_rejects_file() {
    let service = Service::start(|number, _| if number == 0 { Reply::Hang } else { Reply::Process }).await;
    let backfill = Backfill::new(&service);
    backfill.write("one.ndjson", lines(3) + "{}\n");
    backfill.write("two.ndjson", lines(3) + "{}\n");
    let mut first = backfill.command("one.ndjson --rejects r.ndjson").spawn().expect("it starts");
    wait_until("the request", || service.requests().len() == 1).await;
    std::os::unix::fs::symlink("r.ndjson", backfill.path("link")).expect("a link");
    for rejects in ["r.ndjson", "./r.ndjson", "link"] {
        let run = backfill.run(&format!("two.ndjson --rejects {rejects}")).await;
        run.assert(2, &["another run is using this rejects file", "r.ndjson"]);
    }
    // Not in another role either.
    backfill.run("two.ndjson --checkpoint r.ndjson").await.assert(2, &["another run is using this"]);
    backfill.run("two.ndjson --rejects one.ndjson.checkpoint.json").await.assert(2, &["another run is using this"]);
    first.kill().await.expect("killed");
    assert_eq!(service.requests().len(), 1);
    backfill.run("one.ndjson --rejects r.ndjson").await.assert(1, &["3 events accepted, 1 rejected"]);
    backfill.run("two.ndjson --rejects r.ndjson").await.assert(2, &["r.ndjson exists", "Move the file away"]);
    assert_eq!(backfill.read_ndjson("r.ndjson").len(), 1);
}

#[tokio::test]
async fn the_checkpoint_and_the_rejects_file_are_different_files() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", lines(3) + "{}\n");
    std::os::unix::fs::symlink("c.json", backfill.path("link")).expect("a link");
    for (checkpoint, rejects) in [("c.json", "c.json"), ("c.json", "./c.json"), ("c.json", "link"), ("link", "c.json")]
    {
        let run = backfill.run(&format!("events.ndjson --checkpoint {checkpoint} --rejects {rejects}")).await;
        run.assert(2, &["--checkpoint and --rejects are the same file", "c.json"]);
    }
    assert_eq!(service.requests().len(), 0);
}

#[tokio::test]
async fn a_rejects_file_that_cannot_be_written_is_noticed_before_anything_is_sent() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", lines(3));
    backfill.run("events.ndjson --rejects nowhere/r.ndjson").await.assert(2, &["cannot write", "nowhere/r.ndjson"]);
    backfill.run("events.ndjson --rejects /dev/null").await.assert(2, &["/dev/null is not a regular file"]);
    assert_eq!(service.requests().len(), 0);
    backfill.run("events.ndjson").await.assert(0, &["3 events accepted"]);
    assert!(!backfill.path("events.ndjson.rejects.ndjson").exists());
}

#[tokio::test]
async fn a_process_substitution_is_read_like_standard_input() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", lines(3) + "{}\n");
    let program = env!("CARGO_BIN_EXE_event-ingest-backfill");
    for (script, state) in [
        (format!("{program} <(cat events.ndjson)"), "stdin"),
        (format!("cat events.ndjson | {program} --run-name two /dev/stdin"), "stdin.two"),
        (format!("{program} --run-name three /dev/stdin < events.ndjson"), "events.ndjson.three"),
    ] {
        let mut command = Command::new("bash");
        command.env_clear().env("PATH", std::env::var("PATH").unwrap_or_default()).envs(backfill.environment());
        command.current_dir(&backfill.directory).args(["-c", &script]).stdin(Stdio::null());
        crate::command::run(&mut command).await.assert(1, &["3 events accepted, 1 rejected"]);
        assert!(backfill.path(&format!("{state}.checkpoint.json")).exists(), "{script}");
        assert_eq!(backfill.read_ndjson(&format!("{state}.rejects.ndjson")).len(), 1, "{script}");
    }
    assert_eq!(service.queue().len(), 9);
}

#[tokio::test]
async fn a_checkpoint_binds_nobody_if_nothing_is_in_the_queue() {
    let service = Service::start(|number, _| if number == 0 { forbidden() } else { Reply::Process }).await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", lines(3));
    backfill.run("events.ndjson").await.assert(3, &["403", "0 events accepted"]);
    backfill.run("events.ndjson --max-events 2").await.assert(0, &["3 events accepted"]);
    // Every event is rejected because of a wrong option. No rejects file is in the way of the next run.
    backfill.write("u.csv", "external_user_id,name,properties.age\n1,n,old\n2,n,new\n");
    backfill.run("u.csv --types age=number").await.assert(1, &["0 events accepted, 2 rejected"]);
    backfill.run("u.csv").await.assert(0, &["2 events accepted, 0 rejected"]);
    assert!(!backfill.path("u.csv.rejects.ndjson").exists());
}

/// An answer that never came may have been a success. Then other options would queue the events twice.
#[tokio::test]
async fn a_checkpoint_binds_if_something_may_be_in_the_queue() {
    for reply in [|| Reply::ProcessAndDisconnect, || Reply::Answer(503, None, json!({}))] {
        let service = Service::start(move |number, _| if number == 0 { reply() } else { forbidden() }).await;
        let backfill = Backfill::new(&service);
        backfill.write("events.ndjson", lines(3));
        backfill.run("events.ndjson").await.assert(3, &["403", "0 events accepted"]);
        backfill.run("events.ndjson --max-events 2").await.assert(2, &["--max-events was 500, not 2"]);
    }
}

#[tokio::test]
async fn a_restart_keeps_the_rejects_file() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    backfill.run_with_stdin("", &(lines(3) + "{}\n")).await.assert(1, &["3 events accepted, 1 rejected"]);
    backfill.run_with_stdin("--restart", &(lines(5) + "{}\n{}\n")).await.assert(1, &["5 events accepted, 2 rejected"]);
    assert_eq!(backfill.read_ndjson("stdin.rejects.ndjson").len(), 2);
    assert_eq!(backfill.read_ndjson("stdin.rejects.ndjson.1").len(), 1);
}

#[tokio::test]
async fn another_key_resumes_only_if_it_is_said_to_be_of_the_same_project() {
    for prefix in ["sk_test_", "sk_live_"] {
        let service = Service::start(|number, _| if number == 1 { forbidden() } else { Reply::Process }).await;
        let backfill = Backfill::new(&service);
        backfill.write("events.ndjson", lines(30));
        let run_as = async |project: &str, options: &str| {
            let mut command = backfill.command(&format!("events.ndjson --max-events 10 --concurrency 1 {options}"));
            let key = format!("{prefix}0123456789012345678901234567890123{project}");
            crate::command::run(command.env("VIBEFOLLOW_API_KEY", key)).await
        };
        run_as("aaaa", "").await.assert(3, &["403", "10 events accepted"]);
        let hints = format!("it is for the API key {prefix}aaaa, not {prefix}bbbb");
        run_as("bbbb", "").await.assert(2, &[&hints, "--same-project"]);
        assert_eq!(service.requests().len(), 2);
        run_as("bbbb", "--same-project").await.assert(0, &["30 events accepted"]);
        run_as("bbbb", "").await.assert(0, &["Already complete"]);
        run_as("aaaa", "").await.assert(2, &["--same-project"]);
        assert_eq!(service.queued_ids().len(), 30);
    }
}

#[tokio::test]
async fn a_run_with_a_name_queues_the_events_again() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", lines(3));
    backfill.run("events.ndjson").await.assert(0, &["Done: 3 events accepted, 0 rejected"]);
    backfill.run("events.ndjson --run-name purged").await.assert(0, &["Done: 3 events accepted, 0 rejected"]);
    assert_eq!(service.queue().len(), 6);
    backfill.run("events.ndjson --run-name purged").await.assert(0, &["Already complete"]);
    backfill.run("events.ndjson").await.assert(0, &["Already complete"]);
    for name in ["", "a/b", "../x", &"x".repeat(65)] {
        let run = crate::command::run(backfill.command("events.ndjson --run-name").arg(name)).await;
        run.assert(2, &["must be 1 to 64 of"]);
    }
}

#[tokio::test]
async fn streams_with_the_same_first_batch_are_different_streams() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    let same = lines(10);
    backfill.run_with_stdin("--max-events 10 --checkpoint one.json --rejects r1", &same).await.assert(0, &[]);
    let other = same.clone() + &lines(5);
    backfill.run_with_stdin("--max-events 10 --checkpoint two.json --rejects r2", &other).await.assert(0, &[]);
    assert_eq!(service.queue().len(), 25);
    // Files have names of their own. Equal events in files of one name are replays, which the run says.
    std::fs::create_dir(backfill.path("a")).expect("a directory");
    backfill.write("a/events.ndjson", &same);
    backfill.write("events.ndjson", &other);
    backfill.run("a/events.ndjson --max-events 10").await.assert(0, &["Done: 10 events accepted, 0 rejected"]);
    let run = backfill.run("events.ndjson --max-events 10 --json").await;
    assert_eq!((&run.summary()["accepted"], &run.summary()["replayed"]), (&json!(15), &json!(10)));
    assert!(run.summary()["warnings"][0].as_str().unwrap().contains("10 events are replays"));
    assert_eq!(service.queue().len(), 25 + 10 + 5);
}

/// A retry of this run's own is no replay of another one.
#[tokio::test]
async fn a_retry_after_a_lost_answer_is_not_counted_as_replayed() {
    let service =
        Service::start(|number, _| if number == 0 { Reply::ProcessAndDisconnect } else { Reply::Process }).await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", lines(3));
    let run = backfill.run("events.ndjson --json").await;
    run.assert(0, &[]);
    assert_eq!((&run.summary()["retries"], &run.summary()["replayed"]), (&json!(1), &json!(0)));
    assert_eq!(run.summary()["warnings"], json!([]));
}

#[tokio::test]
async fn every_outcome_has_a_summary_in_json_and_its_exit_code() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", lines(3));
    backfill.write("empty.ndjson", "\n");
    backfill.write("empty.csv", "external_user_id,name\n");
    // Reading a process's memory from its beginning fails with an I/O error, also for root.
    for (arguments, phrase) in [
        ("nowhere.ndjson", "nowhere.ndjson"),
        ("/proc/self/mem", "/proc/self/mem"),
        ("/proc/self/mem --dry-run", "/proc/self/mem"),
        ("events.ndjson /proc/self/mem", "/proc/self/mem"),
        ("empty.ndjson", "the input has no events"),
        ("empty.csv empty.ndjson", "the input has no events"),
        ("empty.ndjson --dry-run", "the input has no events"),
        ("events.ndjson --key-env NOWHERE", "NOWHERE"),
    ] {
        let run = backfill.run(&format!("{arguments} --json")).await;
        run.assert(2, &["error: ", phrase]);
        assert_eq!((&run.summary()["status"], &run.summary()["accepted"]), (&json!("refused"), &json!(0)));
        assert!(run.summary()["error"].as_str().unwrap().contains(phrase), "{arguments}");
    }
    assert_eq!(service.requests().len(), 0);
    // After something was sent, an input that cannot be read ends the run.
    let gzip = gzip(lines(10_000));
    backfill.write("cut.gz", &gzip[..gzip.len() / 2]);
    let run = backfill.run("events.ndjson cut.gz --max-rejects 0 --json").await;
    run.assert(3, &["cannot read cut.gz"]);
    assert_eq!(run.summary()["status"], "aborted");
    assert!(run.summary()["accepted"].as_u64() > Some(3));
    backfill.run("empty.ndjson --allow-empty").await.assert(0, &["Done: 0 events accepted"]);
}

/// Nine of ten batches are done, but not the first.
#[tokio::test]
async fn progress_counts_every_batch_that_is_done() {
    let service = Service::start(|_, request| match request.events[0]["external_user_id"].as_str() {
        Some("0") => Reply::Hang,
        Some("90") => Reply::Answer(503, Some(60), json!({})),
        _ => Reply::Process,
    })
    .await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", lines(100));
    let mut child = backfill.command("events.ndjson --max-events 10 --concurrency 2").spawn().expect("it starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("piped")).lines();
    let mut line = String::new();
    while !line.contains(" %, ") {
        line = stderr.next_line().await.expect("UTF-8").expect("a line with the percentage");
    }
    let percent: u32 = line.split_once(" %").and_then(|(percent, _)| percent.parse().ok()).expect(&line);
    assert!((75..85).contains(&percent) && line.contains("80 accepted"), "{line}");
    child.start_kill().expect("killed");
    wait(child).await;
}
