//! Where options come from that nobody has written for the mount itself.

use serde::{Deserialize, Serialize};

/// A source of options, and what came from it: a file of defaults, a profile, the name that the program
/// was called by. It is for people to read; what the options mean does not depend on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// As it is shown: the path of a file, or `profile=NAME`.
    pub from: String,
    /// The options, each as it was written.
    pub options: Vec<String>,
}
