//! Objects in Amazon S3. Each is pinned when it is found: every later request reads exactly that version, or fails.
//!
//! Inputs are read by blocking code, so the SDK runs on a thread of its own.

use crate::error::{Error, Unreadable, causes};
use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::ProvideCredentials;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::list_objects_v2::{ListObjectsV2Error, ListObjectsV2Output};
use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_runtime_api::client::http::{HttpConnectorSettings, SharedHttpConnector, http_client_fn};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use bytes::Bytes;
use std::error::Error as StdError;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// The longest wait for a connection, for each attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest wait for the first byte of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Outside of AWS, the search for credentials ends with requests to an address that does not answer.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(10);
/// How many times in a row a read is resumed without progress after a lost connection. The SDK also makes up to three
/// attempts for each request, which do not count.
const MAX_RESUMES: u32 = 8;
/// The wait before the first resumption. It doubles each time, up to [`MAX_WAIT`]: half a minute in total.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const MAX_WAIT: Duration = Duration::from_secs(8);
/// What counts as progress, in bytes.
const PROGRESS_BYTES: usize = 64 * 1024;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection to Amazon S3.
#[derive(Clone)]
pub struct S3 {
    client: Client,
    tasks: UnboundedSender<Task>,
}

/// An object as it was when it was found.
#[derive(Clone)]
pub struct Object {
    s3: S3,
    bucket: String,
    key: String,
    url: String,
    etag: String,
    size: u64,
}

impl S3 {
    /// Takes region, credentials and endpoint from the usual AWS settings.
    ///
    /// # Errors
    /// If there is no region or there are no credentials.
    pub fn connect() -> Result<Self, Error> {
        let (tasks, mut queue) = unbounded_channel::<Task>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Error::Aborted(format!("cannot start a runtime for S3: {error}")))?;
        std::thread::spawn(move || {
            runtime.block_on(async {
                while let Some(task) = queue.recv().await {
                    tokio::spawn(task);
                }
            });
        });
        let client = complete(&tasks, client())?.map_err(Error::Usage)?;
        Ok(Self { client, tasks })
    }

    /// Finds an object; `None` if there is none with this key.
    ///
    /// # Errors
    /// If S3 refuses the request or does not answer.
    pub fn object(&self, bucket: &str, key: &str) -> Result<Option<Object>, Error> {
        // Not HeadObject, whose errors have no code. The body is not read.
        let request = self.client.get_object().bucket(bucket).key(key);
        match complete(&self.tasks, request.send())? {
            Ok(found) => Ok(Some(self.pinned(bucket, key, found.e_tag(), found.content_length()))),
            Err(error) if error.code() == Some("NoSuchKey") => Ok(None),
            Err(error) => {
                let reason = failure(&error, bucket, &get_permission(bucket, key)).into_reason();
                Err(Error::Usage(format!("{}: {reason}", url(bucket, key))))
            }
        }
    }

    /// All objects whose keys begin with `prefix`, in the order of their keys. Unless `recursive`, keys with another
    /// `/` are left out; these keys up to that `/` are the second result.
    ///
    /// # Errors
    /// If S3 refuses a request or does not answer.
    pub fn list(&self, bucket: &str, prefix: &str, recursive: bool) -> Result<(Vec<Object>, Vec<String>), Error> {
        let delimiter = (!recursive).then(|| "/".to_owned());
        let request = self.client.list_objects_v2().bucket(bucket).prefix(prefix).set_delimiter(delimiter);
        let pages = complete(&self.tasks, async move {
            let (mut pages, mut found) = (request.into_paginator().send(), Vec::new());
            while let Some(page) = pages.next().await {
                found.push(page?);
            }
            Ok::<_, SdkError<ListObjectsV2Error, HttpResponse>>(found)
        })?;
        let pages = pages.map_err(|error| {
            let permission = format!("s3:ListBucket on arn:aws:s3:::{bucket}");
            Error::Usage(format!("{}: {}", url(bucket, prefix), failure(&error, bucket, &permission).into_reason()))
        })?;
        let directories = pages.iter().flat_map(ListObjectsV2Output::common_prefixes);
        let directories = directories.filter_map(|directory| directory.prefix().map(str::to_owned)).collect();
        let mut objects: Vec<_> = pages
            .iter()
            .flat_map(ListObjectsV2Output::contents)
            .filter_map(|object| Some(self.pinned(bucket, object.key()?, object.e_tag(), object.size())))
            .collect();
        // Directory buckets return them in no particular order.
        objects.sort_by(|one, other| one.key.cmp(&other.key));
        Ok((objects, directories))
    }

    fn pinned(&self, bucket: &str, key: &str, etag: Option<&str>, size: Option<i64>) -> Object {
        Object {
            s3: self.clone(),
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            url: url(bucket, key),
            etag: etag.unwrap_or_default().to_owned(),
            size: size.and_then(|size| u64::try_from(size).ok()).unwrap_or_default(),
        }
    }
}

