//! TLS to the server: what to offer, and what to say when it fails. Whom to believe is
//! in [`super::trust`].
//!
//! TLS is there from the first byte, on the same port that plain NFS has.
//! Sessions are never resumed: a resumed one would not show a renewed client
//! certificate. TLS 1.2 is the least.
//!
//! What is said when TLS with EFS fails never recommends `notls`: who can make the
//! handshake fail could then read along.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, ProtocolVersion, SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::clock::Utc;
use super::identity::Identity;
use super::problem::{Problem, Step};
use super::settings::Settings;
use super::target::Target;
use super::trust::{Anybody, issuers_of, roots, verifier};
use crate::telemetry::log;

/// How long a handshake may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What every handshake of a mount has in common.
#[derive(Debug, Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    certificate: Arc<ClientCertificate>,
    /// The server is EFS.
    efs: bool,
}

/// What a handshake came to.
#[derive(Debug, Clone)]
pub struct Agreed {
    /// `TLSv1.3`
    pub version: String,
    /// `TLS13_AES_256_GCM_SHA384`
    pub cipher: String,
    /// Certificates in the server's chain, as it sent it.
    pub certificates: usize,
    /// The DNS names that the server's own certificate is for.
    pub names: Vec<String>,
    /// The server has asked for a client certificate (CertificateRequest), in this
    /// handshake or an earlier one.
    pub asks_for_certificate: bool,
    tickets: Option<Arc<AtomicU32>>,
}

impl Agreed {
    /// NewSessionTickets that came over the connection so far (RFC 8446 §4.6.1).
    /// `None`: with TLS 1.2 a server gives none to who does not ask.
    pub fn tickets(&self) -> Option<u32> {
        let tickets = self.tickets.as_ref()?;
        Some(tickets.load(Ordering::Relaxed))
    }
}

impl Tls {
    /// For a server whose certificate must have the name of `target` (or be for that
    /// address), showing it the certificates of `identity`.
    ///
    /// # Errors
    /// There is nobody to believe: the CA file cannot be used.
    pub(super) fn new(
        target: &Target,
        settings: &Settings,
        identity: Option<Arc<Identity>>,
    ) -> Result<Self, Problem> {
        let name = target.tls_name.as_str();
        let failed = |why: &dyn std::fmt::Display| {
            Problem::new(Step::Tls, format_args!("setting up TLS for {name}"), why)
        };
        // An interface is no part of an address in a certificate.
        let bare = name.split_once('%').map_or(name, |(address, _)| address);
        let name = ServerName::try_from(bare.to_owned()).map_err(|why| failed(&why))?;
        let provider = Arc::new(provider(settings.fips));
        let verifier: Arc<dyn ServerCertVerifier> = if settings.verify {
            let roots = roots(settings.ca_file.as_deref(), issuers_of(target))?;
            verifier(roots, &provider).map_err(|why| failed(&why))?
        } else {
            Anybody::new(&provider)
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|why| failed(&why))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let certificate = Arc::new(ClientCertificate {
            identity,
            asked_for: AtomicBool::new(false),
        });
        let mut config = config.with_client_cert_resolver(Arc::clone(&certificate) as _);
        config.resumption = Resumption::disabled();
        Ok(Self {
            config: Arc::new(config),
            name,
            certificate,
            efs: target.file_system.is_some(),
        })
    }

    /// What to try where the peer may not be a TLS server at all.
    fn no_tls(&self, check: &str) -> String {
        match self.efs {
            true => format!(
                "{check}, that this is a mount target of the file system and that nothing between here and it \
                 ends connections; EFS speaks TLS"
            ),
            false => format!(
                "leave out tls (-o notls) if the server does not speak TLS from the first byte on, as most do not \
                 (RPC-with-TLS, xprtsec= of nfs(5), is another thing); else {check}"
            ),
        }
    }

