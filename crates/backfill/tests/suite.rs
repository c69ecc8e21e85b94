//! The backfill as its user runs it: the compiled program against a service that keeps the
//! contract's promises and breaks what a test wants broken.

use crate::http_server::{Cut, HttpServer};
use crate::local_aws::free_port;
use event_ingest::batch::{Batch, BatchError, MAX_BODY_BYTES};
use flate2::read::GzDecoder;
use hyper::body::Bytes;
use hyper::{Request, Response};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::future::pending;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

const KEY: &str = "sk_test_backfill_not_a_secret_0123456789";

/// One request as the service got it.
#[derive(Clone, Debug)]
struct Received {
    key: String,
    at: Instant,
    events: Vec<Value>,
    body: Vec<u8>,
    headers: HashMap<String, String>,
}

/// What the service does instead of its work.
enum Reply {
    /// Its work.
    Work,
    /// An answer without work.
    Say(u16, Option<u64>, Value),
    /// Nothing, and hangs up.
    Cut,
    /// Its work, but nobody hears of it.
    WorkAndCut,
    /// Nothing, ever.
    Hang,
    /// Its work, but nobody ever hears of it.
    WorkAndHang,
}

#[derive(Default)]
struct State {
    requests: Vec<Received>,
    /// Bodies by key.
    accepted: HashMap<String, Vec<u8>>,
    queue: Vec<Value>,
}

/// A service in memory.
#[derive(Clone, Default)]
struct Service {
    state: Arc<Mutex<State>>,
}

impl Service {
    /// Serves; `script` gets each request's number and the request.
    async fn start(&self, script: impl Fn(usize, &Received) -> Reply + Send + Sync + 'static) -> HttpServer {
        let (service, script) = (self.clone(), Arc::new(script));
        HttpServer::start(move |request: Request<Bytes>| {
            let (service, script) = (service.clone(), Arc::clone(&script));
            async move {
                let received = received(&request);
                let number = {
                    let mut state = service.state();
                    state.requests.push(received.clone());
                    state.requests.len() - 1
                };
                match script(number, &received) {
                    Reply::Work => Ok(service.work(&received)),
                    Reply::Say(status, retry_after, body) => Ok(response(status, retry_after, &body)),
                    Reply::Cut => Err(Cut),
                    Reply::WorkAndCut => {
                        service.work(&received);
                        Err(Cut)
                    }
                    Reply::Hang => pending().await,
                    Reply::WorkAndHang => {
                        service.work(&received);
                        pending().await
                    }
                }
            }
        })
        .await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with it")
    }

    /// Validates, and accepts each key once.
    fn work(&self, received: &Received) -> Response<Bytes> {
        let mut faults = match Batch::parse(&received.body) {
            Ok(_) => Vec::new(),
            Err(BatchError::Invalid(faults)) => faults.into_iter().map(|fault| fault.field).collect(),
            Err(BatchError::Malformed(what)) => return refusal(400, "malformed_json", [None], &what),
        };
        // A rule that only the service knows, as a newer version might.
        let forbidden = received.events.iter().enumerate().filter(|(_, event)| event["name"] == "forbidden");
        faults.extend(forbidden.map(|(index, _)| Some(format!("events[{index}].name"))));
        if !faults.is_empty() {
            return refusal(422, "validation_failed", faults.into_iter().take(100), "is not allowed");
        }
        let mut state = self.state();
        match state.accepted.get(&received.key) {
            Some(body) if *body != received.body => return refusal(422, "idempotency_key_reuse", [None], "reused"),
            Some(_) => {}
            None => {
                state.accepted.insert(received.key.clone(), received.body.clone());
                state.queue.extend(received.events.iter().cloned());
            }
        }
        response(202, None, &json!({"data": {"accepted": true}}))
    }

    fn requests(&self) -> Vec<Received> {
        self.state().requests.clone()
    }

    fn keys(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.key).collect()
    }

    /// The ids in the queue, each of which must be there once.
    #[track_caller]
    fn ids(&self) -> BTreeSet<u64> {
        let queue = self.state().queue.clone();
        let ids: Vec<u64> =
            queue.iter().map(|event| event["external_user_id"].as_str().unwrap().parse().unwrap()).collect();
        let unique: BTreeSet<u64> = ids.iter().copied().collect();
        assert_eq!(unique.len(), ids.len(), "an event is in the queue twice");
        unique
    }
}

fn received(request: &Request<Bytes>) -> Received {
    let header = |name: &str| request.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/api/v1/events/batch"));
    assert_eq!(header("content-encoding"), "gzip");
    let mut body = Vec::new();
    GzDecoder::new(request.body().as_ref()).read_to_end(&mut body).expect("gzip");
    let value: Value = serde_json::from_slice(&body).expect("JSON");
    let headers = ["authorization", "content-type", "host"].map(|name| (name.to_owned(), header(name))).into();
    let events = value["events"].as_array().expect("an array").clone();
    Received { key: header("idempotency-key"), at: Instant::now(), events, body, headers }
}

