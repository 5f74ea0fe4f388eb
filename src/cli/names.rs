//! How names of files are written on stdout, as `ls` does it: quoted on a terminal,
//! byte by byte elsewhere, and with `-0` for scripts, where no name can be taken for two.

use std::io::{self, IsTerminal};

use crate::quoting;

/// The way names are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    /// Quoted where a name needs it, a line each.
    Quoted,
    /// As it is, a line each.
    Raw,
    /// As it is, ended by a NUL.
    NulEnded,
}

impl Names {
    /// What suits stdout; `nul` is `-0`.
    pub(super) fn on_stdout(nul: bool) -> Self {
        match (nul, io::stdout().is_terminal()) {
            (true, _) => Self::NulEnded,
            (false, true) => Self::Quoted,
            (false, false) => Self::Raw,
        }
    }

    /// A name with what ends it.
    pub(super) fn ended(self, name: &[u8]) -> Vec<u8> {
        match self {
            Self::Quoted => format!("{}\n", quoting::name(name)).into_bytes(),
            Self::Raw => [name, b"\n"].concat(),
            Self::NulEnded => [name, b"\0"].concat(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_as_ls_writes_it_where_it_goes_to() {
        let name = b"a\nb \xff";
        assert_eq!(Names::Quoted.ended(name), b"'a'$'\\n''b '$'\\377'\n");
        assert_eq!(Names::Raw.ended(name), b"a\nb \xff\n");
        assert_eq!(Names::NulEnded.ended(name), b"a\nb \xff\0");
        assert_eq!(Names::Quoted.ended(b"plain"), b"plain\n");
    }
}
