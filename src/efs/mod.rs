//! Where the server is and how to connect to it.
//!
//! [`device`] reads what the user wrote, [`region`] completes a bare file
//! system id to a DNS name, [`resolve`] turns names into addresses and
//! [`connector`] into connections. Nothing here speaks NFS, and nothing but
//! [`resolve`] and [`connector`] touches the network.

pub mod connector;
pub mod device;
pub mod region;
pub mod resolve;

pub use connector::TcpConnector;
pub use device::Device;
