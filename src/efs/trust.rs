//! Whom to believe that he is the server.
//!
//! | server | believed issuers | verified name |
//! |---|---|---|
//! | EFS | Amazon Root CA 1 to 4, built in; the system's in partitions of AWS that have others ([`super::region::issuers`]) | `fs-ID.efs.REGION.SUFFIX`, of the device and the options |
//! | another | the system's | the host of the device, as it is written |
//! | any, with `cafile=` | those of the file, and no others | as above |
//!
//! `roots/amazon.pem` has the four roots that the official client ships
//! (`efs-utils.crt`), as Amazon Trust Services publishes them; a test holds their
//! fingerprints.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{VerifierBuilderError, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::problem::{Problem, Step};
use super::region::{self, Issuers};
use super::target::Target;
use crate::quoting;

/// Amazon Root CA 1 to 4, which issue the certificates of EFS.
const AMAZON: &[u8] = include_bytes!("roots/amazon.pem");

/// Whose certificates are believed of `target`, without `cafile=`.
pub(super) fn issuers_of(target: &Target) -> Issuers {
    let file_system = target.file_system.as_ref();
    file_system.map_or(Issuers::System, |of| region::issuers(&of.suffix))
}

/// The issuers to believe: those of `file` only, else `issuers`.
pub(super) fn roots(file: Option<&Path>, issuers: Issuers) -> Result<RootCertStore, Problem> {
    let mut roots = RootCertStore::empty();
    let Some(file) = file else {
        if issuers == Issuers::Amazon {
            roots.add_parsable_certificates(certificates(AMAZON));
            return Ok(roots);
        }
        let system = rustls_native_certs::load_native_certs();
        for why in &system.errors {
            tracing::debug!("certificates of the system: {why}");
        }
        roots.add_parsable_certificates(system.certs);
        return match roots.is_empty() {
            true => Err(Problem::new(
                Step::Tls,
                "reading the CA certificates of this machine",
                "there are none",
            )
            .remedy("install ca-certificates, or -o cafile=FILE")),
            false => Ok(roots),
        };
    };
    let failed = |why: &dyn std::fmt::Display| {
        Problem::new(
            Step::Tls,
            format_args!("reading the CA file {}", quoting::path(file)),
            why,
        )
        .remedy("a file of PEM certificates as -o cafile=; or leave it out for EFS: Amazon's are built in")
    };
    let text = std::fs::read(file).map_err(|why| failed(&why))?;
    issuers_in(&text).ok_or_else(|| failed(&"there is no certificate in it"))
}

/// The issuers in the text of a CA file, if there are any.
pub fn issuers_in(pem: &[u8]) -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates(pem));
    (added > 0).then_some(roots)
}

/// Who believes what `roots` have issued.
///
/// # Errors
/// There are none.
pub fn verifier(
    roots: RootCertStore,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, VerifierBuilderError> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build()
}

fn certificates(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem).flatten().collect()
}

/// `verify=0`: whoever answers is believed. Signatures are checked, so that it
/// is one and the same throughout the handshake.
#[derive(Debug)]
pub(super) struct Anybody(Arc<CryptoProvider>);

impl Anybody {
    /// Signatures are checked with the algorithms of `provider`.
    pub(super) fn new(provider: &Arc<CryptoProvider>) -> Arc<Self> {
        Arc::new(Self(Arc::clone(provider)))
    }
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::super::target::FileSystem;
    use super::*;

    #[test]
    fn amazons_four_roots_are_built_in() {
        let mut roots = RootCertStore::empty();
        assert_eq!(
            roots.add_parsable_certificates(certificates(AMAZON)),
            (4, 0)
        );
    }

    #[test]
    fn a_ca_file_that_cannot_be_used_is_named() -> io::Result<()> {
        let missing = roots(Some(Path::new("/nonexistent/ca.pem")), Issuers::Amazon);
        assert!(missing.is_err_and(|why| why.what.contains("/nonexistent/ca.pem")));
        let file = tempfile::NamedTempFile::new()?;
        let empty = roots(Some(file.path()), Issuers::Amazon);
        assert!(empty.is_err_and(|why| why.why.contains("no certificate")));
        Ok(())
    }

    #[test]
    fn efs_is_believed_on_the_word_of_amazons_roots_only() -> Result<(), Problem> {
        let of = |suffix: Option<&str>| {
            issuers_of(&Target {
                host: "x".to_owned(),
                port: 2049,
                address: None,
                file_system: suffix.map(|suffix| FileSystem {
                    id: "fs-0123abcd".to_owned(),
                    region: "eu-west-1".to_owned(),
                    suffix: suffix.to_owned(),
                }),
                tls_name: "x".to_owned(),
                zone: None,
                may_ask_api: false,
            })
        };
        assert_eq!(of(Some("amazonaws.com")), Issuers::Amazon);
        assert_eq!(of(Some("amazonaws.com.cn")), Issuers::Amazon);
        assert_eq!(of(Some("c2s.ic.gov")), Issuers::System);
        assert_eq!(of(None), Issuers::System);
        assert_eq!(roots(None, Issuers::Amazon)?.len(), 4);
        Ok(())
    }

    /// As Amazon Trust Services and the official client publish them.
    #[test]
    fn the_built_in_roots_are_amazons() {
        use sha2::{Digest, Sha256};
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let found: Vec<String> = certificates(AMAZON)
            .iter()
            .map(|root| hex(Sha256::digest(root).as_slice()))
            .collect();
        assert_eq!(found, FINGERPRINTS);
    }

    const FINGERPRINTS: [&str; 4] = [
        "8ecde6884f3d87b1125ba31ac3fcb13d7016de7f57cc904fe1cb97c6ae98196e",
        "1ba5b2aa8c65401a82960118f80bec4f62304d83cec4713a19c39c011ea46db4",
        "18ce6cfe7bf14e60b2e347b8dfe868cb31d02ebb3ada271569f50343b46db3a4",
        "e35d28419ed02025cfa69038cd623962458da5c695fbdea3c22b0bfb25897092",
    ];
}
