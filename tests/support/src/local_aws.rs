//! A local AWS for the tests: one ministack process per test run, on a free port.

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_dynamodb::config::Credentials;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

struct Server {
    port: u16,
    /// Its standard input closes when this process ends, however it ends. The watchdog then stops ministack.
    _watchdog: Child,
}

static SERVER: OnceLock<Server> = OnceLock::new();

/// The URL of the local AWS.
pub fn endpoint() -> String {
    format!("http://127.0.0.1:{}", SERVER.get_or_init(start).port)
}

/// The SDK configuration for the shared local AWS.
pub async fn sdk() -> SdkConfig {
    test_config(&endpoint()).await
}

/// The SDK configuration for the local AWS at `endpoint`.
pub async fn test_config(endpoint: &str) -> SdkConfig {
    aws_config::defaults(BehaviorVersion::latest())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .endpoint_url(endpoint)
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("test", "test", None, None, "tests"))
        .load()
        .await
}

fn start() -> Server {
    let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.venv/ministack/bin/ministack");
    assert!(program.exists(), "{} is missing: `make test` installs it", program.display());
    let port = free_port();
    let mut watchdog = Command::new("sh")
        .args(["-c", r#""$0" </dev/null >/dev/null 2>&1 & echo; read _; kill $!"#])
        .arg(program)
        .env("BIND_HOST", "127.0.0.1")
        .env("GATEWAY_PORT", port.to_string())
        .env("IOT_MTLS_PORT", "0")
        .env("MINISTACK_HOST", "localhost")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sh starts");
    watchdog.stdout.take().expect("piped").read_exact(&mut [0]).expect("the watchdog writes a line");
    let patience = Instant::now() + Duration::from_mins(1);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < patience, "ministack does not listen on port {port}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Server { port, _watchdog: watchdog }
}

/// A port that nothing listens on.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address").port()
}
