//! Inputs that change during the run.

use crate::command::{Backfill, lines};
use crate::service::{Reply, Service};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// Far more than a run reads before the first answer.
pub fn large_input(events: usize) -> String {
    let padding = "x".repeat(100_000);
    let line =
        |id| format!("{{\"external_user_id\":\"{id}\",\"name\":\"n\",\"properties\":{{\"p\":\"{padding}\"}}}}\n");
    (0..events).map(line).collect()
}

/// A service that calls `change` with the input's path when the first request arrives.
async fn backfill(change: fn(&PathBuf)) -> (Backfill, Service) {
    let path: Arc<OnceLock<PathBuf>> = Arc::default();
    let shared = Arc::clone(&path);
    let service = Service::start(move |number, _| {
        if number == 0 {
            change(shared.get().expect("a path"));
        }
        Reply::Process
    })
    .await;
    let backfill = Backfill::new(&service);
    path.set(backfill.path("events.ndjson")).expect("set once");
    (backfill, service)
}

#[tokio::test]
async fn an_input_that_becomes_shorter_aborts_the_run() {
    let (backfill, service) = backfill(|path| {
        let file = OpenOptions::new().write(true).open(path).expect("a file");
        file.set_len(15_000_000).expect("shorter");
    })
    .await;
    let content = large_input(200);
    backfill.write("events.ndjson", &content);
    let run = backfill.run("events.ndjson --max-events 10 --concurrency 1").await;
    let size = content.len();
    let had = format!("had {size} bytes");
    run.assert(3, &["cannot read events.ndjson", &had, "ends after 15000000", "Everything before line", "Restore it"]);
    let accepted = service.queued_ids().len();
    assert!(accepted < 150, "{accepted} events were accepted");
    assert!(backfill.rejects().is_empty(), "half a line is no rejected event");
    backfill.write("events.ndjson", &content);
    backfill.run("events.ndjson --max-events 10").await.assert(0, &["200 events accepted"]);
    assert_eq!(service.queued_ids().len(), 200);
}

#[tokio::test]
async fn an_input_that_grows_is_read_to_its_old_end_and_the_run_says_so() {
    let (backfill, service) = backfill(|path| {
        let mut file = OpenOptions::new().append(true).open(path).expect("a file");
        file.write_all(lines(7).as_bytes()).expect("longer");
    })
    .await;
    let content = large_input(200);
    backfill.write("events.ndjson", &content);
    let run = backfill.run("events.ndjson --max-events 10 --concurrency 1").await;
    let rest = format!("tail -c +{} events.ndjson", content.len() + 1);
    run.assert(0, &["200 events accepted", "events.ndjson has grown by", &rest]);
    assert_eq!(service.queued_ids().len(), 200);
}
