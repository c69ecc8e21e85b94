//! `--map` and what belongs to it, `--preview` and `--limit`.

use crate::command::{Backfill, lines, run};
use crate::service::{Reply, Service, forbidden};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The events that `--preview` prints, which needs neither a service nor an API key.
async fn preview(name: &str, content: impl AsRef<[u8]>, arguments: &[&str]) -> Result<Vec<Value>, String> {
    let backfill = Backfill::at(String::new());
    backfill.write(name, content);
    let mut command = backfill.command(&format!("{name} --preview 100"));
    command.env_remove("VIBEFOLLOW_API_KEY").env_remove("VIBEFOLLOW_BASE_URL").args(arguments);
    let run = run(&mut command).await;
    assert_eq!(std::fs::read_dir(&backfill.directory).unwrap().count(), 1, "a preview writes no files");
    match run.code {
        Some(0) => Ok(run.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()),
        _ => Err(run.stderr),
    }
}

#[tokio::test]
async fn columns_of_any_format_are_mapped_alike() {
    let csv = "user_id,event,ts,plan,age,ctx\n42,signed up,1740816000,pro,7,\"{\"\"ip\"\": \"\"::1\"\"}\"\n";
    let json = json!([{"user_id": 42, "event": "signed up", "ts": 1_740_816_000, "plan": "pro", "age": "7", "ctx": {"ip": "::1"}}]);
    let ndjson = json[0].to_string();
    let arguments = [
        "--map",
        "external_user_id=user_id,name=event,timestamp=ts,properties.address=ctx.ip",
        "--timestamp-format",
        "epoch-seconds",
        "--remaining-as-properties",
        "--types",
        "age=number,ctx=json",
        "--set",
        "properties.source=import",
    ];
    let expected = json!({"external_user_id": "42", "name": "signed up", "timestamp": "2025-03-01T08:00:00Z",
        "properties": {"address": "::1", "source": "import", "plan": "pro", "age": 7, "ctx": {"ip": "::1"}}});
    for (name, content) in [("a.csv", csv.to_owned()), ("a.json", json.to_string()), ("a.ndjson", ndjson)] {
        assert_eq!(preview(name, content, &arguments).await, Ok(vec![expected.clone()]), "{name}");
    }
}

#[tokio::test]
async fn columns_that_nobody_named_are_an_error_or_what_the_user_wants() {
    let csv = "user_id,event,plan\n1,n,pro\n";
    let map = "--map=external_user_id=user_id,name=event";
    let error = preview("a.csv", csv, &[map]).await.unwrap_err();
    assert!(error.contains("named `plan`") && error.contains("--remaining-as-properties"), "{error}");
    assert!(error.contains("--drop-remaining") && error.contains("--map properties.plan=plan"), "{error}");
    let bare = json!({"external_user_id": "1", "name": "n"});
    let with_plan = json!({"external_user_id": "1", "name": "n", "properties": {"plan": "pro"}});
    assert_eq!(preview("a.csv", csv, &[map, "--drop-remaining"]).await, Ok(vec![bare.clone()]));
    assert_eq!(preview("a.csv", csv, &[map, "--remaining-as-properties"]).await, Ok(vec![with_plan.clone()]));
    assert_eq!(preview("a.csv", csv, &[map, "--map", "properties.plan=plan"]).await, Ok(vec![with_plan.clone()]));
    // In JSON, the service passes other members on.
    let ndjson = r#"{"user_id":1,"event":"n","plan":"pro","none":null}"#;
    let kept = json!({"external_user_id": "1", "name": "n", "plan": "pro", "none": null});
    assert_eq!(preview("a.ndjson", ndjson, &[map]).await, Ok(vec![kept]));
    assert_eq!(preview("a.ndjson", ndjson, &[map, "--drop-remaining"]).await, Ok(vec![bare]));
    assert_eq!(preview("a.ndjson", ndjson, &[map, "--remaining-as-properties"]).await, Ok(vec![with_plan]));
}

#[tokio::test]
async fn types_apply_to_the_properties_of_every_format() {
    let properties = json!({"age": "7", "plan": "pro", "vip": null});
    let event = json!({"external_user_id": "1", "name": "n", "properties": properties, "v": 2});
    let csv = format!("external_user_id,name,properties\n1,n,\"{}\"\n", properties.to_string().replace('"', "\"\""));
    let typed = json!({"age": 7, "plan": "pro", "vip": null});
    for (name, content) in [("a.ndjson", event.to_string()), ("a.csv", csv)] {
        let found = preview(name, content, &["--types", "age=number,vip=boolean"]).await.unwrap();
        assert_eq!(found[0]["properties"], typed, "{name}");
    }
    let error = preview("a.ndjson", event.to_string(), &["--types", "plan=number"]).await.unwrap_err();
    assert!(error.contains("properties.plan must be a number"), "{error}");
}

/// Text that only begins and ends like an object must not become members of the event.
#[tokio::test]
async fn properties_in_text_must_be_an_object() {
    let ok = preview("a.csv", "external_user_id,name,properties\n1,n,\"{\n}\"\n2,n,\n", &[]).await.unwrap();
    assert_eq!((&ok[0]["properties"], ok.len()), (&json!({}), 2));
    for cell in [r#"{"a":1},"name":{"b":2}"#, "{", "[1]", "{'a':1}", "pro"] {
        let cell = cell.replace('"', "\"\"");
        let error =
            preview("a.csv", format!("external_user_id,name,properties\n1,n,\"{cell}\"\n"), &[]).await.unwrap_err();
        assert!(error.contains("a.csv:2: properties must be an object"), "{cell}: {error}");
    }
}

