//! Plain HTTP to the services on this machine's link: instance metadata and
//! container credentials. Small answers, soon, or none.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// No answer of theirs is longer.
const MAX_BODY: usize = 64 << 10;

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    /// The HTTP status.
    pub(super) status: u16,
    /// The server's clock, as its `Date` header says.
    pub(super) date: Option<String>,
    /// The body, if it is text.
    pub(super) body: String,
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
) -> Result<Answer, String> {
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
) -> Result<Answer, String> {
    let mut request = http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|why| why.to_string())?;
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(limit));
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
    Ok(Answer { status, date, body })
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
    words.to_lowercase()
}
