//! Takes the place of `s3` in a build without the feature `s3`: refuses every `s3://` argument.

use crate::error::Error;
use bytes::Bytes;
use std::convert::Infallible;
use std::io;
use std::ops::Range;
use std::sync::mpsc::Receiver;

/// Never exists.
#[derive(Clone)]
pub struct S3 {
    never: Infallible,
}

/// Never exists.
#[derive(Clone)]
pub struct Object {
    never: Infallible,
}

impl S3 {
    /// Fails and says how to build with the feature.
    ///
    /// # Errors
    /// Always.
    pub fn connect() -> Result<Self, Error> {
        Err(Error::Usage(
            "this build cannot read s3:// inputs: build it with `cargo build --release --locked -p event-ingest-backfill \
             --features s3`, or download the files with `aws s3 sync`"
                .to_owned(),
        ))
    }

    /// See the module `s3`.
    pub fn object(&self, _bucket: &str, _key: &str) -> Result<Option<Object>, Error> {
        match self.never {}
    }

    /// See the module `s3`.
    pub fn list(&self, _bucket: &str, _prefix: &str, _recursive: bool) -> Result<(Vec<Object>, Vec<String>), Error> {
        match self.never {}
    }
}

impl Object {
    /// See the module `s3`.
    pub fn url(&self) -> &str {
        match self.never {}
    }

    /// See the module `s3`.
    pub fn bucket(&self) -> &str {
        match self.never {}
    }

    /// See the module `s3`.
    pub fn key(&self) -> &str {
        match self.never {}
    }

    /// See the module `s3`.
    pub fn etag(&self) -> &str {
        match self.never {}
    }

    /// See the module `s3`.
    pub fn size(&self) -> u64 {
        match self.never {}
    }

    /// See the module `s3`.
    pub fn fetch(&self, _range: Range<u64>) -> Receiver<io::Result<Bytes>> {
        match self.never {}
    }
}
