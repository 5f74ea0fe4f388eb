//! efs layer.