fn response(status: u16, retry_after: Option<u64>, body: &Value) -> Response<Bytes> {
    let mut response = Response::builder().status(status).header("content-type", "application/json");
    if let Some(seconds) = retry_after {
        response = response.header("retry-after", seconds.to_string());
    }
    response.body(Bytes::from(body.to_string())).expect("a response")
}

fn refusal(
    status: u16,
    code: &str,
    fields: impl IntoIterator<Item = Option<String>>,
    message: &str,
) -> Response<Bytes> {
    let errors: Vec<_> =
        fields.into_iter().map(|field| json!({"code": code, "message": message, "field": field})).collect();
    response(status, None, &json!({"errors": errors}))
}

/// What a run of the command came to.
#[derive(Debug)]
struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Run {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let run = Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
        assert!(!format!("{run:?}").contains(&KEY[8..]), "the key is shown: {run:?}");
        run
    }

    #[track_caller]
    fn assert(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for words in words {
            assert!(self.stderr.contains(words), "{words:?} is missing from {self:?}");
        }
    }
}

/// A directory of one test, and a service's address.
struct Desk {
    directory: PathBuf,
    address: String,
}

impl Desk {
    fn new(address: &str) -> Self {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("backfill-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&directory).expect("a directory");
        Self { directory, address: address.to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).expect("written");
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The rejects of `events.ndjson`.
    fn rejects(&self) -> Vec<Value> {
        let text = self.read("events.ndjson.rejects.ndjson");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    fn checkpoint(&self) -> Value {
        serde_json::from_str(&self.read("events.ndjson.checkpoint.json")).expect("a checkpoint")
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_event-ingest-backfill"));
        command
            .env_clear()
            .env("VIBEFOLLOW_API_KEY", KEY)
            .env("VIBEFOLLOW_BASE_URL", format!("http://{}", self.address))
            .current_dir(&self.directory)
            .args(line.split_whitespace())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, line: &str) -> Run {
        Run::of(self.command(line).output().await.expect("it runs"))
    }

    async fn feed(&self, line: &str, input: &str) -> Run {
        let mut child = self.command(line).stdin(Stdio::piped()).spawn().expect("it starts");
        // A run that ends without reading everything has closed its end.
        let _ = child.stdin.take().expect("piped").write_all(input.as_bytes()).await;
        Run::of(child.wait_with_output().await.expect("it ends"))
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn line(id: usize, name: &str) -> String {
    format!("{{\"external_user_id\": \"{id}\",  \"name\":\"{name}\", \"properties\":{{\"price\":1.10}}}}\n")
}

fn lines(count: usize) -> String {
    (0..count).map(|id| line(id, "n")).collect()
}

/// Waits until a condition holds, for as long as tests may take.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_mins(1);
    while !condition() {
        assert!(Instant::now() < patience, "{what} never came");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn signal(child: &Child, name: &str) {
    let id = child.id().expect("it runs").to_string();
    let sent = std::process::Command::new("kill").args([name, &id]).status().expect("kill runs");
    assert!(sent.success());
}

#[tokio::test]
async fn every_event_arrives_once_as_it_was_written() {
    let service = Service::default();
    let server = service.start(|_, _| Reply::Work).await;
    let desk = Desk::new(&server.address());
    desk.write("events.ndjson", format!("\u{feff}\n{}\n \n", lines(1203)));
    let run = desk.run("events.ndjson --host api.example --concurrency 1 --json").await;
    run.assert(0, &[]);
    let summary: Value = serde_json::from_str(&run.stdout).expect("one object");
    assert_eq!(
        (&summary["status"], &summary["accepted"], &summary["rejected"]),
        (&json!("complete"), &json!(1203), &json!(0))
    );
    assert_eq!((&summary["rejects"], &summary["error"]), (&Value::Null, &Value::Null));

    let requests = service.requests();
    assert_eq!(requests.iter().map(|request| request.events.len()).collect::<Vec<_>>(), [500, 500, 203]);
    let expected: Vec<_> = (0..500).map(|id| line(id, "n").trim().to_owned()).collect();
    assert_eq!(requests[0].body, format!("{{\"events\":[{}]}}", expected.join(",")).into_bytes(), "byte for byte");
    assert_eq!(service.ids(), (0..1203).collect());
    for request in &requests {
        assert!(request.key.len() == 64 && request.key.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(request.headers["authorization"], format!("Bearer {KEY}"));
        assert_eq!(
            (request.headers["content-type"].as_str(), request.headers["host"].as_str()),
            ("application/gzip", "api.example")
        );
    }
    assert_eq!(service.keys().into_iter().collect::<BTreeSet<_>>().len(), 3);
    assert!(!desk.path("events.ndjson.rejects.ndjson").exists());
    assert!(!desk.read("events.ndjson.checkpoint.json").contains(&KEY[8..]));

    let again = desk.run("events.ndjson --host api.example").await;
    again.assert(0, &["Already done", "1,203 events accepted", "--restart"]);
    assert_eq!(service.requests().len(), 3);
    // Anew, but under the old keys: the service still knows them.
    desk.run("events.ndjson --restart").await.assert(0, &["Done: 1,203 events accepted"]);
    assert_eq!(service.requests().len(), 6);
    assert_eq!(service.ids().len(), 1203);
}

#[tokio::test]
async fn a_batch_has_at_most_5_megabytes_and_so_many_events_as_one_says() {
    let service = Service::default();
    let server = service.start(|_, _| Reply::Work).await;
    let desk = Desk::new(&server.address());
    let large =
        |id: usize| format!("{{\"external_user_id\":\"{id}\",\"name\":\"n\",\"note\":\"{}\"}}\n", "x".repeat(900_000));
    desk.write("events.ndjson", (0..12).map(large).collect::<String>());
    desk.run("events.ndjson --concurrency 1").await.assert(0, &[]);
    assert_eq!(service.requests().iter().map(|request| request.events.len()).collect::<Vec<_>>(), [5, 5, 2]);
    assert!(service.requests().iter().all(|request| request.body.len() <= MAX_BODY_BYTES));

    let few = Desk::new(&server.address());
    few.write("few.ndjson", lines(7));
    few.run("few.ndjson --max-events 3 --concurrency 1").await.assert(0, &[]);
    assert_eq!(service.requests()[3..].iter().map(|request| request.events.len()).collect::<Vec<_>>(), [3, 3, 1]);
}

#[tokio::test]
async fn events_against_the_rules_are_told_apart_and_never_sent() {
    let service = Service::default();
    let server = service.start(|_, _| Reply::Work).await;
    let desk = Desk::new(&server.address());
    let bad = "{\"external_user_id\":\"\",\"timestamp\":\"today\"}\nnot json\n[1]\n";
    let long = format!("{{\"external_user_id\":\"8\",\"name\":\"n\",\"x\":\"{}\"}}\n", "x".repeat(2_000_000));
    desk.write(
        "events.ndjson",
        [line(0, "n").as_bytes(), bad.as_bytes(), long.as_bytes(), b"\"\xff\"\n", line(1, "n").as_bytes()].concat(),
    );
    desk.run("events.ndjson").await.assert(1, &["2 events accepted, 5 rejected", "events.ndjson.rejects.ndjson"]);
    assert_eq!(service.ids(), [0, 1].into());

    let rejects = desk.rejects();
    let places: Vec<_> =
        rejects.iter().map(|reject| (reject["line"].as_u64().unwrap(), reject["field"].as_str())).collect();
    assert_eq!(places, [(2, Some("external_user_id")), (3, None), (4, None), (5, None), (6, None)]);
    assert_eq!(rejects[0]["reason"], "must be 1 to 1024 characters long");
    assert_eq!(rejects[0]["event"], json!({"external_user_id": "", "timestamp": "today"}));
    let more: Vec<_> =
        rejects[0]["more"].as_array().unwrap().iter().map(|fault| fault["field"].as_str().unwrap()).collect();
    assert_eq!(more, ["name", "timestamp"]);
    assert_eq!((&rejects[1]["code"], &rejects[1]["text"]), (&json!("malformed_json"), &json!("not json")));
    assert_eq!((&rejects[2]["reason"], &rejects[2]["event"]), (&json!("must be an object"), &json!([1])));
    assert!(rejects[3]["reason"].as_str().unwrap().contains("an event has at most 1047552"));
    assert_eq!(rejects[4]["text"], "\"\u{fffd}\"");

    let again = desk.run("events.ndjson").await;
    again.assert(1, &["Already done", "5 rejected"]);
    assert_eq!(desk.rejects().len(), 5);
}

#[tokio::test]
async fn what_the_service_refuses_of_a_batch_is_set_aside_and_the_rest_goes_on() {
    let service = Service::default();
    let server = service.start(|_, _| Reply::Work).await;
    let desk = Desk::new(&server.address());
    // More than one answer lists.
    let name = |id: usize| if id % 2 == 1 && id < 300 { "forbidden" } else { "n" };
    desk.write("events.ndjson", (0..600).map(|id| line(id, name(id))).collect::<String>());
    desk.run("events.ndjson").await.assert(1, &["450 events accepted, 150 rejected"]);
    let allowed: BTreeSet<u64> = (0..600).filter(|id| name(*id) == "n").map(|id| id as u64).collect();
    assert_eq!(service.ids(), allowed);
    let rejects = desk.rejects();
    assert_eq!(rejects.iter().map(|reject| reject["line"].as_u64().unwrap()).collect::<BTreeSet<_>>().len(), 150);
    for reject in &rejects {
        assert_eq!((&reject["field"], &reject["reason"]), (&json!("name"), &json!("is not allowed")));
        assert_eq!(
            reject["line"].as_u64().unwrap() - 1,
            reject["event"]["external_user_id"].as_str().unwrap().parse::<u64>().unwrap()
        );
    }
    // The first batch whole, without 100, without all 150; and the second.
    let keys: BTreeSet<_> = service.keys().into_iter().collect();
    assert_eq!((service.requests().len(), keys.len()), (4, 4));
}

#[tokio::test]
async fn too_much_for_the_gateway_is_halved() {
    let service = Service::default();
    let server = service
        .start(|_, request| {
            if request.events.len() > 2 || request.body.len() > 10_000 {
                return Reply::Say(413, None, json!({"message": "Request Entity Too Large"}));
            }
            Reply::Work
        })
        .await;
    let desk = Desk::new(&server.address());
    desk.write(
        "events.ndjson",
        format!("{}{}", lines(9), line(9, &"n".repeat(1000)).replace("1.10", &format!("[{}1]", "1,".repeat(10_000)))),
    );
    desk.run("events.ndjson").await.assert(1, &["9 events accepted, 1 rejected"]);
    assert_eq!(service.ids(), (0..9).collect());
    assert_eq!((&desk.rejects()[0]["line"], &desk.rejects()[0]["code"]), (&json!(10), &json!("payload_too_large")));
}

#[tokio::test]
async fn retry_after_is_honoured_by_all_and_the_key_stays() {
    let service = Service::default();
    let server = service
        .start(|number, _| match number {
            0 => Reply::Say(429, Some(2), json!({"errors": [{"code": "rate_limited", "message": "slowly"}]})),
            _ => Reply::Work,
        })
        .await;
    let desk = Desk::new(&server.address());
    desk.write("events.ndjson", lines(30));
    let run = desk.run("events.ndjson --max-events 10 --concurrency 1").await;
    run.assert(0, &["30 events accepted, 0 rejected, 1 retries", "429 rate_limited: slowly"]);
    let requests = service.requests();
    assert!(requests[1].at - requests[0].at >= Duration::from_secs(2));
    assert_eq!((requests.len(), &requests[0].key), (4, &requests[1].key));
    assert_eq!(requests[0].body, requests[1].body);
}

#[tokio::test]
async fn trouble_is_outlasted_with_the_old_key() {
    let service = Service::default();
    let server = service
        .start(|number, _| match number {
            0 => Reply::Say(503, Some(1), json!({"errors": [{"code": "service_unavailable", "message": "later"}]})),
            1 => Reply::Cut,
            2 => Reply::WorkAndCut,
            3 => Reply::Say(429, None, json!({"message": "Too Many Requests"})),
            4 => Reply::Say(500, None, json!({"message": "Internal Server Error"})),
            5 => Reply::WorkAndHang,
            _ => Reply::Work,
        })
        .await;
    let desk = Desk::new(&server.address());
    desk.write("events.ndjson", lines(10));
    desk.run("events.ndjson --concurrency 1 --timeout 1s")
        .await
        .assert(0, &["10 events accepted, 0 rejected, 6 retries"]);
    assert_eq!(service.ids().len(), 10);
    assert_eq!(service.keys().into_iter().collect::<BTreeSet<_>>().len(), 1);
}

#[tokio::test]
async fn a_service_that_never_answers_ends_the_run_but_not_the_backfill() {
    let desk = Desk::new(&format!("127.0.0.1:{}", free_port()));
    desk.write("events.ndjson", lines(10));
    let run = desk.run("events.ndjson --give-up-after 1s --json").await;
    run.assert(3, &["no request has succeeded", "cannot connect"]);
    let summary: Value = serde_json::from_str(&run.stdout).expect("one object");
    assert_eq!((&summary["status"], &summary["accepted"]), (&json!("aborted"), &json!(0)));
    assert!(summary["error"].as_str().unwrap().contains("cannot connect"));
    let service = Service::default();
    let server = service.start(|_, _| Reply::Work).await;
    // The same service at another address: the checkpoint is told so.
    let moved = desk.read("events.ndjson.checkpoint.json").replace(&desk.address, &server.address());
    let desk = Desk { address: server.address(), directory: desk.directory.clone() };
    desk.run("events.ndjson").await.assert(2, &["--url was", "change `url`"]);
    desk.write("events.ndjson.checkpoint.json", moved);
    desk.run("events.ndjson").await.assert(0, &["10 events accepted"]);
}

/// Kills a run when the service has got so many requests, one of which it accepted without a
/// word, and goes on: whatever was in flight, each event is queued once and each reject told once.
#[tokio::test]
async fn a_run_killed_anywhere_goes_on_where_it_was() {
    let name = |id: usize| match id % 50 {
        7 => "forbidden",
        9 => "",
        _ => "n",
    };
    let content: String = (0..1000).map(|id| line(id, name(id))).collect();
    let accepted: BTreeSet<u64> = (0..1000).filter(|id| name(*id) == "n").map(|id| id as u64).collect();
    let rejected: BTreeSet<u64> = (0..1000).filter(|id| name(*id) != "n").map(|id| id as u64 + 1).collect();
    let mut undisturbed = None;
    for kill_at in [None, Some(1), Some(2), Some(7), Some(20), Some(61), Some(100)] {
        let service = Service::default();
        let server = service
            .start(move |number, _| match kill_at {
                Some(kill_at) if number + 2 == kill_at => Reply::WorkAndHang,
                Some(kill_at) if number + 1 == kill_at => Reply::Hang,
                _ => Reply::Work,
            })
            .await;
        let desk = Desk::new(&server.address());
        desk.write("events.ndjson", &content);
        let options = "events.ndjson --max-events 10 --concurrency 4";
        if let Some(kill_at) = kill_at {
            let mut child = desk.command(options).spawn().expect("it starts");
            until("the request", || service.requests().len() >= kill_at).await;
            child.kill().await.expect("killed");
        }
        desk.run(options).await.assert(1, &["Done", "rejected"]);
        assert_eq!(service.ids(), accepted, "killed at {kill_at:?}");
        let lines: Vec<u64> = desk.rejects().iter().map(|reject| reject["line"].as_u64().unwrap()).collect();
        assert_eq!((lines.len(), lines.into_iter().collect::<BTreeSet<_>>()), (40, rejected.clone()), "{kill_at:?}");
        assert!(!desk.path("events.ndjson.checkpoint.json.tmp").exists());
        let keys: BTreeSet<_> = service.keys().into_iter().collect();
        assert_eq!(undisturbed.get_or_insert(keys.clone()), &keys, "the same keys, killed or not");
    }
}

#[tokio::test]
async fn what_was_accepted_out_of_order_is_not_sent_again() {
    let service = Service::default();
    // The first batch hangs, the others get through.
    let first = Arc::new(Mutex::new(None::<String>));
    let hanging = Arc::clone(&first);
    let server = service
        .start(move |_, request| {
            let mut hanging = hanging.lock().unwrap();
            let is_first = request.events[0]["external_user_id"] == "0";
            if is_first && hanging.is_none() {
                *hanging = Some(request.key.clone());
                return Reply::Hang;
            }
            Reply::Work
        })
        .await;
    let desk = Desk::new(&server.address());
    desk.write("events.ndjson", lines(100));
    let options = "events.ndjson --max-events 10 --concurrency 2";
    let mut child = desk.command(options).spawn().expect("it starts");
    until("the checkpoint", || {
        let text = desk.read("events.ndjson.checkpoint.json");
        serde_json::from_str::<Value>(&text).is_ok_and(|checkpoint| checkpoint["accepted"] == 90)
    })
    .await;
    child.kill().await.expect("killed");
    let checkpoint = desk.checkpoint();
    assert_eq!((&checkpoint["next_batch"], checkpoint["done_beyond"].as_object().unwrap().len()), (&json!(0), 9));
    let sent = service.requests().len();
    // A day later the service has forgotten every key.
    service.state().accepted.clear();
    let text = desk.read("events.ndjson.checkpoint.json");
    let updated = checkpoint["updated_at"].as_u64().unwrap();
    desk.write("events.ndjson.checkpoint.json", text.replace(&updated.to_string(), &(updated - 25 * 3600).to_string()));
    desk.run(options).await.assert(0, &["warning: the last run ended 25 hours ago", "100 events accepted"]);
    assert_eq!(service.ids().len(), 100);
    assert_eq!(service.keys()[sent..], [first.lock().unwrap().clone().expect("a key")]);
}

#[tokio::test]
async fn an_interrupted_run_waits_for_its_answers_and_goes_on_later() {
    for name in ["-INT", "-TERM"] {
        let service = Service::default();
        let server = service
            .start(|number, _| match number {
                3 => Reply::Say(429, Some(60), json!({"errors": [{"code": "rate_limited", "message": "slowly"}]})),
                _ => Reply::Work,
            })
            .await;
        let desk = Desk::new(&server.address());
        desk.write("events.ndjson", lines(100));
        let child = desk.command("events.ndjson --max-events 10 --concurrency 1").spawn().expect("it starts");
        until("the request", || service.requests().len() == 4).await;
        // It waits for a minute now, and must not when it is told to stop.
        signal(&child, name);
        let run = Run::of(child.wait_with_output().await.expect("it ends"));
        run.assert(3, &["error: interrupted", "Aborted: 30 events accepted", "goes on where it was"]);
        assert_eq!(desk.checkpoint()["next_batch"], 3);
        desk.run("events.ndjson --max-events 10").await.assert(0, &["Going on after 30 events", "100 events accepted"]);
        assert_eq!((service.ids().len(), service.requests().len()), (100, 11));
    }
}

#[tokio::test]
async fn refusals_end_the_run_and_say_why() {
    for (status, code, words) in [
        (401, "auth_required", "right key"),
        (403, "forbidden", "403 forbidden"),
        (404, "not_found", "right --url"),
        (415, "unsupported_media_type", "415"),
        (422, "idempotency_key_reuse", "has the input changed"),
        (422, "validation_failed", "without naming an event"),
    ] {
        let service = Service::default();
        let body = json!({"errors": [{"code": code, "message": "said so"}]});
        let server = service
            .start(move |number, _| if number == 2 { Reply::Say(status, None, body.clone()) } else { Reply::Work })
            .await;
        let desk = Desk::new(&server.address());
        desk.write("events.ndjson", lines(100));
        let run = desk.run("events.ndjson --max-events 10 --concurrency 1").await;
        run.assert(3, &["the service refused a batch", words, "Aborted: 20 events accepted"]);
        assert_eq!(service.requests().len(), 3);
        desk.run("events.ndjson --max-events 10 --concurrency 1").await.assert(0, &["100 events accepted"]);
        assert_eq!((service.ids().len(), service.requests().len()), (100, 11));
    }
}

#[tokio::test]
async fn another_input_or_other_options_do_not_go_on_from_a_checkpoint() {
    let service = Service::default();
    let server =
        service.start(|number, _| if number == 1 { Reply::Say(403, None, json!({})) } else { Reply::Work }).await;
    let desk = Desk::new(&server.address());
    let content = lines(30);
    desk.write("events.ndjson", &content);
    desk.run("events.ndjson --max-events 10 --concurrency 1").await.assert(3, &["403"]);
    let sent = service.requests().len();
    desk.run("events.ndjson --max-events 20").await.assert(2, &["--max-events was 10 then, not 20", "--restart"]);
    desk.run("events.ndjson --max-events 10 --types a=number").await.assert(2, &["--types were others"]);
    desk.run("events.ndjson --max-events 10 --format csv").await.assert(2, &["is none of external_user_id"]);
    desk.write("events.ndjson", format!("{content}\n"));
    desk.run("events.ndjson --max-events 10").await.assert(2, &["size of events.ndjson was another"]);
    desk.write("events.ndjson", content.replacen("1.10", "1.11", 1));
    desk.run("events.ndjson --max-events 10").await.assert(2, &["is not what it was", "--restart"]);
    assert_eq!(service.requests().len(), sent);
    desk.write("events.ndjson", &content);
    desk.run("events.ndjson --max-events 10").await.assert(0, &["Going on after 10 events", "30 events accepted"]);
    assert_eq!(service.ids().len(), 30);
}

#[tokio::test]
async fn what_is_complete_is_so_for_the_same_input_only() {
    let service = Service::default();
    let server = service.start(|_, _| Reply::Work).await;
    let desk = Desk::new(&server.address());
    // A producer that failed leaves nothing, or a part.
    desk.feed("", "").await.assert(0, &["0 events accepted"]);
    desk.feed("", &lines(3)).await.assert(2, &["the input goes on beyond that", "--restart"]);
    desk.feed("--restart", &lines(3)).await.assert(0, &["3 events accepted"]);
    desk.feed("", &lines(5)).await.assert(2, &["the input goes on beyond that"]);
    desk.feed("", &lines(3)).await.assert(0, &["Already done"]);
    // A file that was mended in place.
    desk.write("events.ndjson", lines(10) + "{}\n");
    desk.run("events.ndjson").await.assert(1, &["10 events accepted, 1 rejected"]);
    desk.write("events.ndjson", lines(10).replacen("1.10", "1.11", 1) + "{}\n");
    desk.run("events.ndjson").await.assert(2, &["is not what it was"]);
    desk.write("events.ndjson", lines(10) + "{}\n");
    std::fs::remove_file(desk.path("events.ndjson.rejects.ndjson")).expect("rejects");
    desk.run("events.ndjson").await.assert(1, &["Already done"]);
    assert_eq!(service.requests().len(), 2);
}

#[tokio::test]
async fn another_project_or_service_does_not_go_on_from_a_checkpoint() {
    let service = Service::default();
    let server = service.start(|_, _| Reply::Work).await;
    let desk = Desk::new(&server.address());
    desk.write("events.ndjson", lines(3));
    desk.run("events.ndjson --host one.example").await.assert(0, &["3 events accepted"]);
    desk.run("events.ndjson --host two.example").await.assert(2, &["--host was one.example then"]);
    let live = KEY.replacen("sk_test_", "sk_live_", 1);
    let output = desk.command("events.ndjson --host one.example").env("VIBEFOLLOW_API_KEY", live).output().await;
    Run::of(output.expect("it runs")).assert(2, &["a test one then, not a live one"]);
    assert_eq!(service.requests().len(), 1);
}

#[tokio::test]
async fn no_file_is_cut_or_overwritten_but_the_runs_own() {
    let service = Service::default();
    let server =
        service.start(|number, _| if number == 1 { Reply::Say(403, None, json!({})) } else { Reply::Work }).await;
    let desk = Desk::new(&server.address());
    let content = lines(30);
    desk.write("events.ndjson", &content);
    desk.write("precious.txt", "precious");
    for name in ["events.ndjson", "./events.ndjson"] {
        desk.run(&format!("events.ndjson --rejects {name} --restart")).await.assert(2, &["is an input"]);
        desk.run(&format!("events.ndjson --checkpoint {name}")).await.assert(2, &["is an input"]);
    }
    desk.run("events.ndjson --checkpoint nowhere/c.json").await.assert(2, &["nowhere/c.json"]);
    desk.run("events.ndjson --max-events 10 --concurrency 1").await.assert(3, &["403"]);
    let elsewhere = "events.ndjson --max-events 10 --rejects precious.txt";
    desk.run(elsewhere).await.assert(2, &["precious.txt holds more", "events.ndjson.rejects.ndjson then"]);
    assert_eq!((desk.read("precious.txt").as_str(), desk.read("events.ndjson")), ("precious", content));
    desk.run("events.ndjson --max-events 10").await.assert(0, &["30 events accepted"]);
}

#[tokio::test]
async fn the_key_is_shown_by_nobody() {
    let service = Service::default();
    let echo = json!({"errors": [{"code": "forbidden", "message": format!("not with Bearer {KEY}")}]});
    let server = service.start(move |_, _| Reply::Say(403, None, echo.clone())).await;
    let desk = Desk::new(&server.address());
    desk.write("events.ndjson", lines(3));
    desk.run("events.ndjson").await.assert(3, &["not with Bearer [API key]"]);
    desk.run(&format!("events.ndjson --key-env {KEY}")).await.assert(2, &["--key-env is the name of a variable"]);
}

#[tokio::test]
async fn two_runs_do_not_share_a_checkpoint() {
    let service = Service::default();
    let server = service.start(|number, _| if number == 0 { Reply::Hang } else { Reply::Work }).await;
    let desk = Desk::new(&server.address());
    desk.write("events.ndjson", lines(10));
    let mut child = desk.command("events.ndjson").spawn().expect("it starts");
    until("the request", || service.requests().len() == 1).await;
    desk.run("events.ndjson").await.assert(2, &["another run has this checkpoint"]);
    child.kill().await.expect("killed");
    desk.run("events.ndjson").await.assert(0, &["10 events accepted"]);
}

#[tokio::test]
async fn standard_input_is_resumed_when_it_is_fed_again() {
    let service = Service::default();
    let server =
        service.start(|number, _| if number == 5 { Reply::Say(403, None, json!({})) } else { Reply::Work }).await;
    let desk = Desk::new(&server.address());
    let content = lines(100);
    desk.feed("--max-events 10 --concurrency 1", &content).await.assert(3, &["403", "stdin.checkpoint.json"]);
    let other = content.replacen("1.10", "1.11", 1);
    desk.feed("--max-events 10 --concurrency 1", &other).await.assert(2, &["standard input is not what it was"]);
    desk.feed("--max-events 10 -", &content).await.assert(0, &["Going on after 50 events", "100 events accepted"]);
    assert_eq!((service.ids().len(), service.requests().len()), (100, 11));
}

#[tokio::test]
async fn a_table_becomes_events() {
    let service = Service::default();
    let server = service.start(|_, _| Reply::Work).await;
    let desk = Desk::new(&server.address());
    let rows = "external_user_id,name,timestamp,properties.plan,properties.age,properties.vip\n\
                1,signed up,2026-11-23T09:14:03Z,\"pro, \"\"yearly\"\"\",42,true\n\
                2,n,,,old,\n\
                3,n,yesterday,,,\n\
                4,\"two\nlines\",,,7,maybe\n\
                5,n\n\
                6,n,,,,f\n";
    desk.write("t.csv", rows);
    desk.run("t.csv --types properties.age=number,vip=boolean").await.assert(1, &["2 events accepted, 4 rejected"]);
    let expected = json!({"external_user_id": "1", "name": "signed up", "timestamp": "2026-11-23T09:14:03Z",
        "properties": {"plan": "pro, \"yearly\"", "age": 42, "vip": true}});
    assert_eq!(service.state().queue[0], expected);
    assert_eq!(service.state().queue[1], json!({"external_user_id": "6", "name": "n", "properties": {"vip": false}}));
    let text = desk.read("t.csv.rejects.ndjson");
    let rejects: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let places: Vec<_> =
        rejects.iter().map(|reject| (reject["line"].as_u64().unwrap(), reject["field"].as_str())).collect();
    assert_eq!(places, [(3, Some("properties.age")), (4, Some("timestamp")), (5, Some("properties.vip")), (7, None)]);

    desk.write("open.csv", "external_user_id,name\n1,\"a\"\n2,\"5 inch\n3,n\n4,n\n");
    desk.run("open.csv").await.assert(1, &["1 events accepted, 1 rejected"]);
    let reject: Value = serde_json::from_str(&desk.read("open.csv.rejects.ndjson")).unwrap();
    assert_eq!((reject["line"].as_u64(), reject["code"].as_str()), (Some(3), Some("invalid_row")));
    assert!(reject["reason"].as_str().unwrap().contains("a quote that nothing closes"), "{reject}");
    desk.write("closed.csv", "external_user_id,name\n8,\"n\"");
    desk.run("closed.csv").await.assert(0, &["1 events accepted"]);

    desk.write("bad.csv", "external_user_id,name,age\n1,n,2\n");
    desk.run("bad.csv").await.assert(2, &["`age`", "`properties.age`"]);
    // What is wrong with a later file shows before an earlier one is sent.
    let sent = service.requests().len();
    desk.write("good.csv", "external_user_id,name\n7,n\n");
    desk.run("good.csv bad.csv --max-events 1").await.assert(2, &["`properties.age`"]);
    assert_eq!(service.requests().len(), sent);
}

#[tokio::test]
async fn a_dry_run_sends_nothing_and_leaves_nothing() {
    let desk = Desk::new("127.0.0.1:1");
    desk.write("events.ndjson", format!("{}{{}}\n{}", lines(3), "x\n".repeat(30)));
    let mut command = desk.command("events.ndjson --dry-run --json");
    let run = Run::of(
        command.env_remove("VIBEFOLLOW_API_KEY").env_remove("VIBEFOLLOW_BASE_URL").output().await.expect("it runs"),
    );
    run.assert(1, &["events.ndjson:4: external_user_id is required; name is required", "and 11 more"]);
    let summary: Value = serde_json::from_str(&run.stdout).expect("one object");
    assert_eq!(
        (&summary["status"], &summary["accepted"], &summary["rejected"]),
        (&json!("dry_run"), &json!(3), &json!(31))
    );
    assert_eq!(std::fs::read_dir(&desk.directory).unwrap().count(), 1);
    desk.run("events.ndjson --dry-run --rejects all.ndjson").await.assert(1, &["3 events are valid, 31 are not"]);
    assert_eq!(desk.read("all.ndjson").lines().count(), 31);
    desk.run("events.ndjson --dry-run --rejects all.ndjson").await.assert(2, &["all.ndjson"]);
    desk.write("good.ndjson", lines(3));
    desk.run("good.ndjson --dry-run").await.assert(0, &["3 events are valid, 0 are not"]);
}

#[tokio::test]
async fn what_is_wrong_from_the_start_is_said_before_anything_is_sent() {
    let desk = Desk::new("127.0.0.1:1");
    desk.write("events.ndjson", lines(1));
    desk.run("missing.ndjson").await.assert(2, &["missing.ndjson"]);
    desk.run(".").await.assert(2, &["is a directory"]);
    desk.run("events.ndjson --url http://example.com").await.assert(2, &["API key", "--insecure-http"]);
    desk.run("events.ndjson --url example.com").await.assert(2, &["must be a URL"]);
    desk.run("events.ndjson --key-env NOWHERE").await.assert(2, &["NOWHERE", "no API key"]);
    desk.run("- -").await.assert(2, &["only once"]);
    let bad_key = desk.command("events.ndjson").env("VIBEFOLLOW_API_KEY", "sk_test_short").output().await;
    let run = Run::of(bad_key.expect("it runs"));
    run.assert(2, &["VIBEFOLLOW_API_KEY"]);
    assert!(!run.stderr.contains("sk_test_short"));
    desk.write("events.ndjson.rejects.ndjson", "precious\n");
    desk.run("events.ndjson").await.assert(2, &["move it away"]);
    assert_eq!(desk.read("events.ndjson.rejects.ndjson"), "precious\n");
}
