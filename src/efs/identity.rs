//! Who this mount is to EFS: the client certificate of the next connection.
//!
//! A certificate is made in memory before a connection when the last one is
//! older than `renew`; connections that are up keep theirs. A renewal that
//! fails (credentials that cannot be had just now) keeps the old certificate
//! as long as that is good, so that no connection waits for AWS.
//!
//! State: `minting` is held by the one task that makes a certificate;
//! `current` is swapped in a moment and read by the TLS handshake.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_credential_types::Credentials;
use parking_lot::Mutex;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::certificate::{Claims, HostKey, LIFETIME};
use super::clock::Utc;
use super::credentials::Source;
use super::problem::{Problem, Step};

/// How long a renewal may hold up a connection that has a good certificate.
const RENEWAL: Duration = Duration::from_secs(3);

/// The key of this daemon and the certificates made with it.
pub(super) struct Identity {
    claims: Claims,
    /// Of the IAM principal; `None` without `iam`.
    source: Option<Source>,
    renew: Duration,
    key: OnceCell<Arc<HostKey>>,
    /// Certificates made so far.
    minting: tokio::sync::Mutex<u64>,
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    minted: Option<Minted>,
    /// The last renewal failed, and that was said.
    failing: bool,
}

#[derive(Clone)]
struct Minted {
    certified: Arc<CertifiedKey>,
    since: Instant,
    at: Utc,
    /// The access key id: public.
    principal: Option<String>,
}

/// What `status` shows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The access key id that signed, with `iam`.
    pub access_key_id: Option<String>,
    /// When the certificate was made.
    pub made: u64,
    /// How many were made.
    pub certificates: u64,
}

impl fmt::Debug for Identity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Identity")
            .field("claims", &self.claims)
            .finish_non_exhaustive()
    }
}

impl Identity {
    pub(super) fn new(claims: Claims, source: Option<Source>, renew: Duration) -> Self {
        Self {
            claims,
            source,
            renew,
            key: OnceCell::new(),
            minting: tokio::sync::Mutex::new(0),
            current: Mutex::new(Current::default()),
        }
    }

    /// Sees to it that there is a certificate for the next connection, and
    /// that it is young.
    ///
    /// # Errors
    /// There is none and none can be made.
    pub(super) async fn refresh(&self) -> Result<(), Problem> {
        let mut made = self.minting.lock().await;
        let last = self.current.lock().minted.clone();
        let Some(last) = last else {
            let minted = self.mint(*made).await?;
            *made += 1;
            self.current.lock().minted = Some(minted);
            return Ok(());
        };
        let age = last.since.elapsed();
        if age < self.renew {
            return Ok(());
        }
        let renewed = tokio::time::timeout(RENEWAL, self.mint(*made)).await;
        let failed = match renewed {
            Ok(Ok(minted)) => {
                *made += 1;
                *self.current.lock() = Current {
                    minted: Some(minted),
                    failing: false,
                };
                return Ok(());
            }
            Ok(Err(problem)) => problem,
            Err(_) => Problem::new(
                Step::Credentials,
                "renewing the certificate",
                format_args!("no answer within {} s", RENEWAL.as_secs()),
            ),
        };
        if age >= Duration::from_secs(LIFETIME.unsigned_abs()) {
            return Err(failed);
        }
        // Said once, not at every connection.
        if !std::mem::replace(&mut self.current.lock().failing, true) {
            tracing::warn!(
                "the client certificate of {} s ago is kept: {failed}",
                age.as_secs()
            );
        }
        Ok(())
    }

