//! Inputs in Amazon S3, on the local AWS.

use crate::changing_inputs::large_input;
use crate::command::{Backfill, Run, lines, run, wait_until};
use crate::formats::{exports, gzip};
use crate::service::{Reply, Service, until_killed};
use hyper::body::Bytes;
use hyper::{Method, Request, Response};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use test_support::http_server::{HttpServer, fetch};
use test_support::local_aws;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::process::Command;

/// The address of the local AWS.
fn local_aws() -> String {
    local_aws::endpoint().replace("http://", "")
}

/// A bucket of its own on the local AWS.
#[derive(Clone, Copy)]
struct Bucket(&'static str);

impl Bucket {
    fn create(name: &'static str) -> Self {
        let bucket = Self(name);
        bucket.call("PUT", "", &[]);
        bucket
    }

    fn put(self, key: &str, content: impl AsRef<[u8]>) {
        self.call("PUT", key, content.as_ref());
    }

    /// Not async, because the scripts of the service also use it.
    fn call(self, method: &str, key: &str, body: &[u8]) {
        let mut stream = TcpStream::connect(local_aws()).expect("it listens");
        let (bucket, length) = (self.0, body.len());
        let head = format!(
            "{method} /{bucket}/{key} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(&[head.as_bytes(), body].concat()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 2"), "{answer}");
    }
}

/// The command, with S3 at `address`.
fn command(backfill: &Backfill, address: &str, arguments: &str) -> Command {
    let mut command = backfill.command(arguments);
    command.env("AWS_ENDPOINT_URL", format!("http://{address}")).env("AWS_REGION", "us-east-1");
    command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
    // Else the search for region and credentials asks an address that does not exist here.
    command.env("AWS_EC2_METADATA_DISABLED", "true");
    command
}

async fn run_at(backfill: &Backfill, address: &str, arguments: &str) -> Run {
    run(&mut command(backfill, address, arguments)).await
}

async fn run_locally(backfill: &Backfill, arguments: &str) -> Run {
    run_at(backfill, &local_aws(), arguments).await
}

/// Kills a run when its checkpoint counts at least `accepted` events.
async fn kill_after(backfill: &Backfill, arguments: &str, checkpoint: &str, accepted: u64) {
    let mut child = command(backfill, &local_aws(), arguments).spawn().expect("it starts");
    wait_until("the checkpoint", || {
        let checkpoint = serde_json::from_str::<Value>(&backfill.read(checkpoint)).unwrap_or_default();
        checkpoint["accepted"].as_u64().is_some_and(|counted| counted >= accepted)
    })
    .await;
    child.kill().await.expect("killed");
}

/// As `formats::a_run_of_any_format_killed_at_any_request_resumes_without_loss_or_duplicates`, from S3.
#[tokio::test]
async fn a_run_of_any_format_killed_half_way_resumes_without_loss_or_duplicates() {
    let bucket = Bucket::create("formats");
    for export in exports().into_iter().filter(|export| export.name != "-") {
        bucket.put(export.name, &export.content);
        let service = Service::start(|number, _| until_killed(Some(9), number)).await;
        let backfill = Backfill::new(&service);
        let arguments = format!("s3://formats/{} --max-events 50 --concurrency 4 {}", export.name, export.options);
        kill_after(&backfill, &arguments, &format!("formats_{}.checkpoint.json", export.name), 50).await;
        run_locally(&backfill, &arguments).await.assert(0, &["Resuming from formats_", "Done"]);
        let expected = (0..1000).filter(|id| export.name != "segment.gz" || id % 10 != 9).collect();
        assert_eq!(service.queued_ids(), expected, "{}", export.name);
    }
}

