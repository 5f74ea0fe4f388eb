//! What can go wrong before the first NFS message, each cause with its words
//! and its remedy.
//!
//! A [`Problem`] travels inside an [`io::Error`] through the RPC layer, which
//! knows nothing of it, and is found again by [`Problem::of`] where the line
//! for the user is made.

use std::fmt;
use std::io;

/// The step of the way at which something was noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Which region.
    Region,
    /// Which zone.
    Zone,
    /// From a name to addresses.
    Name,
    /// From a file system to its mount targets, by the EFS API.
    MountTarget,
    /// TCP.
    Connection,
    /// TLS, up to and including what the server thinks of our certificate.
    Tls,
    /// AWS credentials.
    Credentials,
}

/// What failed, why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where on the way.
    pub step: Step,
    /// `resolving NAME`, for "... failed: why".
    pub what: String,
    /// The cause.
    pub why: String,
    /// What the user can do.
    pub remedy: Option<String>,
}

impl Problem {
    /// `what failed: why`
    pub fn new(step: Step, what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self {
            step,
            what: what.to_string(),
            why: why.to_string(),
            remedy: None,
        }
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl fmt::Display) -> Self {
        self.remedy = Some(remedy.to_string());
        self
    }

    /// The problem that `error` carries, if it is one of ours.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// No region for a bare file system id.
    pub(super) fn no_region(fs_id: &str, imds: &str) -> Self {
        let why = format!("no region is given for {fs_id}, and {imds}");
        Self::new(Step::Region, "finding the region", why)
            .remedy("-o region=REGION, or set AWS_REGION")
    }

    /// `crossaccount` needs the zone's id.
    pub(super) fn no_zone(why: &str) -> Self {
        let why = format!("crossaccount needs the id of this machine's zone, and {why}");
        Self::new(Step::Zone, "finding the zone", why)
            .remedy("let instance metadata be reached, or mount by -o mounttargetip=")
    }

    /// TCP to `peer` failed; `why` keeps its kind. `given` is true for an
    /// address of `mounttargetip=`.
    pub(super) fn connecting(peer: &str, why: &io::Error, efs: bool, given: bool) -> Self {
        let what = match given {
            true => format!("connecting to the mount target address {peer}"),
            false => format!("connecting to {peer}"),
        };
        let problem = Self::new(Step::Connection, what, why);
        match why.kind() {
            io::ErrorKind::TimedOut if efs => problem.remedy(
                "let the mount target's security group accept TCP port 2049 from this machine's, and check \
                 the route and network ACLs between them",
            ),
            io::ErrorKind::ConnectionRefused if efs => problem.remedy(
                "check that this is the address of a mount target (aws efs describe-mount-targets), and -o port=",
            ),
            io::ErrorKind::ConnectionRefused => problem
                .remedy("check that an NFS server listens there, and -o port= if it is not 2049"),
            io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable => problem.remedy(
                "check the route, security groups and firewalls between here and the server",
            ),
            _ => problem,
        }
    }

    /// A name has no address; `efs` for the name of a mount target.
    pub(super) fn resolving(host: &str, why: impl fmt::Display, efs: bool) -> Self {
        let problem = Self::new(Step::Name, format_args!("resolving {host}"), why);
        match efs {
            true => problem.remedy(
                "check id and region, that the file system has a mount target in this VPC, and that the VPC has DNS \
                 resolution and DNS hostnames enabled; or -o mounttargetip=ADDRESS",
            ),
            false => problem.remedy(format_args!(
                "check the name and this machine's DNS (getent hosts {host})"
            )),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} failed: {}", self.what, self.why)
    }
}

impl std::error::Error for Problem {}

impl From<Problem> for io::Error {
    fn from(problem: Problem) -> Self {
        let kind = match problem.step {
            Step::Name | Step::MountTarget => io::ErrorKind::NotFound,
            // Not InvalidData, which is what garbage on the wire is.
            _ => io::ErrorKind::ConnectionAborted,
        };
        Self::new(kind, problem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_survives_its_way_as_an_io_error() {
        let problem = Problem::no_region("fs-1", "nobody answers");
        let error = io::Error::from(problem.clone());
        assert_eq!(Problem::of(&error), Some(&problem));
        assert_eq!(
            error.to_string(),
            "finding the region failed: no region is given for fs-1, and nobody answers"
        );
        assert_eq!(Problem::of(&io::Error::other("x")), None);
    }

    #[test]
    fn what_a_security_group_drops_is_told_from_what_a_host_refuses() {
        let of = |kind: io::ErrorKind, efs| {
            Problem::connecting("h:2049", &kind.into(), efs, false)
                .remedy
                .unwrap_or_default()
        };
        assert!(of(io::ErrorKind::TimedOut, true).contains("security group"));
        assert!(of(io::ErrorKind::ConnectionRefused, true).contains("describe-mount-targets"));
        assert!(of(io::ErrorKind::ConnectionRefused, false).contains("-o port="));
    }
}
