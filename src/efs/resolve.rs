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
/// without brackets), in the order the system prefers,
/// but the families by turns, so that one without a route holds up nothing
/// (RFC 8305 section 4). A name that is not found is looked for once more with
/// a dot at its end, which no search domain is appended to.
///
/// # Errors
/// See [`ResolveError`].
pub async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, ResolveError> {
    let answer = timeout(PATIENCE, async {
        match lookup(host, port).await {
            Err(why) if host.contains('.') && !host.ends_with('.') => {
                lookup(&format!("{host}."), port).await.map_err(|_| why)
            }
            answer => answer,
        }
    });
    let addresses = answer.await.map_err(|_| ResolveError::Silent {
        host: host.to_owned(),
    })??;
    Ok(by_turns(addresses))
}

/// The first stays the first; then one of the other family, and so on.
pub(super) fn by_turns(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_family = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (ours, others): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv6() == first_family);
    let (mut ours, mut others) = (ours.into_iter(), others.into_iter());
    let mut turns = Vec::new();
    loop {
        let pair = [ours.next(), others.next()];
        if pair == [None, None] || turns.len() >= MAX_ADDRESSES {
            return turns;
        }
        turns.extend(pair.into_iter().flatten());
    }
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

    #[test]
    fn families_take_turns_and_the_resolvers_first_stays_the_first() {
        let of = |texts: &[&str]| -> Vec<SocketAddr> {
            let parse = |text: &&str| text.parse().unwrap_or_else(|why| panic!("{text}: {why}"));
            texts.iter().map(parse).collect()
        };
        assert_eq!(
            by_turns(of(&[
                "[::1]:1",
                "[::2]:1",
                "1.1.1.1:1",
                "2.2.2.2:1",
                "3.3.3.3:1"
            ])),
            of(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "3.3.3.3:1"])
        );
        assert_eq!(
            by_turns(of(&["1.1.1.1:1", "2.2.2.2:1"])),
            of(&["1.1.1.1:1", "2.2.2.2:1"])
        );
        assert_eq!(by_turns(vec![]), vec![]);
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
