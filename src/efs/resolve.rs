//! From a name to addresses, anew at every call: a mount target may move, and
//! the system's resolver has its own cache.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::timeout;

/// Longer than the resolver's own five seconds per server and two tries.
const PATIENCE: Duration = Duration::from_secs(20);
/// Addresses beyond these are not tried; a mount target has one or two.
const MAX_ADDRESSES: usize = 16;

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The resolver says no, or cannot ask anybody.
    #[error("{host} does not resolve: {why}")]
    Refused {
        /// The name.
        host: String,
        /// The resolver's words.
        why: String,
    },
    /// The resolver says yes and gives nothing.
    #[error("{0} has no address")]
    NoAddress(String),
    /// No DNS server answered.
    #[error("no DNS server answered for {host} within {} s", PATIENCE.as_secs())]
    Silent {
        /// The name.
        host: String,
    },
}

impl From<ResolveError> for io::Error {
    fn from(why: ResolveError) -> Self {
        let kind = match why {
            ResolveError::Silent { .. } => io::ErrorKind::TimedOut,
            _ => io::ErrorKind::NotFound,
        };
        Self::new(kind, why)
    }
}

/// The addresses of `host` (a name or an address, IPv6 with its zone but
/// without brackets), in the order the system prefers.
///
/// # Errors
/// See [`ResolveError`].
pub async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, ResolveError> {
    let answer = timeout(PATIENCE, lookup(host, port)).await;
    let mut addresses = answer.map_err(|_| ResolveError::Silent {
        host: host.to_owned(),
    })??;
    addresses.truncate(MAX_ADDRESSES);
    Ok(addresses)
}

async fn lookup(host: &str, port: u16) -> Result<Vec<SocketAddr>, ResolveError> {
    let addresses: Vec<_> = match lookup_host((host, port)).await {
        Ok(addresses) => addresses.collect(),
        Err(why) => {
            return Err(ResolveError::Refused {
                host: host.to_owned(),
                why: reason(&why),
            });
        }
    };
    if addresses.is_empty() {
        return Err(ResolveError::NoAddress(host.to_owned()));
    }
    Ok(addresses)
}

/// std wraps getaddrinfo's words into a sentence of its own.
fn reason(why: &io::Error) -> String {
    let text = why.to_string();
    match text.strip_prefix("failed to lookup address information: ") {
        Some(reason) => reason.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_need_no_resolver() -> Result<(), ResolveError> {
        assert_eq!(
            resolve("127.0.0.1", 2049).await?,
            ["127.0.0.1:2049".parse().unwrap_or_else(|_| unreachable!())]
        );
        let six = resolve("::1", 1).await?;
        assert!(
            six.iter().all(SocketAddr::is_ipv6) && !six.is_empty(),
            "{six:?}"
        );
        Ok(())
    }

    #[tokio::test]
    async fn the_zone_of_a_link_local_address_is_kept() -> Result<(), ResolveError> {
        let answer = resolve("fe80::1%lo", 1).await?;
        assert!(
            matches!(answer[..], [SocketAddr::V6(address)] if address.scope_id() != 0),
            "{answer:?}"
        );
        Ok(())
    }

    #[tokio::test]
    async fn a_name_that_does_not_exist_is_named_in_the_error() {
        // RFC 6761: this top level domain never resolves.
        match resolve("nobody.invalid", 2049).await {
            Ok(addresses) => panic!("resolved to {addresses:?}"),
            Err(why) => assert!(why.to_string().contains("nobody.invalid"), "{why}"),
        }
    }
}
