//! The command line and the environment.

use crate::command::{API_KEY, Backfill, lines, run};
use crate::service::{Reply, Service};
use serde_json::json;
use snapbox::str;
use std::fmt::Write;

#[tokio::test]
async fn help_documents_every_option_and_exit_code() {
    let help = Backfill::at(String::new()).command("--help").env_remove("VIBEFOLLOW_BASE_URL").output().await;
    let help = String::from_utf8(help.expect("it runs").stdout).expect("UTF-8");
    snapbox::assert_data_eq!(help, snapbox::file!["help.txt"]);
}

#[tokio::test]
async fn errors_of_usage_are_reported_before_anything_is_sent() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", lines(1));
    let mut transcript = String::new();
    for arguments in [
        "missing.ndjson",
        "missing-*.csv",
        "- -",
        "events.ndjson --url example.com",
        "events.ndjson --url http://example.com",
        "events.ndjson --timeout 1x",
        "events.ndjson --max-events 1001",
        "events.ndjson --types age=date",
        "events.ndjson --key-env NOWHERE",
    ] {
        let run = backfill.run(arguments).await;
        assert_eq!(run.code, Some(2), "{arguments}");
        writeln!(transcript, "$ event-ingest-backfill {arguments}\n{}", run.stderr).expect("a string");
    }
    snapbox::assert_data_eq!(
        transcript,
        str![[r#"
$ event-ingest-backfill missing.ndjson
error: missing.ndjson: No such file or directory (os error 2)

$ event-ingest-backfill missing-*.csv
error: missing-*.csv: there are no files

$ event-ingest-backfill - -
error: standard input (`-`) can be given only once

$ event-ingest-backfill events.ndjson --url example.com
error: invalid value 'example.com' for '--url <URL>': must be a URL such as https://api.example.com

For more information, try '--help'.

$ event-ingest-backfill events.ndjson --url http://example.com
error: http://example.com would expose the API key to the network: use https://, or pass --insecure-http to allow it

$ event-ingest-backfill events.ndjson --timeout 1x
error: invalid value '1x' for '--timeout <TIME>': must be a time such as 30s, 15m or 2h

For more information, try '--help'.

$ event-ingest-backfill events.ndjson --max-events 1001
error: invalid value '1001' for '--max-events <N>': must be a whole number from 1 to 1000

For more information, try '--help'.

$ event-ingest-backfill events.ndjson --types age=date
error: invalid value 'age=date' for '--types <PROPERTY=TYPE,…>': `date` is not one of string, number, boolean, json

For more information, try '--help'.

$ event-ingest-backfill events.ndjson --key-env NOWHERE
error: the environment variable NOWHERE does not contain an API key (sk_live_… or sk_test_…)


"#]]
    );
    backfill.write("events.ndjson.rejects.ndjson", "precious\n");
    backfill.run("events.ndjson").await.assert_stderr(2, str![[r#"
error: events.ndjson.rejects.ndjson exists, but its checkpoint does not. Move the file away, or pass --restart, which renames it

"#]]);
    assert_eq!(backfill.read("events.ndjson.rejects.ndjson"), "precious\n");
    assert_eq!(service.requests().len(), 0);
}

#[tokio::test]
async fn the_api_key_is_never_printed() {
    let echo = json!({"errors": [{"code": "forbidden", "message": format!("not with Bearer {API_KEY}")}]});
    let service = Service::start(move |_, _| Reply::Answer(403, None, echo.clone())).await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", lines(3));
    backfill.run("events.ndjson").await.assert(3, &["not with Bearer [API key]"]);
    // `Run::new` checks that no output contains the key.
    backfill.run(&format!("events.ndjson --key-env {API_KEY}")).await.assert_stderr(
        2,
        str![[r#"
error: --key-env takes the name of an environment variable, not the API key itself

"#]],
    );
    let mut command = backfill.command("events.ndjson");
    let malformed = run(command.env("VIBEFOLLOW_API_KEY", "sk_test_short")).await;
    malformed.assert_stderr(
        2,
        str![[r#"
error: the environment variable VIBEFOLLOW_API_KEY does not contain an API key (sk_live_… or sk_test_…)

"#]],
    );
}

#[cfg(not(feature = "s3"))]
#[tokio::test]
async fn an_input_in_s3_needs_a_build_with_the_feature() {
    let backfill = Backfill::at("localhost:1".to_owned());
    let run = backfill.run("s3://bucket/key").await;
    run.assert_stderr(
        2,
        str![[r#"
error: this build cannot read s3:// inputs: build it with `cargo build --release --locked -p event-ingest-backfill --features s3`, or download the files with `aws s3 sync`

"#]],
    );
}
