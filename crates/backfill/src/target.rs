//! `--url`: the address of the service.

use hyper::http::Uri;
use std::net::IpAddr;

const PATH: &str = "/api/v1/events/batch";

/// The service to which batches are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    base_url: String,
    uri: Uri,
}

impl Target {
    /// Parses a base URL, with or without the endpoint's path.
    ///
    /// # Errors
    /// The message says what a valid URL looks like.
    pub fn parse(text: &str) -> Result<Self, String> {
        let base_url = text.trim_end_matches('/');
        let base_url = base_url.strip_suffix(PATH).unwrap_or(base_url);
        let usage = "must be a URL such as https://api.example.com";
        let uri: Uri = format!("{base_url}{PATH}").parse().map_err(|_| usage.to_owned())?;
        let authority = uri.authority().ok_or(usage)?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.query().is_some() || base_url.contains('#') {
            return Err(usage.to_owned());
        }
        if authority.as_str().contains('@') {
            return Err("must not contain a user name or password".to_owned());
        }
        Ok(Self { base_url: base_url.to_owned(), uri })
    }

    /// The URL without the endpoint's path.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// The URL of the endpoint.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Whether the API key would cross a network unencrypted.
    pub fn is_exposed(&self) -> bool {
        let host = self.uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let is_local = host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
        self.uri.scheme_str() == Some("http") && !is_local
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_base_url() {
        for (text, base_url) in [
            ("https://a.example", "https://a.example"),
            ("https://a.example/prod/", "https://a.example/prod"),
            ("http://127.0.0.1:4566/api/v1/events/batch", "http://127.0.0.1:4566"),
        ] {
            let target = Target::parse(text).unwrap();
            assert_eq!(target.base_url(), base_url);
            assert_eq!(target.uri().to_string(), format!("{base_url}/api/v1/events/batch"));
        }
        for bad in ["", "a.example", "/x", "ftp://a", "https://", "https://a?b", "https://a/#b", "https://u:p@a"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_plain_http_to_another_machine_is_exposed() {
        let exposed = |url| Target::parse(url).unwrap().is_exposed();
        assert!(exposed("http://a.example") && exposed("http://10.0.0.1:80") && exposed("http://localhost.example"));
        for url in ["https://a.example", "http://localhost:1", "http://127.0.0.2", "http://[::1]:4566"] {
            assert!(!exposed(url), "{url}");
        }
    }
}