#[tokio::test]
async fn errors_of_a_mapping_say_what_to_do() {
    let csv = "user_id,event\n1,n\n";
    for (arguments, phrases) in [
        (vec![], vec!["no column `external_user_id`", "--map external_user_id=COLUMN", "`user_id`, `event`"]),
        (vec!["--map", "external_user_id=id"], vec!["no column `id`", "`user_id`, `event`"]),
        (vec!["--map", "user=id"], vec!["`user` is not one of external_user_id"]),
        (vec!["--map", "name=event,name=user_id"], vec!["gives `name` twice"]),
        (vec!["--map", "name=event", "--set", "name=x"], vec!["give `name` twice"]),
        (vec!["--where", "x"], vec!["COLUMN=VALUE"]),
        (vec!["--map", "external_user_id=user_id,name=event", "--where", "x=1"], vec!["no column `x`"]),
        (vec!["--tz", "Nowhere"], vec!["Europe/Berlin"]),
        (vec!["--map", "external_user_id=user_id,name=event", "--types", "age=number"], vec!["`properties.age`"]),
        (
            vec!["--map", "external_user_id=user_id,properties.a=event,name=event", "--set", "properties.a=x"],
            vec!["give `properties.a` twice"],
        ),
        (vec!["--delimiter", "ab"], vec!["one ASCII character"]),
    ] {
        let error = preview("a.csv", csv, &arguments).await.unwrap_err();
        assert!(phrases.iter().all(|phrase| error.contains(phrase)), "{arguments:?}: {error}");
    }
    let twice = r#"{"external_user_id":"1","name":"n","properties":{"plan":1},"plan":2}"#;
    let error = preview("a.ndjson", twice, &["--remaining-as-properties"]).await.unwrap_err();
    assert!(error.contains("properties.plan is in `properties` and is also a column"), "{error}");
    let error = preview("a.ndjson", r#"{"name":"a","name":"b"}"#, &["--set", "external_user_id=1"]).await.unwrap_err();
    assert!(error.contains("`name` twice"), "{error}");
    let error =
        preview("a.csv", "external_user_id,name,timestamp\n1,n,2025-03-01 08:00:00\n", &["--timestamp-format", "sql"])
            .await
            .unwrap_err();
    assert!(error.contains("a.csv:2: timestamp has no time zone; pass --tz"), "{error}");
    let error = preview("a.csv", "external_user_id,name,timestamp\n1,n,2025-03-01 08:00:00\n", &[]).await.unwrap_err();
    assert!(error.contains("--timestamp-format"), "{error}");
}

#[tokio::test]
async fn conditions_select_records_and_the_rest_is_counted() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    let rows = "external_user_id,kind,lang\n0,a,en\n1,b,\n2,a,de\n3,a,\n";
    backfill.write("t.csv", rows);
    let options = "t.csv --map name=kind --drop-remaining --where name=a --where lang!=de";
    backfill.run(options).await.assert(0, &["2 events accepted", "2 records do not satisfy --where"]);
    assert_eq!(service.queued_ids(), [0, 3].into());
    let summary = backfill.run(&format!("{options} --dry-run --json")).await.summary();
    assert_eq!((&summary["accepted"], &summary["skipped"]), (&json!(2), &json!(2)));
}

#[tokio::test]
async fn a_trial_run_is_continued_by_the_next_one() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", lines(30));
    let run = backfill.run("events.ndjson --limit 7 --json").await;
    run.assert(0, &["events.ndjson: NDJSON", "at most 7 events"]);
    assert_eq!(run.summary()["status"], "limited");
    assert_eq!(service.queued_ids().len(), 7);
    backfill
        .run("events.ndjson --limit 7")
        .await
        .assert(0, &["Limit reached: 14 events accepted", "continues from here"]);
    backfill.run("events.ndjson").await.assert(0, &["Done: 30 events accepted"]);
    assert_eq!(service.queued_ids().len(), 30);
    assert_eq!(service.batch_sizes(), [7, 7, 16]);
}

#[tokio::test]
async fn another_mapping_does_not_resume() {
    let service = Service::start(|number, _| if number == 1 { forbidden() } else { Reply::Process }).await;
    let backfill = Backfill::new(&service);
    backfill.write("t.csv", format!("external_user_id,event,x\n{}", "1,n,2\n".repeat(30)));
    let options = "t.csv --map name=event --drop-remaining --max-events 10 --concurrency 1";
    backfill.run(options).await.assert(3, &["403"]);
    let other = options.replace("--drop-remaining", "--remaining-as-properties");
    backfill.run(&other).await.assert(2, &["--remaining-as-properties", "was different"]);
    backfill.run(options).await.assert(0, &["30 events accepted"]);
}

#[tokio::test]
async fn a_rate_is_kept() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", lines(30));
    let started = Instant::now();
    backfill.run("events.ndjson --max-events 10 --events-per-second 20").await.assert(0, &["30 events accepted"]);
    // The third batch is due after a second. A slow machine can only make it later.
    assert!(service.requests()[2].at - started >= Duration::from_secs(1));
}
