//! Where the server is and how to connect to it.
//!
//! ```text
//! device, settings     what the user wrote, and whether it fits together (pure)
//!   └─► target         the names: region, imds
//!         └─► resolve, mount_targets     the addresses, anew at every connection
//! connector            a connection as a mount wants it; asks all of them
//!   ├─► tcp            the first address that answers
//!   │     └─► source_port   from a port that only root may use
//!   ├─► partition, bind  several connections of one session, by the bind protocol
//!   ├─► tls ─► trust   the handshake; whom to believe
//!   └─► identity       the client certificate of the next connection
//!         ├─► credentials ─► profile     of the IAM principal; whose files are believed
//!         └─► certificate, sigv4, der    byte for byte as EFS wants it
//! problem              every cause of failure with words and remedy
//! ```
//!
//! Nothing here speaks NFS. Keys, tokens and secrets are in memory only and
//! have no `Debug` form.

mod bind;
mod certificate;
pub mod clock;
pub mod connector;
mod credentials;
mod der;
pub mod device;
mod http;
pub mod identity;
pub mod imds;
pub mod mount_targets;
pub mod outside;
mod partition;
pub mod problem;
mod profile;
mod programs;
pub mod region;
pub mod resolve;
pub mod settings;
mod sigv4;
pub mod source_port;
pub mod target;
mod tcp;
pub mod tls;
mod trust;

pub use connector::ServerConnector;
pub use device::Device;
pub use problem::Problem;
pub use settings::Settings;
pub use tcp::TcpConnector;
