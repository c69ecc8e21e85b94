//! Checkpoints that a run refuses, and files that it leaves alone.

use crate::command::{API_KEY, Backfill, lines, run, wait_until};
use crate::service::{Reply, Service, forbidden};

#[tokio::test]
async fn another_input_or_other_options_do_not_resume() {
    let service = Service::start(|number, _| if number == 1 { forbidden() } else { Reply::Process }).await;
    let backfill = Backfill::new(&service);
    let content = lines(30);
    backfill.write("events.ndjson", &content);
    backfill.run("events.ndjson --max-events 10 --concurrency 1").await.assert(3, &["403"]);
    let sent = service.requests().len();
    backfill.run("events.ndjson --max-events 20").await.assert(2, &["--max-events was 10, not 20", "--restart"]);
    backfill.run("events.ndjson --max-events 10 --types a=number").await.assert(2, &["--types"]);
    backfill
        .run("events.ndjson --max-events 10 --format csv")
        .await
        .assert(2, &["there is no column `external_user_id`"]);
    backfill.write("events.ndjson", format!("{content}\n"));
    backfill.run("events.ndjson --max-events 10").await.assert(2, &["the size of events.ndjson has changed"]);
    backfill.write("events.ndjson", content.replacen("1.10", "1.11", 1));
    backfill.run("events.ndjson --max-events 10").await.assert(2, &["has changed", "--restart"]);
    assert_eq!(service.requests().len(), sent);
    backfill.write("events.ndjson", &content);
    backfill.run("events.ndjson --max-events 10").await.assert(0, &["after 10 events", "30 events accepted"]);
    assert_eq!(service.queued_ids().len(), 30);
}

#[tokio::test]
async fn a_complete_run_is_complete_only_for_the_same_input() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    // A producer that fails may leave no input, or only a part.
    backfill.run_with_stdin("", "").await.assert(2, &["the input has no events", "--allow-empty"]);
    backfill.run_with_stdin("", &lines(3)).await.assert(0, &["3 events accepted"]);
    backfill.run_with_stdin("", &lines(5)).await.assert(2, &["the input continues", "--run-name"]);
    backfill.run_with_stdin("", &lines(3)).await.assert(0, &["Already complete"]);
    // A file that was corrected in place.
    backfill.write("events.ndjson", lines(10) + "{}\n");
    backfill.run("events.ndjson").await.assert(1, &["10 events accepted, 1 rejected"]);
    backfill.write("events.ndjson", lines(10).replacen("1.10", "1.11", 1) + "{}\n");
    backfill.run("events.ndjson").await.assert(2, &["has changed"]);
    backfill.write("events.ndjson", lines(10) + "{}\n");
    std::fs::remove_file(backfill.path("events.ndjson.rejects.ndjson")).expect("rejects");
    backfill.run("events.ndjson").await.assert(1, &["Already complete"]);
    assert_eq!(service.requests().len(), 2);
}

#[tokio::test]
async fn another_host_or_mode_does_not_resume() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", lines(3));
    backfill.run("events.ndjson --host one.example").await.assert(0, &["3 events accepted"]);
    backfill.run("events.ndjson --host two.example").await.assert(2, &["--host was one.example"]);
    let live = API_KEY.replacen("sk_test_", "sk_live_", 1);
    // The mode is checked even if the key is said to be of the same project.
    let mut command = backfill.command("events.ndjson --host one.example --same-project");
    run(command.env("VIBEFOLLOW_API_KEY", live)).await.assert(2, &["a test key, not a live key"]);
    assert_eq!(service.requests().len(), 1);
}

#[tokio::test]
async fn a_run_truncates_and_overwrites_only_its_own_files() {
    let service = Service::start(|number, _| if number == 1 { forbidden() } else { Reply::Process }).await;
    let backfill = Backfill::new(&service);
    let content = lines(30);
    backfill.write("events.ndjson", &content);
    backfill.write("precious.txt", "precious");
    for name in ["events.ndjson", "./events.ndjson"] {
        backfill.run(&format!("events.ndjson --rejects {name} --restart")).await.assert(2, &["is an input file"]);
        backfill.run(&format!("events.ndjson --checkpoint {name}")).await.assert(2, &["is an input file"]);
    }
    backfill.run("events.ndjson --checkpoint nowhere/c.json").await.assert(2, &["nowhere/c.json"]);
    backfill.run("events.ndjson --max-events 10 --concurrency 1").await.assert(3, &["403"]);
    let elsewhere = "events.ndjson --max-events 10 --rejects precious.txt";
    backfill.run(elsewhere).await.assert(2, &["precious.txt is longer", "events.ndjson.rejects.ndjson"]);
    assert_eq!((backfill.read("precious.txt").as_str(), backfill.read("events.ndjson")), ("precious", content));
    backfill.run("events.ndjson --max-events 10").await.assert(0, &["30 events accepted"]);
}

#[tokio::test]
async fn a_second_run_cannot_use_the_checkpoint_of_a_running_one() {
    let service = Service::start(|number, _| if number == 0 { Reply::Hang } else { Reply::Process }).await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", lines(10));
    let mut child = backfill.command("events.ndjson").spawn().expect("it starts");
    wait_until("the request", || service.requests().len() == 1).await;
    backfill.run("events.ndjson").await.assert(2, &["another run is using this checkpoint"]);
    child.kill().await.expect("killed");
    backfill.run("events.ndjson").await.assert(0, &["10 events accepted"]);
}
