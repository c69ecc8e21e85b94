//! `--dry-run`.

use crate::command::{Backfill, lines, run};
use crate::service::{Reply, Service};
use serde_json::json;
use snapbox::str;

#[tokio::test]
async fn a_dry_run_sends_nothing_and_writes_only_the_rejects_file() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", format!("{}{{}}\n{}", lines(3), "x\n".repeat(30)));
    let summary = backfill.run("events.ndjson --dry-run --json").await.summary();
    assert_eq!(
        (&summary["status"], &summary["accepted"], &summary["rejected"]),
        (&json!("dry_run"), &json!(3), &json!(31))
    );
    assert_eq!(std::fs::read_dir(&backfill.directory).unwrap().count(), 1);
    backfill.run("events.ndjson --dry-run --rejects all.ndjson").await.assert_stderr(
        1,
        str![[r#"
3 events are valid, 31 are not. Nothing was sent.
The rejected events and the reasons are in all.ndjson.

"#]],
    );
    assert_eq!(backfill.read("all.ndjson").lines().count(), 31);
    backfill.run("events.ndjson --dry-run --rejects all.ndjson").await.assert_stderr(
        2,
        str![[r#"
error: cannot create all.ndjson: File exists (os error 17)

"#]],
    );
    assert_eq!(service.requests().len(), 0);
}

#[tokio::test]
async fn a_dry_run_needs_neither_a_url_nor_an_api_key() {
    let backfill = Backfill::at(String::new());
    backfill.write("good.ndjson", lines(3));
    let mut command = backfill.command("good.ndjson --dry-run");
    command.env_remove("VIBEFOLLOW_API_KEY").env_remove("VIBEFOLLOW_BASE_URL");
    run(&mut command).await.assert_stderr(
        0,
        str![[r#"
3 events are valid, 0 are not. Nothing was sent.

"#]],
    );
}

#[tokio::test]
async fn a_dry_run_prints_the_first_20_rejected_events() {
    let backfill = Backfill::at(String::new());
    backfill.write("events.ndjson", format!("{}{{}}\n[1]\n{}", lines(3), "x\n".repeat(30)));
    let output = backfill.run("events.ndjson --dry-run --url http://localhost").await;
    output.assert_stderr(
        1,
        str![[r#"
events.ndjson:4: external_user_id is required; name is required
events.ndjson:5: must be an object
events.ndjson:6: expected value at column 1
events.ndjson:7: expected value at column 1
events.ndjson:8: expected value at column 1
events.ndjson:9: expected value at column 1
events.ndjson:10: expected value at column 1
events.ndjson:11: expected value at column 1
events.ndjson:12: expected value at column 1
events.ndjson:13: expected value at column 1
events.ndjson:14: expected value at column 1
events.ndjson:15: expected value at column 1
events.ndjson:16: expected value at column 1
events.ndjson:17: expected value at column 1
events.ndjson:18: expected value at column 1
events.ndjson:19: expected value at column 1
events.ndjson:20: expected value at column 1
events.ndjson:21: expected value at column 1
events.ndjson:22: expected value at column 1
events.ndjson:23: expected value at column 1
… and 12 more; --rejects PATH writes all of them to a file
3 events are valid, 32 are not. Nothing was sent.

"#]],
    );
}