impl Object {
    /// Its URL, `s3://bucket/key`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The name of its bucket.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Its key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The entity tag, which changes when the object is replaced.
    pub fn etag(&self) -> &str {
        &self.etag
    }

    /// Its size, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Requests a range of bytes, which must not be empty. The receiver gets all of them, or the error.
    pub fn fetch(&self, range: Range<u64>) -> Receiver<io::Result<Bytes>> {
        let (sender, receiver) = mpsc::channel();
        let object = self.clone();
        spawn(&self.s3.tasks, async move {
            // Fails if the bytes are no longer needed.
            let _ = sender.send(object.read(range).await.map_err(|reason| io::Error::other(Unreadable(reason))));
        });
        receiver
    }

    /// Reads a range. If the connection is lost, continues at the byte that was reached.
    async fn read(&self, range: Range<u64>) -> Result<Bytes, String> {
        let mut bytes = Vec::with_capacity(usize::try_from(range.end - range.start).unwrap_or_default());
        let (mut resumes, mut wait, mut reached) = (0, FIRST_WAIT, 0);
        loop {
            let start = range.start + bytes.len() as u64;
            if start >= range.end {
                return Ok(bytes.into());
            }
            let Err(failure) = self.read_once(start..range.end, &mut bytes).await else { continue };
            if bytes.len() >= reached + PROGRESS_BYTES {
                (resumes, wait, reached) = (0, FIRST_WAIT, bytes.len());
            }
            if resumes == MAX_RESUMES || matches!(failure, Failure::Lasting(_)) {
                return Err(failure.into_reason());
            }
            resumes += 1;
            tokio::time::sleep(wait).await;
            wait = MAX_WAIT.min(wait * 2);
        }
    }

    /// Makes one request, and appends what arrives to `bytes`.
    async fn read_once(&self, range: Range<u64>, bytes: &mut Vec<u8>) -> Result<(), Failure> {
        let request = self.s3.client.get_object().bucket(&self.bucket).key(&self.key);
        let wanted = format!("bytes={}-{}", range.start, range.end - 1);
        let response = request.if_match(&self.etag).range(wanted).send().await;
        let response =
            response.map_err(|error| failure(&error, &self.bucket, &get_permission(&self.bucket, &self.key)))?;
        // A server that is not Amazon S3 may ignore either header.
        if response.e_tag() != Some(&self.etag) {
            return Err(Failure::Lasting(REPLACED.to_owned()));
        }
        let expected = format!("bytes {}-{}/", range.start, range.end - 1);
        if !response.content_range().is_some_and(|sent| sent.starts_with(&expected)) {
            return Err(Failure::Lasting("the server did not return the range of bytes that was requested".to_owned()));
        }
        append(response.body, bytes).await
    }
}

async fn append(mut body: ByteStream, bytes: &mut Vec<u8>) -> Result<(), Failure> {
    while let Some(part) = body.next().await {
        bytes.extend_from_slice(&part.map_err(|error| Failure::Passing(with_causes(&error)))?);
    }
    Ok(())
}

/// Why a request failed.
enum Failure {
    /// A retry may succeed.
    Passing(String),
    /// A retry will fail, too.
    Lasting(String),
}

impl Failure {
    fn into_reason(self) -> String {
        match self {
            Self::Passing(reason) => format!("no complete answer from S3: {reason}"),
            Self::Lasting(reason) => reason,
        }
    }
}

const REPLACED: &str = "the object was replaced after the run had found it. Restore the earlier version, and run the same \
                        command again";

