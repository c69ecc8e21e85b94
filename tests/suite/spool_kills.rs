//! Kills a process that uses the spool of the TypeScript client, again and again, against the function, and
//! counts the events in the queue. The environment variable `SPOOL_KILLS` sets the number of kills.

use crate::client_program;
use crate::fault_proxy::{Fault, FaultProxy};
use crate::fleet::Fleet;
use crate::function_server;
use crate::sandbox::QUIET_MACHINE;
use crate::test_app::{KEY, PROJECT, Resources};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use test_support::local_aws;
use tokio::io::{AsyncBufReadExt, BufReader};

#[tokio::test]
async fn a_killed_process_loses_and_duplicates_no_event_of_its_spool() {
    client_program::build().await;
    let _alone = QUIET_MACHINE.write().await;
    let kills: usize = std::env::var("SPOOL_KILLS").map_or(5, |text| text.parse().expect("SPOOL_KILLS is a number"));
    let aws = Resources::create().await;
    aws.put_key(KEY, PROJECT, &[]).await;
    let proxy = FaultProxy::new(&local_aws::endpoint(), |_| Fault::None);
    let server = function_server::start(Arc::new(Fleet::new(&aws, &proxy, 4)), |_| function_server::Fault::None).await;
    let spool = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("spool-{}", uuid::Uuid::new_v4()));
    let mut random = fastrand::Rng::new();

    let mut tracked = HashSet::new();
    let mut in_flight_at_kill = 0;
    for run in 0..=kills {
        let mode = if run == kills { "drain" } else { "track" };
        let mut command = client_program::node("test/spool-writer.mjs");
        command.arg(format!("http://{}", server.address())).arg(KEY).arg(&spool).arg(mode).arg(run.to_string());
        let mut process = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("node is installed");
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        if mode == "track" {
            // Its first event is tracked, so the process is up.
            tracked.insert(lines.next_line().await.expect("text").expect("the process tracks an event"));
            tokio::time::sleep(Duration::from_millis(random.u64(0..400))).await;
            in_flight_at_kill += usize::from(std::fs::read_dir(&spool).expect("a directory").count() > 2);
            process.start_kill().expect("the process runs");
        }
        while let Some(line) = lines.next_line().await.expect("text") {
            tracked.insert(line);
        }
        let status = process.wait().await.expect("the process ends");
        assert_eq!(status.success(), mode == "drain", "{mode}: {status}");
    }

    let mut counts: HashMap<String, usize> = HashMap::new();
    for (_, event) in aws.drain_events().await {
        *counts.entry(event["external_user_id"].as_str().expect("text").to_owned()).or_default() += 1;
    }
    let lost: Vec<_> = tracked.iter().filter(|id| !counts.contains_key(*id)).collect();
    let doubled: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
    let unconfirmed = counts.keys().filter(|id| !tracked.contains(*id)).count();
    println!(
        "spool: {kills} kills, {in_flight_at_kill} of them with several buffers in the spool; {} events tracked, {} in the \
         queue, {} lost, {} twice; {unconfirmed} were written when the process died before track() returned",
        tracked.len(),
        counts.len(),
        lost.len(),
        doubled.len(),
    );
    assert!(lost.is_empty() && doubled.is_empty(), "lost: {lost:?}, twice: {doubled:?}");
    std::fs::remove_dir_all(&spool).expect("the spool exists");
    assert!(unconfirmed <= kills, "at most one event in each process");
}
