//! Runs Schemathesis against the function. Every request that it generates from openapi.yaml must get a
//! documented response, and every valid request must succeed.

use crate::gateway_event::post;
use crate::test_app::{KEY, TestApp};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::{LocalSet, spawn_local};

/// An HTTP API that invokes the function.
struct Gateway {
    test: TestApp,
    /// The number of responses with each status.
    statuses: RefCell<BTreeMap<u64, usize>>,
}

/// Answers the requests of one connection.
async fn serve(connection: TcpStream, gateway: Rc<Gateway>) {
    let service = service_fn(|request| respond(request, &gateway));
    // A client may close the connection at any time.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(connection), service).await;
}

async fn respond(request: Request<Incoming>, gateway: &Gateway) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let mut event = post().without("authorization").without("idempotency-key").without("content-type");
    event = event.method(head.method.as_str()).path(head.uri.path());
    for name in head.headers.keys() {
        let values: Vec<_> = head.headers.get_all(name).iter().map(|value| text(value.as_bytes())).collect();
        event = event.header(name.as_str(), &values.join(","));
    }
    let content_type = head.headers.get("content-type").map(|value| text(value.as_bytes())).unwrap_or_default();
    // An HTTP API passes on JSON as text, and other bodies as base64.
    let is_text = content_type.starts_with("text/") || content_type.contains("json");
    event = if is_text { event.body(&text(&body)) } else { event.binary(&body) };

    let reply = gateway.test.send(&event).await;
    *gateway.statuses.borrow_mut().entry(reply.status).or_default() += 1;
    // Schemathesis expects no replays, so each request comes after the previous key has expired.
    gateway.test.clock.advance(Duration::from_hours(25));
    let mut response = Response::builder().status(u16::try_from(reply.status).expect("a status"));
    for (name, value) in &reply.headers {
        response = response.header(name, value);
    }
    Ok(response.body(Full::from(reply.body.to_string())).expect("a response"))
}

/// Converts bytes to text as a gateway does.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn schemathesis_gets_only_documented_responses() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let schemathesis = root.join(".venv/schemathesis/bin/schemathesis");
    assert!(schemathesis.exists(), "{} is missing: `make test` installs it", schemathesis.display());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let gateway = Rc::new(Gateway { test: TestApp::start().await, statuses: RefCell::default() });
    let mut run = Command::new(schemathesis)
        // Its output, including a record of each call, is written to target/.
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .arg("--config-file")
        .arg(root.join("tools/schemathesis/schemathesis.toml"))
        .arg("run")
        .arg(root.join("openapi.yaml"))
        .args(["--url", &url, "--continue-on-failure", "--report=har", "--report-har-path=schemathesis.har"])
        .env("API_KEY", KEY)
        .env("PYTHONPATH", root.join("tools/schemathesis"))
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .kill_on_drop(true)
        .spawn()
        .expect("schemathesis starts");
    let accept = async {
        loop {
            let (connection, _) = listener.accept().await.expect("a connection");
            spawn_local(serve(connection, gateway.clone()));
        }
    };
    let ended = async {
        tokio::select! {
            status = run.wait() => status.expect("schemathesis ends"),
            () = accept => unreachable!("the listener never ends"),
        }
    };
    let status = LocalSet::new().run_until(ended).await;
    assert!(status.success(), "{status}: the output above lists the failures");
    let statuses = gateway.statuses.take();
    println!("responses by status: {statuses:?}");
    for status in [200, 202, 400, 401, 405, 415, 422] {
        assert!(statuses.contains_key(&status), "no response had the status {status}");
    }
    // Checks the messages against the schema.
    gateway.test.aws.drain().await;
}
