//! Plain HTTP to the services on this machine's link: instance metadata and
//! container credentials. Small answers, soon, or none.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::TokioExecutor;

/// No answer of theirs is longer.
pub const MAX_BODY: usize = 64 << 10;
/// Of others' words in a message of ours, characters.
const MAX_WORDS: usize = 500;

/// What came back.
#[derive(Debug)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// The server's clock, as its `Date` header says.
    pub date: Option<String>,
    /// The body, if it is text.
    pub body: String,
}

/// One request to `url` (`http://…`), answered within `limit`.
///
/// # Errors
/// One line that says why there is no answer.
pub(super) async fn request(
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    limit: Duration,
) -> Result<Response, String> {
    let exchange = exchange(method, url, headers, limit);
    tokio::time::timeout(limit, exchange)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs_f32())))
}

async fn exchange(
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    limit: Duration,
) -> Result<Response, String> {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(limit));
    over(connector, method, url, headers).await
}

/// The same over what `connector` makes, however long that takes.
///
/// # Errors
/// One line that says why there is no answer.
pub async fn over(
    connector: impl Connect + Clone + Send + Sync + 'static,
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
) -> Result<Response, String> {
    let mut request = http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|why| why.to_string())?;
    let client = Client::builder(TokioExecutor::new())
        // Nothing is asked twice in a row.
        .pool_max_idle_per_host(0)
        .build(connector);
    let answer = client
        .request(request)
        .await
        .map_err(|why| innermost(&why))?;
    let status = answer.status().as_u16();
    let date = answer
        .headers()
        .get("date")
        .and_then(|date| date.to_str().ok())
        .map(str::to_owned);
    let body = Limited::new(answer.into_body(), MAX_BODY)
        .collect()
        .await
        .map_err(|why| why.to_string())?;
    let body = String::from_utf8(body.to_bytes().to_vec())
        .map_err(|_| "the answer is no text".to_owned())?;
    Ok(Response { status, date, body })
}

/// The cause at the bottom of a chain of errors: "connection refused" and not
/// "client error".
pub(super) fn innermost(why: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = why;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let text = cause.to_string();
    let words = text.split(" (os error").next().unwrap_or(&text);
    in_short(&words.to_lowercase())
}

/// Others' words in a message of ours: as many of them as a person would read.
pub(super) fn in_short(words: &str) -> String {
    match words.char_indices().nth(MAX_WORDS) {
        Some((end, _)) => format!("{}…", &words[..end]),
        None => words.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_others_words_there_are_no_more_than_a_person_would_read() {
        assert_eq!(in_short("no such role"), "no such role");
        let long = "ä".repeat(MAX_WORDS + 1);
        let short = in_short(&long);
        assert_eq!(short.chars().count(), MAX_WORDS + 1);
        assert!(short.ends_with("ä…"));
        let error = std::io::Error::other(long);
        assert_eq!(innermost(&error), short);
    }
}
