//! mount layer.