    /// Shakes hands on a fresh connection to `peer`.
    ///
    /// # Errors
    /// The server is not who it should be, does not want us, or is no TLS
    /// server at all.
    pub async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        peer: &str,
    ) -> Result<(Secured<S>, Agreed), Problem> {
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let handshake = connector.connect(self.name.clone(), stream);
        let stream = match tokio::time::timeout(PATIENCE, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(why)) => return Err(self.problem(&why, peer)),
            Err(_) => {
                let why = format!(
                    "no answer within {} s, as from a server without TLS",
                    PATIENCE.as_secs()
                );
                let remedy = self.no_tls("check the network on the way");
                return Err(Problem::new(Step::Tls, what(peer), why).remedy(remedy));
            }
        };
        let (_, session) = stream.get_ref();
        let chain = session.peer_certificates().unwrap_or_default();
        let tickets = Arc::new(AtomicU32::new(session.tls13_tickets_received()));
        let agreed = Agreed {
            version: session
                .protocol_version()
                .and_then(|version| version.as_str())
                .unwrap_or("?")
                .replace('_', "."),
            cipher: session
                .negotiated_cipher_suite()
                .and_then(|suite| suite.suite().as_str())
                .unwrap_or("?")
                .to_owned(),
            certificates: chain.len(),
            names: chain.first().map(names_of).unwrap_or_default(),
            asks_for_certificate: self.certificate.asked_for.load(Ordering::Relaxed),
            tickets: (session.protocol_version() == Some(ProtocolVersion::TLSv1_3))
                .then(|| Arc::clone(&tickets)),
        };
        let secured = Secured {
            peer: peer.to_owned(),
            stream,
            tickets,
        };
        Ok((secured, agreed))
    }

    /// What is said of it that TLS with `peer` came to `error`.
    pub fn problem(&self, error: &io::Error, peer: &str) -> Problem {
        let problem = |why: String| Problem::new(Step::Tls, what(peer), why);
        let name = self.name.to_str();
        match inner(error) {
            Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
                problem("the certificate of the server is of an unknown issuer".to_owned()).remedy(
                    "check that this is the server that you mean; -o cafile=FILE with its issuer's certificate",
                )
            }
            Some(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => problem(format!("the certificate of the server is not for {name}")).remedy(
                match self.efs {
                    true => "check that this address is a mount target of this file system, and the region",
                    false => {
                        "check that this is the server that you mean; a file system of EFS is named by its id, fs-…, \
                         not by a DNS alias"
                    }
                },
            ),
            Some(Error::InvalidCertificate(
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. },
            )) => problem(format!(
                "the certificate of the server is not valid at this time, by the clock of this machine {}",
                log::utc(Utc::now().0)
            ))
            .remedy("set the clock (timedatectl, chronyc tracking)"),
            Some(Error::AlertReceived(alert)) => refused(peer, *alert),
            Some(Error::InvalidMessage(_)) => {
                problem("what listens there does not speak TLS".to_owned())
                    .remedy(self.no_tls("check host and -o port="))
            }
            Some(other) => problem(other.to_string()),
            None => problem(match error.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                    "the server hung up, as one without TLS does".to_owned()
                }
                _ => error.to_string(),
            })
            .remedy(self.no_tls("check the network on the way")),
        }
    }
}

fn what(peer: &str) -> String {
    format!("TLS with {peer}")
}

fn inner(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// The server ended it with an alert. With TLS 1.3 that may come after the
/// handshake, when it has read our certificate.
fn refused(peer: &str, alert: AlertDescription) -> Problem {
    let about_certificate = matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
    );
    let alert = alert.as_str().unwrap_or("unknown");
    if about_certificate {
        let why = format!(
            "the server refuses the client certificate ({alert}), made at {} by the clock of this machine",
            log::utc(Utc::now().0)
        );
        return Problem::new(Step::Tls, what(peer), why).remedy(
            "check the clock, the file system id, accesspoint=, and with iam the credentials and their \
             elasticfilesystem:ClientMount permission",
        );
    }
    Problem::new(
        Step::Tls,
        what(peer),
        format_args!("the server refuses the handshake ({alert})"),
    )
}

/// The cipher suites and key exchanges offered: TLS 1.2 and 1.3 with AES-GCM
/// and ChaCha20; `fips` leaves only approved ones.
pub fn provider(fips: bool) -> CryptoProvider {
    let mut provider = default_provider();
    provider.kx_groups = vec![kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];
    if fips {
        provider.kx_groups = vec![kx_group::SECP256R1, kx_group::SECP384R1];
        provider.cipher_suites = vec![
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        ];
    }
    provider
}

/// The DNS names in a certificate; those that are none are left out.
pub fn names_of(certificate: &CertificateDer<'_>) -> Vec<String> {
    let read = webpki::EndEntityCert::try_from(certificate);
    read.map(|read| read.valid_dns_names().map(str::to_owned).collect())
        .unwrap_or_default()
}