#[tokio::test]
async fn prefixes_directories_and_patterns_mean_the_objects_below_them() {
    let bucket = Bucket::create("names");
    let event = |id: usize| format!("{{\"external_user_id\":\"{id}\",\"name\":\"n\"}}\n");
    // The order of the keys is that of their bytes.
    let keys = ["export/B", "export/a", "export/a.gz", "export/c", "export/ü", "other/day=1/d"];
    for (id, key) in keys.iter().enumerate() {
        let content = if *key == "export/a.gz" { gzip(event(id)) } else { event(id).into_bytes() };
        bucket.put(&key.replace('ü', "%C3%BC"), content);
    }
    bucket.put("export/", "");
    bucket.put("export/_SUCCESS", "");
    bucket.put("empty/", "");
    // A page has two keys.
    let pages = Arc::<AtomicUsize>::default();
    let (counted, upstream) = (Arc::clone(&pages), local_aws());
    let proxy = HttpServer::start(move |request: Request<Bytes>| {
        let (counted, upstream) = (Arc::clone(&counted), upstream.clone());
        async move {
            let (mut head, body) = request.into_parts();
            if head.uri.query().is_some_and(|query| query.contains("list-type=2")) {
                counted.fetch_add(1, Ordering::Relaxed);
                head.uri = format!("{}&max-keys=2", head.uri).parse().expect("a URI");
            }
            Ok(fetch(&upstream, Request::from_parts(head, body)).await.expect("an answer"))
        }
    })
    .await;
    for (place, expected, min_pages) in [
        ("s3://names/export/", &[0, 1, 2, 3, 4][..], 3),
        ("s3://names/export/*", &[0, 1, 2, 3, 4], 3),
        ("s3://names/export/a*", &[1, 2], 1),
        ("s3://names/ex*/[a-c]", &[1, 3], 3),
        ("s3://names/o*", &[5], 1),
        ("s3://names/export/c s3://names/export/B", &[3, 0], 0),
    ] {
        pages.store(0, Ordering::Relaxed);
        let service = Service::start(|_, _| Reply::Process).await;
        let backfill = Backfill::new(&service);
        let run = run_at(&backfill, &proxy.address(), place).await;
        run.assert(0, &[&format!("{} events accepted", expected.len())]);
        let ids: Vec<usize> =
            service.queue().iter().map(|event| event["external_user_id"].as_str().unwrap().parse().unwrap()).collect();
        assert_eq!(ids, expected, "{place}");
        assert!(pages.load(Ordering::Relaxed) >= min_pages, "{place}");
    }
    let backfill = Backfill::at("localhost:1".to_owned());
    for (place, reason) in [
        (
            "s3://names/export",
            "s3://names/export: there is no such object. A directory ends with /: s3://names/export/",
        ),
        ("s3://names/empty/", "s3://names/empty/: there are no objects"),
        ("s3://names/x*", "s3://names/x*: there are no objects"),
        ("s3://names/export/*.csv", "s3://names/export/*.csv: there are no objects"),
        (
            "s3://names/other/",
            "contains s3://names/other/day=1/. To read all objects below it, pass 's3://names/other/*'",
        ),
        ("s3://names", "contains s3://names/empty/"),
        ("s3:///key", "must be s3://BUCKET/KEY"),
        ("s3://names/export/***", "wildcards"),
        ("s3://no-such-bucket/key", "s3://no-such-bucket/key: there is no bucket no-such-bucket"),
        ("s3://no-such-bucket/*", "there is no bucket no-such-bucket"),
    ] {
        run_locally(&backfill, place).await.assert(2, &[reason]);
    }
}

#[tokio::test]
async fn an_object_that_was_replaced_since_the_checkpoint_is_refused() {
    let bucket = Bucket::create("replaced");
    bucket.put("events.ndjson", lines(100));
    let service = Service::start(|number, _| until_killed(Some(5), number)).await;
    let backfill = Backfill::new(&service);
    let arguments = "s3://replaced/events.ndjson --max-events 10 --concurrency 2";
    kill_after(&backfill, arguments, "replaced_events.ndjson.checkpoint.json", 30).await;
    let sent = service.requests().len();
    // Of the same size.
    bucket.put("events.ndjson", lines(100).replacen("1.10", "1.11", 1));
    let run = run_locally(&backfill, arguments).await;
    run.assert(
        2,
        &["replaced_events.ndjson.checkpoint.json does not match", "s3://replaced/events.ndjson was replaced"],
    );
    assert_eq!(service.requests().len(), sent);
    bucket.put("events.ndjson", lines(100));
    run_locally(&backfill, arguments).await.assert(0, &["after 30 events", "100 events accepted"]);
    assert_eq!(service.queued_ids(), (0..100).collect());
}

