//! The vfs against a reference model (see `tree`).
