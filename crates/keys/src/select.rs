//! Finds the key that a command applies to.

use crate::args::KeySelector;
use crate::key::StoredKey;

/// Why no single key was selected.
#[derive(Debug, PartialEq, Eq)]
pub enum SelectError {
    NoMatch,
    /// The matching keys.
    SeveralMatch(Vec<StoredKey>),
}

/// Returns the one key that matches `selector`.
///
/// Revoked keys are considered only if no other key matches, because a name can be reused after a
/// revocation.
pub fn select(keys: Vec<StoredKey>, selector: &KeySelector) -> Result<StoredKey, SelectError> {
    let matches = |key: &StoredKey| {
        selector.hint.as_ref().is_none_or(|hint| *hint == key.hint)
            && selector.name.as_ref().is_none_or(|name| *name == key.name)
            && selector.project.as_ref().is_none_or(|project| project.as_str() == key.project)
    };
    let (mut revoked, mut others): (Vec<_>, Vec<_>) = keys.into_iter().filter(matches).partition(StoredKey::is_revoked);
    match (others.pop(), revoked.pop()) {
        (Some(key), _) if others.is_empty() => Ok(key),
        (Some(key), _) => {
            others.push(key);
            Err(SelectError::SeveralMatch(others))
        }
        // If several revoked keys match, any of them will do: no command changes a revoked key.
        (None, Some(key)) => Ok(key),
        (None, None) => Err(SelectError::NoMatch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::tenant::ProjectId;

    fn key(hint: &str, project: &str, name: &str, status: &str) -> StoredKey {
        StoredKey {
            hint: hint.to_owned(),
            project: project.to_owned(),
            name: name.to_owned(),
            status: status.to_owned(),
            ..StoredKey::default()
        }
    }

    /// Selects by the arguments that are not empty. Returns the key's hint, or the hints of all
    /// matching keys.
    fn selected(hint: &str, project: &str, name: &str) -> Result<String, Vec<String>> {
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
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let selector = KeySelector { hint: given(hint), name: given(name), project: ProjectId::parse(project) };
        select(keys, &selector).map(|key| key.hint).map_err(|error| match error {
            SelectError::NoMatch => Vec::new(),
            SelectError::SeveralMatch(keys) => keys.into_iter().map(|key| key.hint).collect(),
        })
    }

    #[test]
    fn the_key_must_match_every_argument() {
        assert_eq!(selected("a", "", "").unwrap(), "a");
        assert_eq!(selected("", "acme", "web").unwrap(), "a");
        assert_eq!(selected("", "beta", "web").unwrap(), "e");
        assert_eq!(selected("x", "beta", "").unwrap(), "x");
        assert_eq!(selected("x", "", "twin").unwrap_err(), ["x", "x"]);
        assert_eq!(selected("c", "acme", "job").unwrap(), "c");
        assert!(selected("a", "beta", "").unwrap_err().is_empty());
        assert!(selected("A", "", "").unwrap_err().is_empty());
        assert!(selected("", "acme", "we").unwrap_err().is_empty());
    }

    #[test]
    fn an_ambiguous_selection_names_every_match_except_revoked_keys() {
        assert_eq!(selected("", "acme", "job").unwrap_err(), ["b", "c"]);
    }

    #[test]
    fn a_revoked_key_is_selected_only_if_no_other_key_matches() {
        assert_eq!(selected("", "beta", "new").unwrap(), "i");
        assert_eq!(selected("h", "", "").unwrap(), "h");
        assert!(["f", "g"].contains(&selected("", "beta", "old").unwrap().as_str()));
        assert_eq!(selected("", "beta", "odd").unwrap(), "j");
    }
}
