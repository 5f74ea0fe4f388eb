//! An EFS look-alike on loopback: a TLS front for a real NFS server that
//! demands a client certificate and reads it as EFS does, and the services of
//! AWS around it (instance metadata, the EFS API, STS, container credentials).
//!
//! It shares no code with the client: certificates are read by x509-parser and
//! a reader of its own, signatures are made anew with other crates.
//!
//! ```text
//! client ─TLS─► front ─plain─► nfs-ganesha       one backend for each access point
//!                 ├─ verify    every field of the certificate, the signature
//!                 └─ bind      partitions, as the official client asks for them
//! client ─HTTP► services       IMDS, DescribeMountTargets, STS, ECS, Pod Identity
//! ```

// Tests use one part, the program another.
#![allow(dead_code)]

pub(crate) mod bind;
pub(crate) mod front;
pub(crate) mod pki;
pub(crate) mod services;
pub(crate) mod verify;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One principal that the look-alike knows.
#[derive(Debug, Clone)]
pub(crate) struct Principal {
    pub(crate) key_id: String,
    pub(crate) secret: String,
    pub(crate) token: Option<String>,
}

/// How a client is sent away whose certificate is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// By a TLS alert.
    Alert,
    /// By NFS4ERR_ACCESS to its first request, as EFS is known to do.
    Nfs,
    /// By closing the connection.
    HangUp,
}

/// A mount target, as the API describes it.
#[derive(Debug, Clone)]
pub(crate) struct MountTarget {
    pub(crate) address: String,
    pub(crate) zone: String,
    pub(crate) zone_id: String,
    pub(crate) state: String,
}

/// What the look-alike is and how it behaves; may be changed while it runs.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) fs_id: String,
    pub(crate) region: String,
    /// The NFS server of the file system.
    pub(crate) backend: SocketAddr,
    /// Access points, each with the server that exports its root directory.
    pub(crate) access_points: HashMap<String, SocketAddr>,
    pub(crate) principals: Vec<Principal>,
    /// The file system policy demands a signature.
    pub(crate) iam_required: bool,
    /// The file system policy demands TLS.
    pub(crate) tls_required: bool,
    pub(crate) refusal: Refusal,
    /// What bind calls are told.
    pub(crate) binding: bind::Binding,
    /// Where this machine is, by its instance metadata.
    pub(crate) zone: String,
    pub(crate) zone_id: String,
    /// Instance metadata give tokens.
    pub(crate) imds_v2: bool,
    /// ... and demand them.
    pub(crate) imds_v2_only: bool,
    /// Seconds that AWS's clock is ahead of this machine's.
    pub(crate) clock: i64,
    pub(crate) mount_targets: Vec<MountTarget>,
    /// An error of DescribeMountTargets: HTTP status and code.
    pub(crate) api_error: Option<(u16, String)>,
    /// The web identity token and the container token that are good.
    pub(crate) web_token: String,
    pub(crate) container_token: String,
}

impl World {
    pub(crate) fn new(fs_id: &str, region: &str, backend: SocketAddr) -> Self {
        Self {
            fs_id: fs_id.to_owned(),
            region: region.to_owned(),
            backend,
            access_points: HashMap::new(),
            principals: Vec::new(),
            iam_required: false,
            tls_required: false,
            refusal: Refusal::Nfs,
            binding: bind::Binding::default(),
            zone: format!("{region}a"),
            zone_id: "euw1-az1".to_owned(),
            imds_v2: true,
            imds_v2_only: false,
            clock: 0,
            mount_targets: Vec::new(),
            api_error: None,
            web_token: "web-identity-token-that-nobody-may-see".to_owned(),
            container_token: "container-token-that-nobody-may-see".to_owned(),
        }
    }

    /// The principal whose credentials services hand out.
    pub(crate) fn handed_out(&self) -> Principal {
        self.principals.first().cloned().expect("a principal")
    }
}

/// A client certificate that was accepted.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) serial: u64,
    pub(crate) access_point: Option<String>,
    pub(crate) key_id: Option<String>,
    pub(crate) source: String,
    pub(crate) tls: String,
    pub(crate) sni: Option<String>,
    pub(crate) resumed: bool,
}

/// What has happened.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) seen: Vec<Seen>,
    /// Why others were not accepted.
    pub(crate) refused: Vec<String>,
    /// `METHOD path` of every HTTP request.
    pub(crate) requests: Vec<String>,
    /// Connections without TLS.
    pub(crate) plain: u64,
    /// Connections that were let in, as far as what may be said on them.
    pub(crate) streams: Vec<bind::Stream>,
}

/// World and record, shared by all parts.
#[derive(Debug, Clone)]
pub(crate) struct Shared(Arc<(Mutex<World>, Mutex<Record>)>);

impl Shared {
    pub(crate) fn new(world: World) -> Self {
        Self(Arc::new((Mutex::new(world), Mutex::default())))
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn record(&self) -> MutexGuard<'_, Record> {
        self.0.1.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
