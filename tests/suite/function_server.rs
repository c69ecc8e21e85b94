//! The function behind HTTP, as API Gateway puts it there: for clients that are programs of their own.

use crate::fleet::Fleet;
use crate::gateway_event::post;
use crate::test_app::Response;
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use serde_json::json;
use std::sync::Arc;
use test_support::http_server::{Cut, HttpServer};

/// A fault between the client and the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// The connection breaks before the request reaches the function.
    CutBefore,
    /// The connection breaks after the function has responded.
    CutAfter,
    /// A proxy answers instead of the function.
    Proxy(u16),
}

/// A server in front of a fleet of sandboxes. `plan` chooses the fault of each request by its number, from 0.
pub async fn start(fleet: Arc<Fleet>, plan: impl Fn(usize) -> Fault + Send + Sync + 'static) -> HttpServer {
    let plan = Arc::new(plan);
    let numbers = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    HttpServer::start(move |request| {
        let number = numbers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        respond(fleet.clone(), plan(number), request)
    })
    .await
}

async fn respond(fleet: Arc<Fleet>, fault: Fault, request: Request<Bytes>) -> Result<hyper::Response<Bytes>, Cut> {
    match fault {
        Fault::CutBefore => return Err(Cut),
        Fault::Proxy(status) => return Ok(response(status, "<html>from a proxy</html>".to_owned())),
        Fault::None | Fault::CutAfter => {}
    }
    let key = request.headers().get("idempotency-key").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let label = format!("{} {key}", request.uri().path());
    let event = gateway_event(&request);
    // The invocation continues after the client has hung up.
    let answer = tokio::spawn(async move { fleet.request(&label, &event).await }).await.expect("no panic");
    if fault == Fault::CutAfter {
        return Err(Cut);
    }
    Ok(match answer {
        Some(Response { status, headers, body }) => {
            let mut response = response(u16::try_from(status).expect("a status"), body.to_string());
            for (name, value) in headers {
                let name: hyper::header::HeaderName = name.parse().expect("a name");
                response.headers_mut().insert(name, value.parse().expect("a value"));
            }
            response
        }
        None => response(500, json!({ "message": "Internal Server Error" }).to_string()),
    })
}

fn response(status: u16, body: String) -> hyper::Response<Bytes> {
    let mut response = hyper::Response::new(Bytes::from(body));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response
}

/// The event that API Gateway creates from a request: text of a JSON content type, and base64 of any other.
fn gateway_event(request: &Request<Bytes>) -> serde_json::Value {
    let mut event = post().without("authorization").without("content-type").without("idempotency-key");
    event = event.method(request.method().as_str()).path(request.uri().path());
    for (name, value) in request.headers() {
        event = event.header(name.as_str(), value.to_str().expect("ASCII"));
    }
    let is_text = request.headers().get("content-type").is_some_and(|value| value == "application/json");
    if is_text {
        event.body(&String::from_utf8_lossy(request.body())).build()
    } else {
        event.binary(request.body()).build()
    }
}
