//! A DynamoDB that gives answers which the local AWS does not give.

use hyper::Response;
use hyper::body::Bytes;
use serde_json::Value;
use std::future::pending;
use std::sync::{Arc, mpsc};
use std::thread;
use test_support::http_server::{Cut, HttpServer};
use tokio::runtime::Builder;

/// Starts a server and returns its URL. `answer` gets the operation and its input, and returns the
/// status and body of the response, or `None` to close the connection.
pub fn scripted_dynamodb(answer: impl Fn(&str, &Value) -> Option<(u16, Value)> + Send + Sync + 'static) -> String {
    let answer = Arc::new(answer);
    let (sender, address) = mpsc::channel();
    // A thread with its own runtime, because the tests block while the program runs.
    thread::spawn(move || {
        let serve = async {
            let server = HttpServer::start(move |request| {
                let answer = Arc::clone(&answer);
                async move {
                    let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok());
                    let operation = target.and_then(|target| target.split('.').next_back()).unwrap_or_default();
                    let input = serde_json::from_slice(request.body()).expect("JSON");
                    let (status, body) = answer(operation, &input).ok_or(Cut)?;
                    let response =
                        Response::builder().status(status).header("content-type", "application/x-amz-json-1.0");
                    Ok(response.body(Bytes::from(body.to_string())).expect("a response"))
                }
            });
            let server = server.await;
            sender.send(server.address()).expect("the test waits for the address");
            pending::<()>().await;
        };
        Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(serve);
    });
    format!("http://{}", address.recv().expect("the server starts"))
}
