//! Tests of `make deploy` and `make verify` on a local AWS. They prove that a stack works, or print the reason
//! why it does not.

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::PointInTimeRecoverySpecification;
use contract::api_key::ApiKey;
use hyper::body::Bytes;
use hyper::{Request, Response};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use test_support::http_server::{Cut, HttpServer, fetch};
use test_support::local_aws::{self, endpoint};
use test_support::tables::{self, s};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The exit status of a tool, and everything that it printed.
type Run = (Option<i32>, String);

/// Runs a program of tools/ without the AWS settings of the user.
fn run(tool: &str, options: &[&str], environment: &[(&str, &str)]) -> Run {
    let mut command = Command::new(root().join(".venv/sam/bin/python"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
        command.env_remove(name);
    }
    let Output { status, stdout, stderr } = command
        .arg(root().join("tools").join(tool))
        .args(options)
        .env("HOME", env!("CARGO_TARGET_TMPDIR"))
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .envs(environment.iter().copied())
        .output()
        .expect("python starts: `make test` installs it");
    (status.code(), [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat())
}

fn run_at(endpoint: &str, tool: &str, options: &[&str]) -> Run {
    let environment: Vec<_> = CREDENTIALS.into_iter().chain([("AWS_ENDPOINT_URL", endpoint)]).collect();
    run(tool, options, &environment)
}

#[track_caller]
fn assert_run((status, output): Run, expected: i32, texts: &[&str]) {
    assert_eq!(status, Some(expected), "{output}");
    for text in texts {
        assert!(output.contains(text), "{text:?} is missing from {output}");
    }
}

/// Copies the build of `make test`, and changes one text in its template.
fn build_with(name: &str, from: &str, to: &str) -> PathBuf {
    let state = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let built = root().join(".local/build");
    std::fs::create_dir_all(state.join("build/Function")).expect("a folder");
    std::fs::copy(built.join("Function/bootstrap"), state.join("build/Function/bootstrap"))
        .expect("the build is missing: `make test` creates it");
    let template = std::fs::read_to_string(built.join("template.yaml")).expect("a template");
    let changed = template.replacen(from, to, 1);
    assert!(from == to || changed != template, "{from} is not in the template");
    std::fs::write(state.join("build/template.yaml"), changed).expect("room on the disk");
    state
}

const CREDENTIALS: [(&str, &str); 3] =
    [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_REGION", "us-east-1")];

fn deploy_at(endpoint: &str, profile: &str, stack: &str, state: &Path, options: &[&str]) -> Run {
    let mut all = vec![profile, "--no-build", "--stack", stack, "--state-dir", state.to_str().expect("UTF-8")];
    all.extend(options);
    run_at(endpoint, "deploy.py", &all)
}

/// A proxy before the local AWS that refuses some calls as IAM does, because the local AWS checks no policies.
struct Policies {
    denied: Arc<Mutex<Option<Denial>>>,
    server: HttpServer,
}

/// A denied operation on the resources whose name contains a text.
#[derive(Clone, Copy)]
struct Denial {
    operation: &'static str,
    resource: &'static str,
}

impl Policies {
    async fn start() -> Self {
        let denied: Arc<Mutex<Option<Denial>>> = Arc::default();
        let policies = denied.clone();
        let server = HttpServer::start(move |request| {
            let denial = *policies.lock().expect("no panic");
            async move {
                if denial.is_some_and(|denial| denial.applies_to(&request)) {
                    Ok(denied_by_iam())
                } else {
                    forward(request).await
                }
            }
        });
        Self { denied, server: server.await }
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.server.address())
    }

    fn deny(&self, denial: Option<Denial>) {
        *self.denied.lock().expect("no panic") = denial;
    }
}

impl Denial {
    fn applies_to(self, request: &Request<Bytes>) -> bool {
        let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
        target.ends_with(&format!(".{}", self.operation))
            && String::from_utf8_lossy(request.body()).contains(self.resource)
    }
}

fn denied_by_iam() -> Response<Bytes> {
    let body = r#"{"__type": "com.amazon.coral.service#AccessDeniedException", "message": "not authorized"}"#;
    let response = Response::builder().status(400).header("content-type", "application/x-amz-json-1.0");
    response.body(Bytes::from_static(body.as_bytes())).expect("a response")
}

async fn forward(request: Request<Bytes>) -> Result<Response<Bytes>, Cut> {
    let upstream = endpoint().strip_prefix("http://").expect("plain HTTP").to_owned();
    let (mut head, body) = request.into_parts();
    head.headers.insert("host", upstream.parse().expect("an address"));
    fetch(&upstream, Request::from_parts(head, body)).await.map_err(|_| Cut)
}

/// The name of the API keys table of a stack.
async fn api_keys_table(stack: &str) -> String {
    let listed = Client::new(&local_aws::sdk().await).list_tables().send().await.expect("the tables");
    let prefix = format!("{stack}-ApiKeysTable");
    listed.table_names().iter().find(|name| name.starts_with(&prefix)).expect("the API keys table").clone()
}

/// The statuses of the API keys of a stack.
async fn statuses_of_keys(stack: &str) -> Vec<String> {
    let items = tables::items(&local_aws::sdk().await, &api_keys_table(stack).await).await;
    items.iter().map(|item| item["status"].as_s().expect("a string").clone()).collect()
}

/// The API keys of a table, by their names: status, project and rate limit.
async fn keys(table: &str) -> BTreeMap<String, [String; 3]> {
    let items = tables::items(&local_aws::sdk().await, table).await;
    let text = |item: &tables::Item, name: &str| item.get(name).and_then(|value| value.as_s().ok()).cloned();
    let limit = |item: &tables::Item| item.get("rate_limit").and_then(|value| value.as_n().ok()).cloned();
    let settings = |item| [text(item, "status"), text(item, "project_id"), limit(item)].map(Option::unwrap_or_default);
    items.iter().map(|item| (text(item, "name").expect("a name"), settings(item))).collect()
}

/// One test, because a deployment takes a while, and two concurrent first deployments would create the same
/// bucket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_is_proven_to_work_or_the_reason_why_it_does_not_is_shown() {
    let policies = Policies::start().await;
    let endpoint = policies.endpoint();
    let state = build_with("deploy-good", "", "");
    let texts = [
        "account  000000000000",
        "deploy, which is new",
        "HTTP 202, x-batch-id: ",
        "HTTP 202, idempotency-replayed: true, x-batch-id: ",
        "HTTP 422",
        "HTTP 200",
        "is revoked",
        "The log has it: outcome accepted",
        "event-ingest-keys",
        "create --project",
        "curl -i",
        "NOBODY IS ALERTED: the alarm topic has no confirmed subscriber",
        "aws sns subscribe",
    ];
    // The local AWS has no CodeDeploy.
    let options = ["--yes", "--param", "CanaryDeployment=false"];
    assert_run(deploy_at(&endpoint, "prod", "deploy", &state, &options), 0, &texts);
    assert_eq!(statuses_of_keys("deploy").await, ["revoked"]);

    let verify = || run_at(&endpoint, "verify.py", &["dev", "--stack", "deploy"]);
    assert_run(verify(), 0, &["The stack works"]);
    // The local AWS can lose the log line of a sandbox that is not used again, so all requests use one.
    let load = ["dev", "--stack", "deploy", "--rate", "5", "--seconds", "2", "--connections", "1", "--yes"];
    let texts = ["10 sent, 10 accepted", "cost     about $0.00", "10  202", "in the log as accepted: 10 of 10"];
    assert_run(run_at(&endpoint, "load.py", &load), 0, &texts);
    for (operation, resource, reason) in [
        ("SendMessageBatch", "deploy-Queue", "SendMessageBatch: AccessDeniedException"),
        ("PutItem", "deploy-StateTable", "cause: PutItem on the state table: AccessDeniedException"),
        (
            "UpdateItem",
            "deploy-StateTable",
            "limiter_failure: UpdateItem (rate window) on the state table: AccessDenied",
        ),
    ] {
        policies.deny(Some(Denial { operation, resource }));
        assert_run(verify(), 1, &["The stack is deployed, but does not work", reason]);
    }
    policies.deny(Some(Denial { operation: "PutItem", resource: "deploy-ApiKeysTable" }));
    assert_run(verify(), 1, &["No temporary API key could be created", "dynamodb:PutItem"]);
    // Every run has revoked its key.
    let statuses = statuses_of_keys("deploy").await;
    assert!(statuses.len() == 6 && statuses.iter().all(|status| status == "revoked"), "{statuses:?}");

    policies.deny(None);
    // The local AWS does not turn on the backups that the template demands.
    let drill = || run_at(&endpoint, "keys_backup.py", &["drill", "dev", "--stack", "deploy"]);
    assert_run(drill(), 1, &["Point-in-time recovery of deploy-ApiKeysTable", "update-continuous-backups"]);
    let recovery = PointInTimeRecoverySpecification::builder().point_in_time_recovery_enabled(true).build();
    let backups = Client::new(&local_aws::sdk().await)
        .update_continuous_backups()
        .table_name(api_keys_table("deploy").await)
        .point_in_time_recovery_specification(recovery.expect("complete"));
    backups.send().await.expect("backups are turned on");
    assert_run(drill(), 0, &["The backup has all 6 keys"]);
    let listed = Client::new(&local_aws::sdk().await).list_tables().send().await.expect("the tables");
    assert!(listed.table_names().iter().all(|name| !name.contains("drill")), "{:?}", listed.table_names());

    let state = build_with("deploy-bad", " STATE_TABLE:", " STATE_TABEL:");
    let texts = [
        "deploy, now CREATE_COMPLETE",
        "The stack is deployed, but does not work",
        "Its function cannot start",
        "bad configuration: STATE_TABLE is required",
    ];
    assert_run(deploy_at(&endpoint, "dev", "deploy", &state, &["--yes"]), 1, &texts);
}

#[tokio::test]
async fn keys_are_repaired_from_a_backup_and_no_revoked_key_becomes_active() {
    let sdk = local_aws::sdk().await;
    for table in ["keys-backup", "keys-damaged"] {
        tables::create_api_keys_table(&sdk, table).await;
    }
    let key = |number: u8| format!("sk_live_{number:032}");
    let put = async |table: &str, number: u8, name: &str, status: &str, project: &str| {
        tables::put_api_key(&sdk, table, &key(number), project, &[("name", s(name)), ("status", s(status))]).await;
    };
    for (number, name) in [(1, "equal"), (2, "lost"), (3, "moved"), (4, "revoked since"), (7, "lost and revoked")] {
        put("keys-backup", number, name, "active", "acme").await;
    }
    put("keys-backup", 5, "revoked before", "revoked", "acme").await;
    put("keys-damaged", 1, "equal", "active", "acme").await;
    put("keys-damaged", 3, "moved", "active", "evil").await;
    put("keys-damaged", 4, "revoked since", "revoked", "evil").await;
    put("keys-damaged", 5, "revoked before", "active", "acme").await;
    put("keys-damaged", 6, "newer", "active", "acme").await;

    let tool = |options: &[&str]| {
        let tables = ["--from", "keys-backup", "--to", "keys-damaged"];
        run_at(&endpoint(), "keys_backup.py", &[options, &tables].concat())
    };
    let state = |status: &str, project: &str| [status.to_owned(), project.to_owned(), String::new()];
    let before = keys("keys-damaged").await;
    let shown = ["lost of acme): missing; would be active", "evil now", "not in the backup", "6 keys differ"];
    assert_run(tool(&["compare"]), 0, &shown);
    assert_run(tool(&["copy"]), 1, &["Nobody is there to confirm this"]);
    assert_eq!(keys("keys-damaged").await, before);

    // Without --overwrite, only what is missing is copied.
    let hint = ApiKey::parse(&key(7)).expect("a key").hint();
    assert_run(tool(&["copy", "--yes", "--revoked", &hint]), 0, &["copy as revoked", "2 of 2 keys were written"]);
    let mut expected = before;
    expected.insert("lost".to_owned(), state("active", "acme"));
    expected.insert("lost and revoked".to_owned(), state("revoked", "acme"));
    assert_eq!(keys("keys-damaged").await, expected);

    assert_run(tool(&["copy", "--overwrite", "--yes"]), 0, &["3 of 3 keys were written"]);
    expected.insert("moved".to_owned(), state("active", "acme"));
    expected.insert("revoked since".to_owned(), state("revoked", "acme"));
    expected.insert("revoked before".to_owned(), state("revoked", "acme"));
    assert_eq!(keys("keys-damaged").await, expected);

    assert_run(tool(&["copy", "--overwrite", "--reactivate", "--yes"]), 0, &["2 of 2 keys were written"]);
    expected.insert("revoked since".to_owned(), state("active", "acme"));
    expected.insert("lost and revoked".to_owned(), state("active", "acme"));
    assert_eq!(keys("keys-damaged").await, expected);
}

#[test]
fn nothing_is_built_without_credentials_region_profile_or_confirmation() {
    let temporary = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let state = temporary.join("deploy-refused");
    // As a guided deployment saves the region.
    let saved = temporary.join("saved-region.toml");
    let profile = "version = 0.1\n[prod.global.parameters]\nregion = \"eu-west-1\"\n\
                   [prod.deploy.parameters]\nstack_name = \"refused\"\n";
    std::fs::write(&saved, profile).expect("room on the disk");
    let paths = ["--state-dir", state.to_str().expect("UTF-8"), "--no-build"];
    let deploy =
        |options: &[&str], environment: &[(&str, &str)]| run("deploy.py", &[options, &paths].concat(), environment);
    assert_run(deploy(&["dev"], &CREDENTIALS[2..]), 1, &["There are no AWS credentials that work"]);
    assert_run(deploy(&["dev"], &CREDENTIALS[..2]), 1, &["No AWS region is set"]);
    assert_run(deploy(&["staging"], &CREDENTIALS), 1, &["samconfig.toml has no profile staging; it has: dev, prod"]);
    assert_run(deploy_at(&endpoint(), "dev", "refused", &state, &[]), 1, &["Nobody is there to confirm this"]);

    let saved = ["prod", "--config-file", saved.to_str().expect("UTF-8")];
    let deploy_to = |options: &[&str], region: Option<(&str, &str)>| {
        let endpoint = endpoint();
        let environment: Vec<_> =
            CREDENTIALS[..2].iter().copied().chain(region).chain([("AWS_ENDPOINT_URL", endpoint.as_str())]).collect();
        deploy(&[&saved, options].concat(), &environment)
    };
    let other = Some(("AWS_REGION", "us-east-1"));
    // The environment takes precedence, and a difference is shown and must be confirmed.
    let difference = ["region   us-east-1, although samconfig.toml has eu-west-1", "AWS_REGION is us-east-1, but"];
    assert_run(deploy_to(&[], other), 1, &[&difference[..], &["Nobody is there to confirm this"]].concat());
    assert_run(
        deploy_to(&["--yes"], other),
        1,
        &[&difference[..], &["nothing deployed.", "REGION=us-east-1 YES=1"]].concat(),
    );
    // Without a difference, the question is the usual one.
    for (options, region, shown) in [
        (&[][..], None, "region   eu-west-1\n"),
        (&[], Some(("AWS_REGION", "eu-west-1")), "region   eu-west-1\n"),
        (&[], Some(("AWS_DEFAULT_REGION", "us-east-1")), "although samconfig.toml has eu-west-1"),
        (&["--region", "us-east-1"], Some(("AWS_REGION", "eu-west-1")), "region   us-east-1, although"),
    ] {
        assert_run(deploy_to(options, region), 1, &[shown, "Nobody is there to confirm this"]);
    }
    assert!(!state.exists(), "a build was made");
}
