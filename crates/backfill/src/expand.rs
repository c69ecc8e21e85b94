//! Directories and patterns on the command line → files.

use crate::error::Error;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The parts of the names of a run's own files, which are not its input.
const OWN_FILES: [&str; 2] = [".checkpoint.json", ".rejects.ndjson"];

/// Replaces each directory by its files, and each pattern by the files that match it, in alphabetical order.
///
/// # Errors
/// If a directory cannot be read or contains directories, or there are no files.
pub fn expand(arguments: Vec<PathBuf>) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    for path in arguments {
        let is_pattern = path.to_str().is_some_and(|text| text.contains(['*', '?', '[']));
        let found = if path.is_dir() {
            in_directory(&path)?
        } else if is_pattern && !path.exists() {
            matching(&path)?
        } else {
            files.push(path);
            continue;
        };
        if found.is_empty() {
            return Err(Error::Usage(format!("{}: there are no files", path.display())));
        }
        files.extend(found);
    }
    Ok(files)
}

fn in_directory(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let unreadable = |error| Error::Usage(format!("{}: {error}", directory.display()));
    let entries = std::fs::read_dir(directory).map_err(unreadable)?;
    let paths =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    let mut paths: Vec<_> = paths.into_iter().filter(|path| is_input(path)).collect();
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
    Ok(paths.into_iter().filter(|path| !path.is_dir() && is_input(path)).collect())
}

/// Hidden files, markers such as `_SUCCESS`, and the files of earlier runs are not inputs.
fn is_input(path: &Path) -> bool {
    let name = path.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
    !name.starts_with(['.', '_']) && !OWN_FILES.iter().any(|part| name.contains(part))
}
