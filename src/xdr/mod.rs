//! xdr layer.