/// The object is read ahead of the service by 9 MB at most.
#[tokio::test]
async fn an_object_that_is_replaced_or_deleted_during_the_run_aborts_it() {
    let bucket = Bucket::create("changing");
    let content = large_input(300);
    for (key, change, reason) in [
        ("plain", "PUT", "s3://changing/plain: the object was replaced"),
        ("gone", "DELETE", "s3://changing/gone: the object was deleted"),
        ("gz", "PUT", "s3://changing/gz: the object was replaced"),
    ] {
        // Stored without compression, so that it is as large.
        let content = if key == "gz" { stored(&content) } else { content.clone().into_bytes() };
        bucket.put(key, &content);
        let service = Service::start(move |number, _| {
            if number == 0 {
                bucket.call(change, key, b"{}");
            }
            Reply::Process
        })
        .await;
        let backfill = Backfill::new(&service);
        let arguments = format!("s3://changing/{key} --max-events 10 --concurrency 1");
        let run = run_locally(&backfill, &arguments).await;
        run.assert(3, &["error: cannot read", reason, "Everything before line", "run the same command again"]);
        let accepted = service.queued_ids().len();
        assert!((1..150).contains(&accepted), "{accepted} events were accepted");
        bucket.put(key, &content);
        run_locally(&backfill, &arguments).await.assert(0, &["300 events accepted"]);
        assert_eq!(service.queued_ids(), (0..300).collect());
    }
}

fn stored(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    encoder.write_all(text.as_bytes()).expect("memory");
    encoder.finish().expect("memory")
}

/// A proxy to the local AWS that cuts each connection after `limit` bytes of answers. It returns the first line of each
/// request, with its range.
async fn cutting_proxy(limit: u64) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    let requests = Arc::<Mutex<Vec<String>>>::default();
    let seen = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                let server = tokio::net::TcpStream::connect(local_aws()).await.expect("it listens");
                let ((mut from_client, mut to_client), (from_server, mut to_server)) =
                    (client.into_split(), server.into_split());
                let forward = async {
                    let mut buffer = vec![0; 64 * 1024];
                    while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
                        let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
                        seen.lock().expect("no panic").push(text);
                        to_server.write_all(&buffer[..read]).await.expect("sent");
                    }
                };
                let mut limited = from_server.take(limit);
                let back = tokio::io::copy(&mut limited, &mut to_client);
                tokio::select! { () = forward => {} _ = back => {} }
            });
        }
    });
    (address, requests)
}

#[tokio::test]
async fn a_lost_connection_continues_at_the_byte_that_was_reached() {
    let bucket = Bucket::create("cut");
    bucket.put("events.ndjson", large_input(20));
    let (address, requests) = cutting_proxy(300_000).await;
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    run_at(&backfill, &address, "s3://cut/events.ndjson").await.assert(0, &["20 events accepted"]);
    assert_eq!(service.queued_ids(), (0..20).collect());
    let requests = requests.lock().unwrap().clone();
    let ranges: Vec<_> = requests.iter().filter(|request| request.contains("range: bytes=")).collect();
    assert!(ranges.len() > 7, "{ranges:?}");
    assert!(ranges.iter().all(|request| request.contains("if-match: \"")), "{ranges:?}");

    // Without any progress, the run ends.
    let (address, _) = cutting_proxy(0).await;
    let run = run_at(&backfill, &address, "s3://cut/events.ndjson --restart --run-name b").await;
    run.assert(2, &["s3://cut/events.ndjson", "no complete answer from S3", "check the network"]);
}

