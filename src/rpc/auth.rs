//! AUTH_SYS credentials (RFC 5531 appendix A): who a call is made for.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::xdr::Encoder;

/// The flavor number of AUTH_SYS.
const AUTH_SYS: u32 = 1;

/// AUTH_SYS carries no more supplementary groups than this. What a process has
/// beyond is not sent, as with every NFS client; access by such a group is
/// then refused by the server.
pub const MAX_GROUPS: usize = 16;

/// The identity of a call: uid, gid and supplementary groups.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Credential {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups; only the first [`MAX_GROUPS`] are sent.
    pub gids: Vec<u32>,
}

impl Credential {
    /// The identity that client-state calls use (EXCHANGE_ID, CREATE_SESSION,
    /// lease renewal, ...): always the same one, because the server ties the
    /// client id to the principal that made it (RFC 8881 §18.35.3).
    pub fn machine() -> Arc<Self> {
        Arc::new(Self {
            uid: 0,
            gid: 0,
            gids: Vec::new(),
        })
    }

    /// The identity of this process.
    pub fn of_process() -> Arc<Self> {
        // SAFETY: neither call has preconditions or can fail.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        Arc::new(Self {
            uid,
            gid,
            gids: Vec::new(),
        })
    }

    /// Appends the credential and the (empty) verifier of a call header.
    pub fn encode(&self, machine_name: &str, enc: &mut Encoder) {
        let groups = &self.gids[..self.gids.len().min(MAX_GROUPS)];
        let name = &machine_name.as_bytes()[..machine_name.len().min(255)];
        let name_len = name.len() + crate::xdr::padding(name.len());
        let body = 4 + 4 + name_len + 4 + 4 + 4 + 4 * groups.len();
        enc.u32(AUTH_SYS).u32(body as u32);
        enc.u32(0).opaque(name).u32(self.uid).u32(self.gid);
        enc.u32(groups.len() as u32);
        for &gid in groups {
            enc.u32(gid);
        }
        enc.u32(0).u32(0); // verifier: AUTH_NONE, empty
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_length_covers_exactly_the_credential() {
        let cred = Credential {
            uid: 1000,
            gid: 100,
            gids: vec![4, 24],
        };
        let mut enc = Encoder::default();
        cred.encode("box", &mut enc);
        assert_eq!(
            enc.as_slice(),
            [
                0, 0, 0, 1, // AUTH_SYS
                0, 0, 0, 32, // body length
                0, 0, 0, 0, // stamp
                0, 0, 0, 3, b'b', b'o', b'x', 0, // machine name
                0, 0, 3, 232, 0, 0, 0, 100, // uid, gid
                0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 24, // gids
                0, 0, 0, 0, 0, 0, 0, 0, // verifier
            ]
        );
    }

    #[test]
    fn no_more_than_sixteen_groups_are_sent() {
        let cred = Credential {
            uid: 1,
            gid: 1,
            gids: (0..40).collect(),
        };
        let mut enc = Encoder::default();
        cred.encode("", &mut enc);
        assert_eq!(enc.len(), 8 + 20 + 16 * 4 + 8);
        assert_eq!(enc.as_slice()[24..28], [0, 0, 0, 16]);
    }
}