/// Explains an error, and what to do. `permission` is the one that the request needs.
fn failure<E>(error: &SdkError<E, HttpResponse>, bucket: &str, permission: &str) -> Failure
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    let Some(response) = error.raw_response().filter(|_| error.as_service_error().is_some()) else {
        let reason = with_causes(error);
        return match error {
            SdkError::ConstructionFailure(_) => Failure::Lasting(reason),
            _ => Failure::Passing(format!("{reason}; check the network, AWS_REGION and AWS_ENDPOINT_URL")),
        };
    };
    let (status, code) = (response.status().as_u16(), error.code().unwrap_or("no code"));
    let details = format!("{status} {code}: {}", error.message().unwrap_or("no message"));
    let region = response.headers().get("x-amz-bucket-region");
    Failure::Lasting(match (code, status) {
        (_, 500..) | ("SlowDown" | "RequestTimeout", _) => return Failure::Passing(details),
        ("PreconditionFailed", _) | (_, 412) => REPLACED.to_owned(),
        ("NoSuchBucket", _) => format!("there is no bucket {bucket}"),
        ("NoSuchKey", _) => "the object was deleted after the run had found it. Restore it, and run the same command \
                             again"
            .to_owned(),
        ("InvalidObjectState", _) => "the object is archived. Restore it first, with `aws s3api restore-object`, and \
                                      run the same command again"
            .to_owned(),
        (
            "PermanentRedirect"
            | "TemporaryRedirect"
            | "AuthorizationHeaderMalformed"
            | "IllegalLocationConstraintException",
            _,
        )
        | (_, 301 | 307) => {
            let region = region.map_or("its region".to_owned(), |region| format!("AWS_REGION={region}"));
            format!("the bucket {bucket} is in another region: set {region} ({details})")
        }
        (
            "ExpiredToken" | "InvalidAccessKeyId" | "InvalidToken" | "SignatureDoesNotMatch" | "TokenRefreshRequired",
            _,
        ) => credentials(&details),
        ("AccessDenied" | "AllAccessDisabled" | "Forbidden", _) | (_, 403) => format!(
            "permission denied ({details}): the credentials need {permission}, and kms:Decrypt if the objects are \
             encrypted with a KMS key"
        ),
        _ => format!("S3 returned an error: {details}"),
    })
}

fn credentials(details: &str) -> String {
    format!(
        "no usable AWS credentials ({details}): set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log \
         in again"
    )
}

fn get_permission(bucket: &str, key: &str) -> String {
    format!("s3:GetObject on arn:aws:s3:::{bucket}/{key}")
}

fn url(bucket: &str, key: &str) -> String {
    format!("s3://{bucket}/{key}")
}

fn spawn(tasks: &UnboundedSender<Task>, task: impl Future<Output = ()> + Send + 'static) {
    // Fails if the thread has ended, which the receiver of the result notices.
    let _ = tasks.send(Box::pin(task));
}

/// Waits for the result of `future`, which runs on the thread of the SDK.
fn complete<T: Send + 'static>(
    tasks: &UnboundedSender<Task>,
    future: impl Future<Output = T> + Send + 'static,
) -> Result<T, Error> {
    let (sender, receiver) = mpsc::channel();
    spawn(tasks, async move {
        let _ = sender.send(future.await);
    });
    receiver.recv().map_err(|_| Error::Aborted("internal error: the thread that reads from S3 ended".to_owned()))
}

async fn client() -> Result<Client, String> {
    let sdk = sdk_config().await;
    if sdk.region().is_none_or(|region| region.as_ref().is_empty()) {
        return Err("no AWS region: set AWS_REGION, or set AWS_PROFILE to a profile that has a region".to_owned());
    }
    let provider = sdk.credentials_provider().ok_or_else(|| credentials("none configured"))?;
    match tokio::time::timeout(CREDENTIALS_TIMEOUT, provider.provide_credentials()).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(credentials(&with_causes(&error))),
        Err(_) => return Err(credentials("the search for them timed out")),
    }
    // Servers other than Amazon S3 often do not support host names with buckets.
    let has_endpoint = sdk.endpoint_url().is_some() || std::env::var_os("AWS_ENDPOINT_URL_S3").is_some();
    let config = aws_sdk_s3::config::Builder::from(&sdk).force_path_style(has_endpoint).build();
    Ok(Client::from_conf(config))
}

async fn sdk_config() -> SdkConfig {
    // The SDK's own builder ignores proxies.
    let settings = HttpConnectorSettings::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT).build();
    let connector = Connector::builder()
        .proxy_config(ProxyConfig::from_env())
        .connector_settings(settings)
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .build();
    let connector = SharedHttpConnector::new(connector);
    aws_config::defaults(BehaviorVersion::latest())
        .http_client(http_client_fn(move |_, _| connector.clone()))
        .load()
        .await
}

/// Formats an error and its causes on one line.
fn with_causes(error: &(dyn StdError + 'static)) -> String {
    causes(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
