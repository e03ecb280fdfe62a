//! Requests: who is asked, as whom, and what the answers mean.

use crate::error::Error;
use crate::hub_file;
use std::env;
use std::time::Duration;
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

/// Redirects that are followed.
const MOST_REDIRECTS: usize = 5;

/// Asks a server for files.
///
/// ```
/// use std::time::Duration;
/// let client = zoo_hub::Client::new("http://127.0.0.1:8080").token("hf_…").pause(Duration::ZERO);
/// assert!(!client.is_offline());
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    offline: bool,
    pub(crate) pause: Duration,
}

/// An answer: its status, what it says of the file, and the file.
pub(crate) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Body,
    /// Where it came from in the end.
    pub url: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What is wrong, in words, with an answer that has no file; `None` where it has one.
    pub fn refusal(&self, name: &str, has_token: bool) -> Option<Error> {
        let code = self.header("x-error-code").unwrap_or_default();
        let says = self.header("x-error-message").map_or(String::new(), |text| {
            format!(" ({})", text.chars().filter(|c| !c.is_control()).take(200).collect::<String>())
        });
        let absent = |why| Some(Error::Absent { name: name.into(), why });
        let why = match (self.status, code) {
            (200..=299, _) => return None,
            (_, "EntryNotFound") => return absent("the repository has no such file"),
            (_, "RevisionNotFound") => "the repository has no such branch, tag or commit".to_owned(),
            (_, "GatedRepo") => format!("its terms have to be accepted on the hub first{says}"),
            (401 | 403, _) if has_token => format!("the token in HF_TOKEN does not open it{says}"),
            (401 | 403, _) => {
                "there is no such repository, or it is not public: for that set HF_TOKEN, or log in with `hf auth login`".into()
            }
            (404, _) => return absent("there is no such file or repository"),
            (429, _) => "the server answers no more requests for now: try again in some minutes".to_owned(),
            (status, _) => format!("the server answered with status {status}{says}"),
        };
        Some(Error::Refused { name: name.into(), status: self.status, why })
    }
}

impl Client {
    /// Asks the server at `endpoint`, without a token.
    pub fn new(endpoint: impl Into<String>) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            // A transfer that hangs is broken off; what has come is kept, and it goes on from there.
            .timeout_recv_body(Some(Duration::from_secs(300)))
            .user_agent(concat!("candle-zoo/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        let endpoint = endpoint.into().trim_end_matches('/').to_owned();
        Self { agent, endpoint, token: None, offline: false, pause: Duration::from_secs(1) }
    }

    /// By the variables that Python's `huggingface_hub` reads: `HF_ENDPOINT`, `HF_TOKEN` or the file that a log-in wrote,
    /// `HF_HUB_OFFLINE`.
    pub fn from_environment() -> Self {
        let text = |name: &str| env::var(name).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let from_file = || std::fs::read_to_string(hub_file::token_file()?).ok().map(|text| text.trim().to_owned());
        let token = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")).or_else(from_file);
        let is_on =
            |name: &str| text(name).is_some_and(|on| ["1", "ON", "YES", "TRUE"].contains(&on.to_uppercase().as_str()));
        Self {
            token: token.filter(|token| !token.is_empty()),
            offline: is_on("HF_HUB_OFFLINE"),
            ..Self::new(text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()))
        }
    }

    /// With this token, which only the endpoint is told.
    pub fn token(self, token: impl Into<String>) -> Self {
        Self { token: Some(token.into()), ..self }
    }

    /// With this pause before a broken transfer goes on, doubled each time.
    pub fn pause(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    /// Whether nothing is to be asked for.
    pub fn is_offline(&self) -> bool {
        self.offline
    }

    pub(crate) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// The address of a repository's file.
    pub(crate) fn file_url(&self, repository: &str, revision: &str, file: &str) -> String {
        format!("{}/{repository}/resolve/{}/{}", self.endpoint, escaped(revision, false), escaped(file, true))
    }

    /// Asks for a file's head, or for the file from byte `from` on. Where `ends` says so, a redirect is the answer.
    pub(crate) fn ask(
        &self,
        name: &str,
        url: &str,
        from: Option<u64>,
        ends: impl Fn(&HeaderMap) -> bool,
    ) -> Result<Answer, Error> {
        let mut url = url.to_owned();
        for _ in 0..=MOST_REDIRECTS {
            let response = self.request(&url, from).map_err(|error| Error::Network {
                name: name.into(),
                host: host(&url).into(),
                why: error.to_string(),
            })?;
            let (parts, body) = response.into_parts();
            let (status, headers) = (parts.status.as_u16(), parts.headers);
            let location = headers.get("location").and_then(|to| to.to_str().ok()).map(str::to_owned);
            match location.filter(|_| (300..400).contains(&status) && !ends(&headers)) {
                Some(to) => url = joined(&url, &to),
                None => return Ok(Answer { status, headers, body, url }),
            }
        }
        Err(Error::Refused {
            name: name.into(),
            status: 310,
            why: format!("over {MOST_REDIRECTS} redirects, the last to {url}"),
        })
    }

    fn request(&self, url: &str, from: Option<u64>) -> Result<Response<Body>, ureq::Error> {
        let request = match from {
            None => self.agent.head(url),
            Some(_) => self.agent.get(url),
        };
        let mut request = request.header("accept-encoding", "identity");
        if let Some(from) = from.filter(|&from| from > 0) {
            request = request.header("range", format!("bytes={from}-"));
        }
        // Whoever else a redirect leads to is told no token.
        if let Some(token) = self.token.as_ref().filter(|_| origin(url) == origin(&self.endpoint)) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.call()
    }
}

/// `https://host:port` of an address.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    &url[..url[start..].find('/').map_or(url.len(), |at| start + at)]
}

fn host(url: &str) -> &str {
    origin(url).split("://").last().unwrap_or_default()
}

/// Where a redirect leads.
pub(crate) fn joined(url: &str, to: &str) -> String {
    match to {
        _ if to.contains("://") => to.into(),
        _ if to.starts_with('/') => format!("{}{to}", origin(url)),
        _ => format!("{}/{to}", url.rsplit_once('/').map_or(url, |(folder, _)| folder)),
    }
}

/// A part of an address, with what has a meaning there escaped.
fn escaped(text: &str, with_folders: bool) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (with_folders && byte == b'/');
    text.bytes().map(|byte| if plain(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_joined_and_escaped() {
        assert_eq!(joined("https://a.b/c/d", "/e"), "https://a.b/e");
        assert_eq!(joined("https://a.b/c/d", "e"), "https://a.b/c/e");
        assert_eq!(joined("https://a.b/c/d", "http://x/e"), "http://x/e");
        assert_eq!((origin("http://h:1/a/b"), host("http://h:1/a/b"), host("https://h")), ("http://h:1", "h:1", "h"));
        let client = Client::new("http://h/");
        assert_eq!(client.file_url("a/b", "refs/pr/1", "x y/z.pth"), "http://h/a/b/resolve/refs%2Fpr%2F1/x%20y/z.pth");
    }
}
