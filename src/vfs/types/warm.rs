//! What is asked and answered of files that are put on this host's disk many at a time.

use bytes::Bytes;

/// Where to begin in a directory, and when to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WarmFrom {
    /// Where the last call has ended; 0 for the beginning.
    pub cookie: u64,
    /// As the last call has returned it.
    pub verifier: [u8; 8],
    /// It ends with the file that makes it so many bytes.
    pub most: u64,
}

/// A file whose data are on the disk, or were handed over to be put there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmedFile {
    /// Its name in the directory.
    pub name: Bytes,
    /// Bytes.
    pub size: u32,
}

impl WarmedFile {
    /// What it takes in an answer besides its name: two lengths.
    pub const OVERHEAD: usize = 6;
}

/// What has become of a part of a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Warmed {
    /// Where to go on.
    pub cookie: u64,
    /// To be sent along.
    pub verifier: [u8; 8],
    /// There is nothing more.
    pub eof: bool,
    /// Those that are done with. What else is there has to be opened and read.
    pub files: Vec<WarmedFile>,
}
