//! Finds the one key that is meant.

use crate::args::Which;
use crate::render;
use event_ingest::aws::key_admin::StoredKey;
use std::fmt;

/// Why it is not clear which key is meant.
#[derive(Debug, PartialEq, Eq)]
pub enum Unclear {
    /// No key fits.
    NoneFits,
    /// Several fit, and these are they.
    SeveralFit(Vec<StoredKey>),
}

impl fmt::Display for Unclear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoneFits => f.write_str("no such key; `event-ingest-keys list` shows those there are"),
            Self::SeveralFit(keys) => {
                write!(f, "several keys fit; give the --hint of the one you mean:\n\n{}", render::table(keys))
            }
        }
    }
}

/// The one key that `which` means. One that is not revoked goes before any that are, so that a
/// name may be used again after a revocation.
///
/// # Errors
/// Where none fits, or several equally well.
pub fn choose(keys: Vec<StoredKey>, which: &Which) -> Result<StoredKey, Unclear> {
    let fits = |key: &StoredKey| {
        which.hint.as_ref().is_none_or(|hint| *hint == key.hint)
            && which.name.as_ref().is_none_or(|name| *name == key.name)
            && which.project.as_ref().is_none_or(|project| project.as_str() == key.project)
    };
    let (mut revoked, mut current): (Vec<_>, Vec<_>) = keys.into_iter().filter(fits).partition(StoredKey::is_revoked);
    match (current.pop(), revoked.pop()) {
        (Some(key), _) if current.is_empty() => Ok(key),
        (Some(key), _) => {
            current.push(key);
            Err(Unclear::SeveralFit(current))
        }
        // Of several revoked ones any will do: there is nothing left to be done to it.
        (None, Some(key)) => Ok(key),
        (None, None) => Err(Unclear::NoneFits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_ingest::auth::ProjectId;

    fn key(hint: &str, project: &str, name: &str, status: &str) -> StoredKey {
        StoredKey {
            hint: hint.to_owned(),
            project: project.to_owned(),
            name: name.to_owned(),
            status: status.to_owned(),
            ..StoredKey::default()
        }
    }

    fn which(hint: &str, project: &str, name: &str) -> Which {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Which { hint: given(hint), name: given(name), project: ProjectId::parse(project) }
    }

    fn chosen(which: &Which) -> Result<String, Vec<String>> {
        let keys = vec![
            key("a", "acme", "web", "active"),
            key("b", "acme", "job", "active"),
            key("c", "acme", "job", "active"),
            key("d", "acme", "job", "revoked"),
            key("e", "beta", "web", "active"),
            key("f", "beta", "old", "revoked"),
            key("g", "beta", "old", "revoked"),
            key("h", "beta", "new", "revoked"),
            key("i", "beta", "new", "active"),
            key("j", "beta", "odd", "paused"),
            key("x", "acme", "twin", "active"),
            key("x", "beta", "twin", "active"),
        ];
        choose(keys, which).map(|key| key.hint).map_err(|unclear| match unclear {
            Unclear::NoneFits => Vec::new(),
            Unclear::SeveralFit(keys) => keys.into_iter().map(|key| key.hint).collect(),
        })
    }

    #[test]
    fn one_key_must_fit_all_that_is_said() {
        assert_eq!(chosen(&which("a", "", "")).unwrap(), "a");
        assert_eq!(chosen(&which("", "acme", "web")).unwrap(), "a");
        assert_eq!(chosen(&which("", "beta", "web")).unwrap(), "e");
        assert_eq!(chosen(&which("x", "beta", "")).unwrap(), "x");
        assert_eq!(chosen(&which("x", "", "twin")).unwrap_err(), ["x", "x"]);
        assert_eq!(chosen(&which("c", "acme", "job")).unwrap(), "c");
        assert!(chosen(&which("a", "beta", "")).unwrap_err().is_empty());
        assert!(chosen(&which("A", "", "")).unwrap_err().is_empty());
        assert!(chosen(&which("", "acme", "we")).unwrap_err().is_empty());
    }

    #[test]
    fn several_candidates_are_all_told_and_revoked_ones_are_none() {
        assert_eq!(chosen(&which("", "acme", "job")).unwrap_err(), ["b", "c"]);
    }

    #[test]
    fn a_revoked_key_is_meant_only_where_no_other_fits() {
        assert_eq!(chosen(&which("", "beta", "new")).unwrap(), "i");
        assert_eq!(chosen(&which("h", "", "")).unwrap(), "h");
        assert!(["f", "g"].contains(&chosen(&which("", "beta", "old")).unwrap().as_str()));
        assert_eq!(chosen(&which("", "beta", "odd")).unwrap(), "j");
    }
}
