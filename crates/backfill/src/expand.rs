//! Directories and patterns on the command line → files and objects.

use crate::error::Error;
use crate::location::Location;
use crate::s3::{Object, S3};
use glob::Pattern;
use std::path::{Path, PathBuf};

/// The characters that make an argument a pattern.
const WILDCARDS: [char; 3] = ['*', '?', '['];

/// The parts of the names of a run's own files, which are not its input.
const OWN_FILES: [&str; 2] = [".checkpoint.json", ".rejects.ndjson"];

/// What a URL of Amazon S3 begins with.
const S3_SCHEME: &str = "s3://";

/// Replaces each directory by its files, and each pattern by the files that match it, in alphabetical order; likewise
/// for objects in Amazon S3. `-` is standard input.
///
/// # Errors
/// If a directory cannot be read or contains directories, or there are no files.
pub fn expand(arguments: Vec<PathBuf>) -> Result<Vec<Location>, Error> {
    let mut found = Vec::new();
    let mut s3 = None;
    for path in arguments {
        if path == Path::new("-") {
            found.push(Location::Stdin);
        } else if let Some(place) = path.to_str().and_then(|text| text.strip_prefix(S3_SCHEME)) {
            let s3 = match &mut s3 {
                Some(s3) => s3,
                none => none.insert(S3::connect()?),
            };
            found.extend(objects(s3, place)?.into_iter().map(Location::Object));
        } else {
            found.extend(files(path)?.into_iter().map(Location::File));
        }
    }
    Ok(found)
}

fn files(path: PathBuf) -> Result<Vec<PathBuf>, Error> {
    let is_pattern = path.to_str().is_some_and(|text| text.contains(WILDCARDS));
    let found = if path.is_dir() {
        in_directory(&path)?
    } else if is_pattern && !path.exists() {
        matching(&path)?
    } else {
        return Ok(vec![path]);
    };
    if found.is_empty() {
        return Err(Error::Usage(format!("{}: there are no files", path.display())));
    }
    Ok(found)
}

/// The objects that `place`, a bucket and a key, a directory or a pattern, stands for.
fn objects(s3: &S3, place: &str) -> Result<Vec<Object>, Error> {
    let usage = |reason: &str| Error::Usage(format!("{S3_SCHEME}{place}: {reason}"));
    let (bucket, key) = place.split_once('/').unwrap_or((place, ""));
    if bucket.is_empty() {
        return Err(usage("must be s3://BUCKET/KEY"));
    }
    if key.is_empty() || key.ends_with('/') {
        let (objects, directories) = s3.list(bucket, key, false)?;
        if let Some(inner) = directories.iter().find(|directory| is_input(directory.trim_end_matches('/'))) {
            return Err(usage(&format!(
                "contains {S3_SCHEME}{bucket}/{inner}. To read all objects below it, pass '{S3_SCHEME}{bucket}/{key}*'"
            )));
        }
        return some_inputs(objects).ok_or_else(|| usage("there are no objects"));
    }
    let Some(wildcard) = key.find(WILDCARDS) else {
        let missing = || usage(&format!("there is no such object. A directory ends with /: {S3_SCHEME}{place}/"));
        return s3.object(bucket, key)?.map(|object| vec![object]).ok_or_else(missing);
    };
    let pattern = Pattern::new(key).map_err(|error| usage(&error.to_string()))?;
    let (objects, _) = s3.list(bucket, &key[..wildcard], true)?;
    if let Some(exact) = objects.iter().find(|object| object.key() == key) {
        return Ok(vec![exact.clone()]);
    }
    // A key is a single string, so a wildcard matches `/`, too.
    let matching = objects.into_iter().filter(|object| pattern.matches(object.key())).collect();
    some_inputs(matching).ok_or_else(|| usage("there are no objects"))
}

fn some_inputs(mut objects: Vec<Object>) -> Option<Vec<Object>> {
    // The console makes an empty object for each directory that it creates.
    objects.retain(|object| !object.key().ends_with('/') && is_input(object.key()));
    (!objects.is_empty()).then_some(objects)
}

fn in_directory(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let unreadable = |error| Error::Usage(format!("{}: {error}", directory.display()));
    let entries = std::fs::read_dir(directory).map_err(unreadable)?;
    let paths =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    let mut paths: Vec<_> = paths.into_iter().filter(|path| is_input(&path.to_string_lossy())).collect();
    if let Some(inner) = paths.iter().find(|path| path.is_dir()) {
        return Err(Error::Usage(format!(
            "{} contains the directory {}. To read all files below it, pass the pattern '{}/**/*'",
            directory.display(),
            inner.display(),
            directory.display()
        )));
    }
    paths.sort();
    Ok(paths)
}

fn matching(pattern: &Path) -> Result<Vec<PathBuf>, Error> {
    let invalid = |reason: String| Error::Usage(format!("{}: {reason}", pattern.display()));
    let paths = glob::glob(&pattern.to_string_lossy()).map_err(|error| invalid(error.to_string()))?;
    let paths = paths.collect::<Result<Vec<_>, _>>().map_err(|error| invalid(error.to_string()))?;
    Ok(paths.into_iter().filter(|path| !path.is_dir() && is_input(&path.to_string_lossy())).collect())
}

/// Hidden files, markers such as `_SUCCESS`, and the files of earlier runs are not inputs.
fn is_input(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    !name.starts_with(['.', '_']) && !OWN_FILES.iter().any(|part| name.contains(part))
}
