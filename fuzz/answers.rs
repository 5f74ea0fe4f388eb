//! What is answered before the first NFS message: by instance metadata, the container
//! credential service, STS and the EFS API, and by whoever listens at the port of a
//! server.
//!
//! HTTP, JSON, XML, TLS and X.509 are read by libraries. What is judged is what is made
//! of it: that it ends, with little memory; that a message is a line that a person can
//! read and no terminal obeys; that neither a message nor the log has the secret of an
//! answer that should have brought one; that nobody is believed by accident.

use std::cell::RefCell;
use std::future::{Future, Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use aws_config::imds;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::web_identity_token::{StaticConfiguration, WebIdentityTokenCredentialsProvider};
use aws_config::{BehaviorVersion, Region};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use efs_fuse::efs::clock::Utc;
use efs_fuse::efs::imds::Instance;
use efs_fuse::efs::outside;
use efs_fuse::efs::target::{FileSystem, Target};
use efs_fuse::efs::{Problem, Settings, region};
use efs_fuse::quoting;
use efs_fuse::telemetry::log;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use x509_parser::asn1_rs::{Any, FromDer};

use super::harmless;

/// The secret access key in the seeds: the one of AWS's own examples.
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const HOST: &str = "fs-0123abcd.efs.eu-west-1.amazonaws.com";
const PEER: &str = "192.0.2.1:2049";
/// Everything is answered from memory: what takes so long hangs.
const PATIENCE: Duration = Duration::from_secs(8);

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let answered = runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await });
    answered.expect("no end")
}

/// A message that a person can read, and no terminal obeys.
fn readable(text: &str) {
    assert!(text.chars().count() <= 1500, "{}", text.len());
    harmless(&quoting::plain(text));
}

fn told(problem: &Problem) -> String {
    let remedy = problem.remedy.as_deref().unwrap_or_default();
    let text = format!("{problem}. Try: {remedy}");
    readable(&text);
    text
}

fn file_system() -> FileSystem {
    FileSystem {
        id: "fs-0123abcd".to_owned(),
        region: "eu-west-1".to_owned(),
        suffix: "amazonaws.com".to_owned(),
    }
}

fn target() -> Target {
    Target {
        host: HOST.to_owned(),
        port: 2049,
        address: None,
        file_system: Some(file_system()),
        tls_name: HOST.to_owned(),
        zone: None,
        may_ask_api: true,
    }
}

/// The other side of a connection: it waits until it is spoken to, says all that it has
/// to say, and hangs up.
struct Side {
    left: Bytes,
    spoken_to: bool,
    waiting: Option<Waker>,
}

impl Side {
    fn saying(data: &[u8]) -> Self {
        Self {
            left: Bytes::copy_from_slice(data),
            spoken_to: false,
            waiting: None,
        }
    }
}

