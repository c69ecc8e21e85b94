//! An HTTP API, as API Gateway provides it, that invokes the function of a [`TestApp`].

use crate::gateway_event::post;
use crate::test_app::TestApp;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};

/// The API.
pub struct HttpApi {
    /// The function.
    pub test: TestApp,
    /// By how much the clock advances after each request.
    pub between_requests: Duration,
    /// The number of responses with each status.
    pub statuses: RefCell<BTreeMap<u64, usize>>,
    listener: TcpListener,
}

impl HttpApi {
    /// Starts the function and listens on a free port.
    pub async fn start(between_requests: Duration) -> Rc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        Rc::new(Self { test: TestApp::start().await, between_requests, statuses: RefCell::default(), listener })
    }

    /// The URL of the API.
    pub fn url(&self) -> String {
        format!("http://{}", self.listener.local_addr().expect("an address"))
    }

    /// Serves requests until `client` ends.
    pub async fn serve_until<T>(self: &Rc<Self>, client: impl Future<Output = T>) -> T {
        let accept = async {
            loop {
                let (connection, _) = self.listener.accept().await.expect("a connection");
                spawn_local(serve(connection, Rc::clone(self)));
            }
        };
        let ended = async {
            tokio::select! {
                result = client => result,
                () = accept => unreachable!("the listener never ends"),
            }
        };
        LocalSet::new().run_until(ended).await
    }
}

/// Answers the requests of one connection.
async fn serve(connection: TcpStream, api: Rc<HttpApi>) {
    let service = service_fn(|request| respond(request, &api));
    // A client may close the connection at any time.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(connection), service).await;
}

async fn respond(request: Request<Incoming>, api: &HttpApi) -> Result<Response<Full<Bytes>>, hyper::Error> {
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

    let reply = api.test.send(&event).await;
    *api.statuses.borrow_mut().entry(reply.status).or_default() += 1;
    api.test.clock.advance(api.between_requests);
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