    async fn mint(&self, serial: u64) -> Result<Minted, Problem> {
        let failed = |why: &dyn fmt::Display| {
            Problem::new(Step::Credentials, "making the client certificate", why)
        };
        let credentials: Option<Credentials> = match &self.source {
            Some(source) => Some(source.get().await?),
            None => None,
        };
        let key = self
            .key
            .get_or_try_init(|| async {
                // It computes for some tenths of a second.
                tokio::task::spawn_blocking(HostKey::generate)
                    .await
                    .unwrap_or_else(|panic| Err(std::io::Error::other(panic)))
                    .map(Arc::new)
            })
            .await
            .map_err(|why| failed(&why))?;
        let at = Utc::now();
        let certified = self
            .claims
            .certify(key, credentials.as_ref(), at, serial)
            .map_err(|why| failed(&why))?;
        Ok(Minted {
            certified: Arc::new(certified),
            since: Instant::now(),
            at,
            principal: credentials.map(|credentials| credentials.access_key_id().to_owned()),
        })
    }

    /// The certificate in use, for people.
    pub(super) fn shown(&self) -> Option<Shown> {
        let minted = self.current.lock().minted.clone()?;
        // Only as many as are known without waiting for one in the making.
        let certificates = self.minting.try_lock().map_or(0, |made| *made);
        Some(Shown {
            access_key_id: minted.principal,
            made: minted.at.0,
            certificates,
        })
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        // Whatever issuers the server hints at: it is self-signed.
        let current = self.current.lock();
        current
            .minted
            .as_ref()
            .map(|minted| Arc::clone(&minted.certified))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use aws_credential_types::provider::error::CredentialsError;
    use aws_credential_types::provider::{ProvideCredentials, future};

    use super::*;

    /// Gives credentials so many times, and none after that.
    #[derive(Debug)]
    struct Fickle(AtomicU32);

    impl ProvideCredentials for Fickle {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let left = self.0.load(Ordering::Relaxed);
            self.0.store(left.saturating_sub(1), Ordering::Relaxed);
            future::ProvideCredentials::ready(match left {
                0 => Err(CredentialsError::provider_error("the well is dry")),
                _ => Ok(Credentials::new("AKID", "SECRET", None, None, "test")),
            })
        }
    }

    fn identity(times: u32) -> Identity {
        let claims = Claims {
            fs_id: "fs-f223e6bb".to_owned(),
            region: "eu-west-1".to_owned(),
            access_point: None,
            host: "host".to_owned(),
            client: super::super::certificate::SOURCE.to_owned(),
        };
        let source = Source::for_tests(Fickle(AtomicU32::new(times)));
        Identity::new(claims, Some(source), Duration::from_secs(3600))
    }

    fn shown(identity: &Identity) -> Arc<CertifiedKey> {
        let resolved = identity.resolve(&[], &[]);
        resolved.unwrap_or_else(|| panic!("there is no certificate"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_certificate_is_used_again_until_it_is_old() -> Result<(), Problem> {
        let identity = identity(9);
        assert!(identity.resolve(&[], &[]).is_none());
        identity.refresh().await?;
        let first = shown(&identity);
        tokio::time::advance(Duration::from_secs(3599)).await;
        identity.refresh().await?;
        assert!(Arc::ptr_eq(&first, &shown(&identity)));
        tokio::time::advance(Duration::from_secs(2)).await;
        identity.refresh().await?;
        assert_ne!(first.cert, shown(&identity).cert);
        assert_eq!(identity.shown().map(|shown| shown.certificates), Some(2));
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_fails_keeps_the_old_certificate_while_it_is_good() -> Result<(), Problem>
    {
        let identity = identity(1);
        identity.refresh().await?;
        let first = shown(&identity);
        tokio::time::advance(Duration::from_secs(3 * 3600 - 1)).await;
        identity.refresh().await?;
        assert!(Arc::ptr_eq(&first, &shown(&identity)));
        tokio::time::advance(Duration::from_secs(2)).await;
        let failed = identity.refresh().await;
        assert!(failed.is_err_and(|problem| problem.why.contains("the well is dry")));
        Ok(())
    }

    #[tokio::test]
    async fn without_credentials_there_is_no_certificate() {
        let failed = identity(0).refresh().await;
        assert!(failed.is_err_and(|problem| problem.step == Step::Credentials));
    }
}
