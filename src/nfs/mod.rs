//! nfs layer.