impl AsyncRead for Side {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.spoken_to {
            self.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let length = self.left.len().min(buffer.remaining());
        buffer.put_slice(&self.left.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Side {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.spoken_to = true;
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Connection for Side {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

/// Connects everybody to a [`Side`] that says this.
#[derive(Clone)]
struct Saying(Vec<u8>);

impl tower_service::Service<http::Uri> for Saying {
    type Response = TokioIo<Side>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        ready(Ok(TokioIo::new(Side::saying(&self.0))))
    }
}

/// The answer to a request by HTTP, as it comes over the connection: the body has its
/// limit, and the clock in it is one that can be written.
pub(crate) fn http_answer(data: &[u8]) {
    let url = "http://169.254.169.254/latest/dynamic/instance-identity/document";
    let header = [("X-aws-ec2-metadata-token", "a token")];
    let answer = outside::http_over(Saying(data.to_vec()), "GET", url, &header);
    match wait(answer) {
        Ok(answer) => {
            assert!(answer.body.len() <= outside::MAX_BODY);
            if let Some(date) = answer.date.as_deref().and_then(Utc::from_http) {
                // The 31st of a shorter month is at the beginning of the next.
                assert!(date.0 < 253_402_300_800 + 3 * 86_400, "{date:?}");
                assert!(date.basic().ends_with('Z'));
            }
        }
        Err(why) => readable(&why),
    }
}

/// An instance identity document, a zero and what stands for the zone's id: what is
/// taken for names can be parts of a DNS name.
pub(crate) fn instance_metadata(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (document, zone_id) = match text.split_once('\0') {
        Some((document, zone_id)) => (document, Some(zone_id)),
        None => (text, None),
    };
    match Instance::read(document, zone_id, None) {
        Ok(read) => {
            let names = [read.region, read.zone, read.zone_id];
            for name in names.into_iter().flatten() {
                assert!(region::is_valid(&name), "{name:?}");
            }
        }
        Err(why) => readable(&why),
    }
}

/// What the container credential service answers (`awscredsuri=`).
pub(crate) fn container_credentials(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match outside::container_credentials(text).and_then(outside::usable) {
        Ok(credentials) => used(&credentials),
        Err(why) => {
            let settings = Settings {
                iam: true,
                credentials_uri: Some("/v2/credentials/0123".to_owned()),
                ..Settings::default()
            };
            let text = told(&outside::none_found(&settings, &why));
            assert!(!text.contains(&SECRET[..16]), "{text}");
        }
    }
}

/// Credentials that are taken, whatever is in them, are signed with, and another reader of
/// DER finds them again in the certificate.
fn used(credentials: &Credentials) {
    let extensions = outside::extensions(credentials);
    let mut found = Vec::new();
    for extension in elements(elements(&extensions)[0]) {
        let parts = elements(extension);
        // 1.3.6.1.4.1.4843.7.2
        if parts[0].ends_with(&[0xa5, 0x6b, 7, 2]) {
            found = elements(elements(parts[1])[0]);
        }
    }
    assert_eq!(found[0], credentials.access_key_id().as_bytes());
    assert_eq!(found[1].len(), 64);
    let token = found.get(3).map(|explicit| elements(explicit)[0]);
    assert_eq!(token, credentials.session_token().map(str::as_bytes));
    let nobody = Answering::to_everything(200, br#"{"MountTargets":[]}"#);
    asked_for_mount_targets(nobody, credentials.clone());
}

/// The contents of DER elements one behind the other.
fn elements(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (rest, element) = Any::from_der(bytes).expect("DER");
        found.push(element.data);
        bytes = rest;
    }
    found
}

/// Answers to the SDK's clients.
#[derive(Debug, Clone)]
struct Answering {
    status: u16,
    body: Vec<u8>,
    /// Instance metadata: the token and the role's name are answered as they should be.
    metadata: bool,
}

impl Answering {
    fn to_everything(status: u16, body: &[u8]) -> Self {
        Self {
            status,
            body: body.to_vec(),
            metadata: false,
        }
    }

    /// `STATUS`, a line break and the body.
    fn of(data: &[u8]) -> Self {
        let end = data.iter().position(|&byte| byte == b'\n');
        let (status, body) = data.split_at(end.map_or(0, |end| end + 1));
        let status = std::str::from_utf8(status).ok();
        let status = status.and_then(|text| text.trim().parse().ok());
        let status = status.filter(|status| (100..=999).contains(status));
        Self::to_everything(status.unwrap_or(200), body)
    }

    fn client(&self) -> SharedHttpClient {
        let connector = SharedHttpConnector::new(self.clone());
        http_client_fn(move |_, _| connector.clone())
    }

    /// Whether it is for the service to say what will be shown: an answer that refuses,
    /// with words of its own.
    fn refuses(&self) -> bool {
        let body = self.body.to_ascii_lowercase();
        let has = |word: &str| body.windows(word.len()).any(|part| part == word.as_bytes());
        self.status != 200 || has("message") || has("\\u") || has("error")
    }
}

impl HttpConnector for Answering {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (status, body) = match (self.metadata, request.method()) {
            (true, "PUT") => (200, &b"a token"[..]),
            (true, _) if request.uri().ends_with("security-credentials/") => (200, &b"role"[..]),
            _ => (self.status, &self.body[..]),
        };
        let status = status.try_into().expect("a status");
        let mut answer = HttpResponse::new(status, SdkBody::from(body));
        let ttl = "x-aws-ec2-metadata-token-ttl-seconds";
        answer.headers_mut().insert(ttl, "300");
        HttpConnectorFuture::ready(Ok(answer))
    }
}

/// What AssumeRoleWithWebIdentity answers: `STATUS`, a line break, XML.
pub(crate) fn sts_answer(data: &[u8]) {
    let answering = Answering::of(data);
    let provider = WebIdentityTokenCredentialsProvider::builder()
        .static_configuration(StaticConfiguration {
            web_identity_token_file: "/dev/null".into(),
            role_arn: "arn:aws:iam::123456789012:role/r".to_owned(),
            session_name: "efs-fuse".to_owned(),
        })
        .configure(&config(&answering))
        .build();
    let settings = Settings {
        iam: true,
        role: Some("arn:aws:iam::123456789012:role/r".to_owned()),
        token_file: Some("/dev/null".into()),
        ..Settings::default()
    };
    judge_credentials(provider, &answering, &settings);
}

/// What instance metadata answer to the question for the credentials of the instance's
/// role: `STATUS`, a line break, JSON.
pub(crate) fn role_credentials(data: &[u8]) {
    let answering = Answering {
        metadata: true,
        ..Answering::of(data)
    };
    let config = config(&answering);
    let client = imds::Client::builder().configure(&config).max_attempts(1);
    let provider = ImdsCredentialsProvider::builder()
        .configure(&config)
        .imds_client(client.build())
        .build();
    let settings = Settings {
        iam: true,
        ..Settings::default()
    };
    judge_credentials(provider, &answering, &settings);
}

fn config(answering: &Answering) -> ProviderConfig {
    ProviderConfig::without_region()
        .with_region(Some(Region::new("eu-west-1")))
        .with_http_client(answering.client())
        .with_retry_config(RetryConfig::disabled())
}

fn judge_credentials(
    provider: impl ProvideCredentials + 'static,
    answering: &Answering,
    settings: &Settings,
) {
    let chain = CredentialsProviderChain::first_try("the only one", provider);
    let (found, log): (provider::Result, String) =
        heard(|| wait(async { chain.provide_credentials().await.and_then(outside::usable) }));
    let said = match &found {
        Ok(credentials) => {
            used(credentials);
            String::new()
        }
        Err(why) => {
            assert!(!matches!(why, CredentialsError::ProviderTimedOut(_)));
            told(&outside::none_found(settings, why))
        }
    };
    if !answering.refuses() {
        for text in [said, log] {
            assert!(!text.contains(&SECRET[..16]), "{text}");
        }
    }
}

/// What a log has that is as loud as it may be.
fn heard<T>(run: impl FnOnce() -> T) -> (T, String) {
    static EAR: LazyLock<tracing::Dispatch> = LazyLock::new(|| tracing::Dispatch::new(Ear));
    HEARD.take();
    let result = tracing::dispatcher::with_default(&EAR, run);
    (result, HEARD.take())
}

thread_local! {
    static HEARD: RefCell<String> = const { RefCell::new(String::new()) };
}

struct Ear;

impl tracing::Subscriber for Ear {
    fn enabled(&self, event: &tracing::Metadata<'_>) -> bool {
        log::is_discreet(event)
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::Id {
        tracing::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::Id, _: &tracing::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(
            &mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                HEARD.with_borrow_mut(|heard| heard.push_str(&format!("{field}={value:?} ")));
            },
        );
    }

    fn enter(&self, _: &tracing::Id) {}

    fn exit(&self, _: &tracing::Id) {}
}

/// What DescribeMountTargets answers, to every page that is asked for: `STATUS`, a line
/// break, JSON.
pub(crate) fn efs_answer(data: &[u8]) {
    let credentials = Credentials::new("AKIDEXAMPLE", SECRET, None, None, "test");
    asked_for_mount_targets(Answering::of(data), credentials);
}

fn asked_for_mount_targets(answering: Answering, credentials: Credentials) {
    let config = aws_sdk_efs::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-west-1"))
        .credentials_provider(credentials)
        .http_client(answering.client())
        .retry_config(RetryConfig::disabled())
        .build();
    let client = aws_sdk_efs::Client::from_conf(config);
    let here = Instance {
        zone: Some("eu-west-1a".to_owned()),
        ..Instance::default()
    };
    let file_system = file_system();
    let target = target();
    let found = outside::mount_targets(&client, &target, &file_system, &here);
    match wait(found) {
        Ok(found) => {
            assert!((1..=2).contains(&found.addresses.len()));
            readable(found.warning.as_deref().unwrap_or_default());
        }
        Err(problem) => drop(told(&problem)),
    }
}

/// The reply to a bind call, of either generation.
pub(crate) fn bind_reply(data: &[u8]) {
    for generation in [outside::Generation::One, outside::Generation::Two] {
        let reply = outside::BindReply::decode(Bytes::copy_from_slice(data), generation);
        if let Ok(reply) = reply {
            harmless(&reply.to_string());
        }
    }
}

/// What listens at the port of EFS, to which a handshake was begun: it is nobody that is
/// believed, and what is said of it never recommends to go on without TLS.
pub(crate) fn tls_answer(data: &[u8]) {
    match wait(TLS.handshake(Side::saying(data), PEER)) {
        Ok(_) => panic!("believed"),
        Err(problem) => judge_refusal(&problem),
    }
}

static TLS: LazyLock<outside::Tls> =
    LazyLock::new(|| outside::tls(&target()).expect("Amazon's roots are built in"));

fn judge_refusal(problem: &Problem) {
    assert!(!told(problem).contains("notls"), "{problem:?}");
}

/// A list of certificates as a server sends it (RFC 5246 §7.4.2, without its length): the
/// names in the first are DNS names; an issuer is believed on nothing but what it has
/// signed.
pub(crate) fn certificate(data: &[u8]) {
    static AMAZON: LazyLock<Arc<dyn ServerCertVerifier>> =
        LazyLock::new(|| believing(include_bytes!("../src/efs/roots/amazon.pem")));
    static OTHER: LazyLock<Arc<dyn ServerCertVerifier>> =
        LazyLock::new(|| believing(include_bytes!("seeds/ca_file/one")));
    let chain = chain(data);
    let Some((first, others)) = chain.split_first() else {
        return;
    };
    for name in outside::names_of(first) {
        harmless(&name);
        assert!(name.is_ascii() && name.len() <= 253, "{name:?}");
    }
    let name = ServerName::try_from(HOST).expect("a name");
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_900_000_000));
    for (whose, is_signed) in [(&AMAZON, false), (&OTHER, true)] {
        match whose.verify_server_cert(first, others, &name, &[], now) {
            Ok(_) => assert!(is_signed && *first == known(), "believed"),
            Err(why) => judge_refusal(&TLS.problem(&io::Error::other(why), PEER)),
        }
    }
}

fn believing(pem: &[u8]) -> Arc<dyn ServerCertVerifier> {
    let roots = outside::issuers_in(pem).expect("a certificate");
    let provider = Arc::new(outside::provider(false));
    outside::verifier(roots, &provider).expect("somebody to believe")
}

/// The only one that the issuer in the seeds of `ca_file` has signed.
fn known() -> CertificateDer<'static> {
    chain(include_bytes!("seeds/certificate/issued")).swap_remove(0)
}

fn chain(mut data: &[u8]) -> Vec<CertificateDer<'static>> {
    let mut chain = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk() {
        let [high, middle, low] = *length;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        let Some((one, rest)) = rest.split_at_checked(length) else {
            break;
        };
        chain.push(CertificateDer::from(one.to_vec()));
        data = rest;
    }
    chain
}

/// The text of `cafile=`: who believes somebody by it believes an issuer in it.
pub(crate) fn ca_file(data: &[u8]) {
    if let Some(roots) = outside::issuers_in(data) {
        assert!(!roots.is_empty() && roots.len() <= data.len() / 64);
        let provider = Arc::new(outside::provider(false));
        outside::verifier(roots, &provider).expect("somebody to believe");
    }
}
