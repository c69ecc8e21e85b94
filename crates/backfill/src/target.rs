//! `--url`: the address of the service.

use reqwest::Url;
use std::net::IpAddr;

/// The endpoint. It queues the valid events of a request even if others are rejected.
const PATH: &str = "/api/v1/events/bulk";
/// Other endpoints, which a pasted URL can contain.
const OTHER_PATHS: [&str; 2] = ["/api/v1/events/batch", "/api/v1/events"];

/// The service to which batches are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    base_url: String,
    url: Url,
}

impl Target {
    /// Parses a base URL, with or without the path of an endpoint.
    ///
    /// # Errors
    /// The message says what a valid URL looks like.
    pub fn parse(text: &str) -> Result<Self, String> {
        let base_url = text.trim_end_matches('/');
        let endpoint = [PATH].into_iter().chain(OTHER_PATHS).find_map(|path| base_url.strip_suffix(path));
        let base_url = endpoint.unwrap_or(base_url);
        let usage = "must be a URL such as https://api.example.com";
        // Without a host, the parser would take the first segment of the path for it.
        Url::parse(base_url).map_err(|_| usage.to_owned())?;
        let url = Url::parse(&format!("{base_url}{PATH}")).map_err(|_| usage.to_owned())?;
        if !matches!(url.scheme(), "http" | "https")
            || !url.has_host()
            || url.query().is_some()
            || base_url.contains('#')
        {
            return Err(usage.to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not contain a user name or password".to_owned());
        }
        Ok(Self { base_url: base_url.to_owned(), url })
    }

    /// The URL without the endpoint's path.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// The URL of the endpoint.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The host, for messages.
    pub fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }

    /// Whether requests are encrypted.
    pub fn is_https(&self) -> bool {
        self.url.scheme() == "https"
    }

    /// Whether the API key would cross a network unencrypted.
    pub fn is_exposed(&self) -> bool {
        let host = self.host().trim_matches(['[', ']']);
        let is_local = host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
        !self.is_https() && !is_local
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
            ("http://127.0.0.1:4566/api/v1/events/bulk/", "http://127.0.0.1:4566"),
        ] {
            let target = Target::parse(text).unwrap();
            assert_eq!(target.base_url(), base_url);
            assert_eq!(target.url().to_string(), format!("{base_url}/api/v1/events/bulk"));
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