/// A resumed run reads neither the objects that are done nor the beginning of an object without compression.
#[tokio::test]
async fn a_resumed_run_reads_only_the_rest() {
    let bucket = Bucket::create("rest");
    bucket.put("1.gz", gzip(lines(10)));
    let header = "external_user_id,name,properties.p\n";
    let row = |id: usize| format!("{},n,{}\n", 10 + id, "x".repeat(100_000));
    bucket.put("2.csv", format!("{header}{}", (0..100).map(row).collect::<String>()));
    let service =
        Service::start(|number, _| if number == 9 { crate::service::forbidden() } else { Reply::Process }).await;
    let backfill = Backfill::new(&service);
    let arguments = "s3://rest/* --max-events 10 --concurrency 1";
    run_locally(&backfill, arguments).await.assert(3, &["90 events accepted", "line 82 of s3://rest/2.csv"]);
    let (address, requests) = cutting_proxy(u64::MAX).await;
    let run = run_at(&backfill, &address, arguments).await;
    run.assert(0, &["after 90 events", "110 events accepted"]);
    assert_eq!(service.queued_ids(), (0..110).collect());
    let requests = requests.lock().unwrap().clone();
    let starts = |key: &str| -> Vec<u64> {
        let requests = requests.iter().filter(|request| request.starts_with(&format!("GET /rest/{key}")));
        let starts =
            requests.filter_map(|request| request.split("range: bytes=").nth(1)?.split('-').next()?.parse().ok());
        starts.collect()
    };
    // Twice to recognize the format and to check the header, and once to read the header again.
    assert_eq!(starts("1.gz"), [0, 0]);
    let starts = starts("2.csv");
    assert_eq!(starts[..3], [0, 0, 0]);
    assert!(starts.len() > 3 && starts[3..].iter().all(|start| *start > 8_000_000), "{starts:?}");
}

/// Columns of several requests each, in two row groups.
#[tokio::test]
async fn a_parquet_object_is_read_like_the_same_file() {
    let columns = ["external_user_id", "name", "a", "b"];
    let members = columns.map(|name| format!("required binary {name} (UTF8);")).concat();
    let schema = parse_message_type(&format!("message events {{ {members} }}")).unwrap();
    let mut writer = SerializedFileWriter::new(Vec::new(), Arc::new(schema), Arc::default()).unwrap();
    for group in 0..2 {
        let mut rows = writer.next_row_group().unwrap();
        for name in columns {
            let value = |row: u32| format!("{name} {group} {row} {}", distinct_text(row)).into_bytes();
            let values: Vec<ByteArray> = (0..4000).map(|row| value(row).into()).collect();
            let mut column = rows.next_column().unwrap().expect("a column");
            column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
            column.close().unwrap();
        }
        rows.close().unwrap();
    }
    let content = writer.into_inner().unwrap();
    assert!(content.len() > 10_000_000, "{}", content.len());
    let backfill = Backfill::at("localhost:1".to_owned());
    backfill.write("events.parquet", &content);
    Bucket::create("parquet").put("events.parquet", &content);
    let options = "--preview 8000 --remaining-as-properties";
    let (address, requests) = cutting_proxy(u64::MAX).await;
    let from_s3 = run_at(&backfill, &address, &format!("s3://parquet/events.parquet {options}")).await;
    from_s3.assert(0, &[]);
    assert_eq!(from_s3.stdout.lines().count(), 8000);
    assert_eq!(from_s3.stdout, backfill.run(&format!("events.parquet {options}")).await.stdout);
    let requests = requests.lock().unwrap().len();
    assert!((10..60).contains(&requests), "{requests}");
}

/// 400 characters that differ from row to row.
fn distinct_text(row: u32) -> String {
    let word = |index: u32| format!("{:08x}", (row * 50 + index).wrapping_mul(0x9e37_79b9));
    (0..50).map(word).collect()
}

