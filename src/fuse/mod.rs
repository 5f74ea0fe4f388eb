//! fuse layer.