/// What a server is shown that asks for a certificate: that of the identity if
/// there is one.
#[derive(Debug)]
struct ClientCertificate {
    identity: Option<Arc<Identity>>,
    asked_for: AtomicBool,
}

impl ResolvesClientCert for ClientCertificate {
    fn resolve(&self, issuers: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked_for.store(true, Ordering::Relaxed);
        self.identity.as_ref()?.resolve(issuers, schemes)
    }

    fn has_certs(&self) -> bool {
        let identity = self.identity.as_ref();
        identity.is_some_and(|identity| identity.has_certs())
    }
}

/// A connection by TLS. Its errors are told apart from garbage in NFS.
#[derive(Debug)]
pub struct Secured<S> {
    stream: TlsStream<S>,
    peer: String,
    /// See [`Agreed::tickets`].
    tickets: Arc<AtomicU32>,
}

impl<S> Secured<S> {
    fn explain<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        result.map_err(|error| match inner(&error) {
            Some(Error::AlertReceived(alert)) => refused(&self.peer, *alert).into(),
            Some(other) => Problem::new(Step::Tls, what(&self.peer), other).into(),
            None => error,
        })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Secured<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let tickets = self.stream.get_ref().1.tls13_tickets_received();
        self.tickets.store(tickets, Ordering::Relaxed);
        self.explain(read)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Secured<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, data);
        self.explain(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.explain(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.explain(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.explain(ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fips_offers_approved_algorithms_only() {
        let provider = provider(true);
        for suite in &provider.cipher_suites {
            assert!(format!("{:?}", suite.suite()).contains("AES"), "{suite:?}");
        }
        assert!(
            !provider
                .kx_groups
                .iter()
                .any(|group| group.name() == rustls::NamedGroup::X25519)
        );
    }

    fn target(name: &str, file_system: Option<&str>) -> Target {
        Target {
            host: name.to_owned(),
            port: 2049,
            address: None,
            file_system: file_system.map(|suffix| super::super::target::FileSystem {
                id: "fs-0123abcd".to_owned(),
                region: "eu-west-1".to_owned(),
                suffix: suffix.to_owned(),
            }),
            tls_name: name.to_owned(),
            zone: None,
            may_ask_api: false,
        }
    }

    #[test]
    fn every_kind_of_name_can_be_checked() -> Result<(), Problem> {
        for name in [
            "fs-1.efs.eu-west-1.amazonaws.com",
            "192.0.2.1",
            "::1",
            "fe80::1%lo",
        ] {
            Tls::new(
                &target(name, Some("amazonaws.com")),
                &Settings::default(),
                None,
            )?;
        }
        Ok(())
    }

    #[test]
    fn what_is_said_when_tls_with_efs_fails_never_recommends_notls() -> Result<(), Problem> {
        let errors = || {
            [
                io::Error::from(io::ErrorKind::UnexpectedEof),
                io::Error::from(io::ErrorKind::ConnectionReset),
                io::Error::other("x"),
                io::Error::other(Error::InvalidMessage(
                    rustls::InvalidMessage::InvalidContentType,
                )),
                io::Error::other(Error::InvalidCertificate(CertificateError::UnknownIssuer)),
                io::Error::other(Error::InvalidCertificate(CertificateError::NotValidForName)),
                io::Error::other(Error::InvalidCertificate(CertificateError::Expired)),
                io::Error::other(Error::InvalidCertificate(CertificateError::BadEncoding)),
                io::Error::other(Error::AlertReceived(AlertDescription::HandshakeFailure)),
                io::Error::other(Error::AlertReceived(AlertDescription::AccessDenied)),
            ]
        };
        let efs = Tls::new(
            &target("x.y", Some("amazonaws.com")),
            &Settings::default(),
            None,
        )?;
        for error in errors() {
            let problem = efs.problem(&error, "peer:2049");
            assert!(!format!("{problem:?}").contains("notls"), "{problem:?}");
        }
        assert!(!efs.no_tls("").contains("notls"));
        let settings = Settings {
            verify: false,
            ..Settings::default()
        };
        let other = Tls::new(&target("x.y", None), &settings, None)?;
        let [hung_up, ..] = errors();
        let problem = other.problem(&hung_up, "peer:2049");
        assert!(format!("{problem:?}").contains("notls"), "{problem:?}");
        Ok(())
    }
}