#[tokio::test]
async fn a_refusal_by_s3_says_what_to_do() {
    let backfill = Backfill::at("localhost:1".to_owned());
    let get = "s3://b/dir/k";
    for (place, status, code, region, phrases) in [
        (get, 403, "AccessDenied", "", ["s3://b/dir/k: permission denied", "s3:GetObject on arn:aws:s3:::b/dir/k"]),
        (
            "s3://b/dir/*",
            403,
            "AccessDenied",
            "",
            ["s3://b/dir/: permission denied", "s3:ListBucket on arn:aws:s3:::b"],
        ),
        (get, 301, "PermanentRedirect", "eu-west-1", ["bucket b is in another region", "AWS_REGION=eu-west-1"]),
        (get, 403, "ExpiredToken", "", ["no usable AWS credentials", "log in again"]),
        (get, 403, "InvalidObjectState", "", ["is archived", "aws s3api restore-object"]),
        (get, 400, "Odd", "", ["400 Odd: because", "S3 returned an error"]),
    ] {
        let server = HttpServer::start(move |_| async move {
            let body = format!("<Error><Code>{code}</Code><Message>because</Message></Error>");
            let response = Response::builder().status(status).header("content-type", "application/xml");
            Ok(response.header("x-amz-bucket-region", region).body(Bytes::from(body)).expect("a response"))
        })
        .await;
        run_at(&backfill, &server.address(), place).await.assert(2, &phrases);
    }
    let mut without_region = command(&backfill, &local_aws(), get);
    run(without_region.env_remove("AWS_REGION")).await.assert(2, &["no AWS region: set AWS_REGION"]);
    let mut without_credentials = command(&backfill, &local_aws(), get);
    run(without_credentials.env_remove("AWS_ACCESS_KEY_ID"))
        .await
        .assert(2, &["no usable AWS credentials", "AWS_PROFILE"]);
}

/// As some servers do that are not Amazon S3. The wrong bytes must never be taken for events.
#[tokio::test]
async fn a_server_that_ignores_ranges_or_entity_tags_is_refused() {
    for (etag, range, reason) in [
        ("\"1\"", None, "did not return the range"),
        ("\"1\"", Some("bytes 1-9/10"), "did not return the range"),
        ("\"2\"", Some("bytes 0-9/10"), "the object was replaced"),
    ] {
        let server = HttpServer::start(move |request: Request<Bytes>| async move {
            assert_eq!(request.method(), Method::GET);
            let is_ranged = request.headers().contains_key("range");
            let mut response = Response::builder().header("etag", if is_ranged { etag } else { "\"1\"" });
            if let Some(range) = range.filter(|_| is_ranged) {
                response = response.status(206).header("content-range", range);
            }
            Ok(response.body(Bytes::from_static(b"0123456789")).expect("a response"))
        })
        .await;
        let backfill = Backfill::at("localhost:1".to_owned());
        run_at(&backfill, &server.address(), "s3://b/k").await.assert(2, &["s3://b/k", reason]);
    }
}

#[tokio::test]
async fn the_runs_files_are_in_the_current_directory() {
    let bucket = Bucket::create("state");
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    bucket.put("a/b.ndjson", format!("{}{{}}\n", lines(1)));
    let run = run_locally(&backfill, "s3://state/a/b.ndjson --run-name n").await;
    run.assert(1, &["s3://state/a/b.ndjson: NDJSON", "in state_a_b.ndjson.n.rejects.ndjson"]);
    let rejects = backfill.read_ndjson("state_a_b.ndjson.n.rejects.ndjson");
    assert_eq!(rejects[0]["file"], "s3://state/a/b.ndjson");
    let checkpoint: Value = serde_json::from_str(&backfill.read("state_a_b.ndjson.n.checkpoint.json")).unwrap();
    let input = &checkpoint["inputs"][0];
    assert_eq!((&input["name"], input["etag"].is_string()), (&Value::from("s3://state/a/b.ndjson"), true));
    let long = "k".repeat(240);
    bucket.put(&long, lines(1));
    let place = format!("s3://state/{long}");
    run_locally(&backfill, &place).await.assert(2, &["pass --checkpoint and --rejects"]);
    run_locally(&backfill, &format!("{place} --checkpoint c --rejects r")).await.assert(0, &["1 events accepted"]);
}
