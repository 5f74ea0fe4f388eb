//! Why a call has no reply body.

/// Why a call has no reply body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RpcError {
    /// The channel was closed before the reply came.
    #[error("the connection to the server is closed")]
    Closed,
    /// The server does not speak this program or version.
    #[error("the server does not speak NFS version 4 (RPC: {0})")]
    NotSpoken(&'static str),
    /// The server refused the credential (`auth_stat`, RFC 5531 §9).
    #[error("the server refuses AUTH_SYS credentials (auth_stat {0})")]
    AuthRefused(u32),
    /// The server could not decode the call, or failed inside.
    #[error("the server could not process the call (RPC: {0})")]
    Failed(&'static str),
    /// The caller has been answered, so the call was not sent; or (`sent`) it was, and
    /// its connection was lost: it was not sent again, and may have been executed.
    #[error("the caller does not wait any more")]
    Abandoned {
        /// It was handed to a connection.
        sent: bool,
    },
}
