//! Proxies, certificates, slow lines, and failures that no retry can mend.

use crate::command::{Backfill, lines, run, wait_until};
use crate::service::{Reply, Service};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use test_support::local_aws::free_port;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

#[tokio::test]
async fn proxies_are_taken_from_the_environment() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", lines(3));
    let proxy = format!("http://{}", service.address());
    let mut command = backfill.command("events.ndjson --url http://service.invalid --insecure-http");
    run(command.env("HTTP_PROXY", &proxy)).await.assert(0, &["3 events accepted"]);
    assert_eq!(service.requests()[0].headers["host"], "service.invalid");

    let nobody = format!("http://127.0.0.1:{}", free_port());
    backfill.write("direct.ndjson", lines(3));
    let mut command = backfill.command("direct.ndjson");
    command.env("HTTP_PROXY", &nobody).env("NO_PROXY", "127.0.0.1");
    run(&mut command).await.assert(0, &["3 events accepted"]);
    backfill.write("proxied.ndjson", lines(3));
    let mut command = backfill.command("proxied.ndjson --give-up-after 1s");
    run(command.env("ALL_PROXY", &nobody)).await.assert(3, &["cannot connect", "ALL_PROXY is set"]);
}

/// A server that answers every connection with the same text. Returns its address.
async fn answer_with(text: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = vec![0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(text.as_bytes()).await;
        }
    });
    address
}

#[tokio::test]
async fn what_cannot_succeed_fails_at_once_and_says_what_to_do() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    let proxy = answer_with("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await;
    let (certificate_of_another_ca, tls) = tls_in_front_of(service.address()).await;
    drop(certificate_of_another_ca);
    backfill.write("events.ndjson", lines(3));
    // A name that the resolver refuses without asking anybody.
    let unknown = "http://-a.invalid --insecure-http".to_owned();
    for (url, proxy, phrases) in [
        (unknown, None, ["Name or service not known", "There is no host -a.invalid. Is --url right?"]),
        (format!("https://{}", service.address()), None, ["cannot connect", "does not speak TLS on this port"]),
        (format!("https://{tls}"), None, ["UnknownIssuer", "SSL_CERT_FILE"]),
        ("https://a.example".to_owned(), Some(&proxy), ["proxy authorization required", "user:password@proxy"]),
    ] {
        let mut command = backfill.command(&format!("events.ndjson --url {url} --give-up-after 20s"));
        if let Some(proxy) = proxy {
            command.env("HTTPS_PROXY", format!("http://{proxy}"));
        }
        let run = run(&mut command).await;
        run.assert(3, &phrases);
        run.assert(3, &["0 events accepted, 0 rejected so far, 0 retries"]);
    }
    backfill.run("events.ndjson").await.assert(0, &["3 events accepted"]);
}

/// Terminates TLS in front of `address`. Returns the certificate authority in PEM, and the address.
async fn tls_in_front_of(address: String) -> (String, String) {
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::new([]).expect("parameters");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = ca.self_signed(&ca_key).expect("a certificate").pem();
    let key = KeyPair::generate().expect("a key");
    let server = CertificateParams::new(["127.0.0.1".to_owned()]).expect("parameters");
    let certificate = server.signed_by(&key, &Issuer::new(ca, ca_key)).expect("a certificate");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .expect("a certificate and its key");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let local = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            let (acceptor, address) = (acceptor.clone(), address.clone());
            tokio::spawn(async move {
                // Fails if the caller does not trust the certificate.
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut service = TcpStream::connect(address).await.expect("the service");
                let _ = copy_bidirectional(&mut stream, &mut service).await;
            });
        }
    });
    (authority, local)
}

#[tokio::test]
async fn a_private_certificate_authority_is_trusted_if_it_is_named() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    let (authority, address) = tls_in_front_of(service.address()).await;
    backfill.write("authority.pem", authority);
    backfill.write("events.ndjson", lines(3));
    let mut command = backfill.command(&format!("events.ndjson --url https://{address}"));
    run(command.env("SSL_CERT_FILE", backfill.path("authority.pem"))).await.assert(0, &["3 events accepted"]);
}

const SLOW_OPTIONS: &str = "events.ndjson --max-events 50 --concurrency 4 --timeout 300ms --give-up-after 20s";
/// On this line, a batch of 50 events takes 0.4 s alone, and four at a time take 1.6 s.
const PER_EVENT: Duration = Duration::from_millis(8);

#[tokio::test]
async fn everything_arrives_on_a_slow_line() {
    let service = Service::start(|_, _| Reply::SharedLine(PER_EVENT)).await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", lines(200));
    backfill.run(SLOW_OPTIONS).await.assert(0, &["200 events accepted"]);
    assert_eq!(service.queued_ids().len(), 200);
}

#[tokio::test]
async fn batches_that_were_split_on_a_slow_line_are_resumed_in_the_same_parts() {
    let slow = Arc::new(AtomicBool::new(true));
    let is_slow = Arc::clone(&slow);
    let service = Service::start(move |_, request| match request.events.len() {
        // Parts are processed, but the answers never arrive.
        ..50 if is_slow.load(Ordering::Relaxed) => Reply::ProcessAndHang,
        _ if is_slow.load(Ordering::Relaxed) => Reply::SharedLine(PER_EVENT),
        _ => Reply::Process,
    })
    .await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", lines(400));
    let mut child = backfill.command(SLOW_OPTIONS).spawn().expect("it starts");
    let parts = || service.requests().into_iter().filter(|request| request.events.len() < 50);
    wait_until("a part", || parts().count() > 0).await;
    child.kill().await.expect("killed");
    assert!(!backfill.checkpoint()["split"].as_object().expect("an object").is_empty());
    slow.store(false, Ordering::Relaxed);
    backfill.run(SLOW_OPTIONS).await.assert(0, &["400 events accepted"]);
    assert_eq!(service.queued_ids(), (0..400).collect::<BTreeSet<_>>());
}
