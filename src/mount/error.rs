//! Why a mount (or unmount) did not happen, in the words and with the exit
//! status that the user sees.
//!
//! The text of every failure on the way of a mount is made here, so that the
//! same cause reads the same wherever it is noticed.

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::efs::Problem;
use crate::efs::problem::Step;
use crate::efs::source_port::is_reserved;
use crate::quoting;

/// Exit status: arguments, options, device; not our mount.
pub const USAGE: u8 = 1;
/// Exit status: no /dev/fuse, not permitted, no fork.
pub const SYSTEM: u8 = 2;
/// Exit status: everything else on the way of a mount.
pub const MOUNT: u8 = 32;

/// A clock that is off by so many seconds is worth saying. Signatures may be
/// 15 minutes old.
const SKEW: i64 = 300;

/// How a mount asked for what it was denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AccessRequest<'a> {
    /// The server is EFS.
    pub efs: bool,
    /// By TLS.
    pub tls: bool,
    /// With an IAM identity.
    pub iam: bool,
    /// Through this access point.
    pub access_point: Option<&'a str>,
    /// From this port of this machine.
    pub port: Option<u16>,
    /// Seconds that this machine's clock is ahead of AWS's, if that is known.
    pub skew: Option<i64>,
}

/// Whether the same mount may succeed later although nothing is changed here: what
/// `wait=` goes on for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It may, for this reason.
    MayHelp(&'static str),
    /// It will not: something has to be changed by whoever mounts.
    InVain,
}

impl Retry {
    /// Instance metadata and credentials come with the network.
    const NO_METADATA_YET: Self =
        Self::MayHelp("what tells this machine who and where it is may not answer yet");
    /// Servers and networks come up in any order.
    const NOT_UP_YET: Self = Self::MayHelp("the server or the network may not be up yet");
    /// NFS servers bind their ports before all of them is there.
    pub(super) const HALF_UP: Self = Self::MayHelp("the server may not be up entirely");
    /// Exports and access points are made, and policies take effect, while others mount.
    pub(super) const NOT_SET_UP_YET: Self =
        Self::MayHelp("what the server exports, and to whom, may not be set up yet");
}

/// A failure, as its line on stderr says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountError {
    /// `WHAT failed: WHY`, one line, no full stop.
    pub message: String,
    /// What the user can do, as an imperative or a command; no full stop.
    pub remedy: Option<String>,
    /// The exit status: [`USAGE`], [`SYSTEM`] or [`MOUNT`].
    pub status: u8,
    /// Whether `wait=` goes on after it.
    pub retry: Retry,
}

impl fmt::Display for MountError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)?;
        match &self.remedy {
            Some(remedy) => write!(out, ". Try: {remedy}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for MountError {}

impl MountError {
    /// `WHAT failed: WHY` with the given status. Trying again is in vain unless
    /// [`Self::with_retry`] says otherwise.
    pub fn new(status: u8, what: impl fmt::Display, why: impl fmt::Display) -> Self {
        // Other programs' words may come with line breaks.
        let why = plain(why.to_string().trim()).replace('\n', "; ");
        Self {
            message: format!("{what} failed: {why}"),
            remedy: None,
            status,
            retry: Retry::InVain,
        }
    }

    /// Says whether waiting may help.
    #[must_use]
    pub fn with_retry(self, retry: Retry) -> Self {
        Self { retry, ..self }
    }

    /// A mistake in what the user wrote (status 1).
    pub fn usage(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::new(USAGE, what, why)
    }

    /// Something this machine lacks or forbids (status 2).
    pub fn system(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::new(SYSTEM, what, why)
    }

    /// Anything else on the way of a mount (status 32).
    pub fn mount(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::new(MOUNT, what, why)
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl fmt::Display) -> Self {
        self.remedy = Some(remedy.to_string());
        self
    }

    /// mount(2), `fusermount3` or opening `/dev/fuse` said no.
    pub fn mounting(mountpoint: &Path, why: &io::Error) -> Self {
        let what = format!("mounting on {}", quoting::path(mountpoint));
        let text = why.to_string();
        // fuser puts its arguments before the system's words.
        let words = match text
            .strip_prefix("Error calling mount() ")
            .and_then(|text| text.rsplit_once(": "))
        {
            Some((_, words)) => words.to_lowercase(),
            None => text,
        };
        let error = |status| Self::new(status, &what, &words);
        match why.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => error(SYSTEM).remedy(
                "mount as root, in a container with CAP_SYS_ADMIN and /dev/fuse; other users need fusermount3 and, \
                 for allow_other, user_allow_other in /etc/fuse.conf",
            ),
            Some(libc::ENODEV | libc::ENXIO) => error(SYSTEM).remedy("modprobe fuse"),
            Some(libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::EAGAIN) => error(SYSTEM),
            _ if why.kind() == io::ErrorKind::NotFound => {
                error(SYSTEM).remedy("install the package fuse3 and check that /dev/fuse exists")
            }
            // fusermount3 only has words, and fuser wraps mount(2)'s.
            _ if ["ermission denied", "not permitted", "no write access", "EPERM"].iter().any(|word| why.to_string().contains(word)) => {
                error(SYSTEM).remedy("mount as root, in a container with CAP_SYS_ADMIN and /dev/fuse")
            }
            _ => error(MOUNT),
        }
    }

    /// No connection to `peer` (`HOST:PORT`); `why` as `efs::ServerConnector`
    /// gives it.
    pub fn connecting(peer: &str, why: &io::Error) -> Self {
        if let Some(problem) = Problem::of(why) {
            return problem.clone().into();
        }
        let host = peer.rsplit_once(':').map_or(peer, |(host, _)| host);
        let error =
            || Self::mount(format_args!("connecting to {peer}"), why).with_retry(Retry::NOT_UP_YET);
        match why.kind() {
            io::ErrorKind::NotFound => Self::mount(format_args!("resolving {host}"), why)
                .with_retry(Retry::NOT_UP_YET)
                .remedy(format_args!(
                    "check the name and this machine's DNS (getent hosts {host})"
                )),
            io::ErrorKind::ConnectionRefused => error()
                .remedy("check that an NFS server listens there, and -o port= if it is not 2049"),
            io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable => error().remedy(
                "check the route, security groups and firewalls between here and the server",
            ),
            _ => error(),
        }
    }

    /// `peer` accepted the connection and did not answer within `limit`.
    pub fn silent(peer: &str, limit: Duration) -> Self {
        // Of what was measured the tenth is enough, and of a whole number nothing is added.
        let seconds = (limit.as_secs_f64() * 10.0).round() / 10.0;
        Self::mount("mounting", format_args!("{peer} did not answer within {seconds} s"))
            .with_retry(Retry::NOT_UP_YET)
            .remedy("check that it is an NFS server, or go on waiting with -o wait=SECONDS or -o wait=forever")
    }

    /// What came back from `peer` is no ONC RPC.
    pub fn not_nfs(peer: &str) -> Self {
        Self::mount(
            "mounting",
            format_args!("what listens at {peer} is no NFS server"),
        )
        .with_retry(Retry::HALF_UP)
        .remedy("check the host and -o port=")
    }

    /// The server at `peer` speaks NFS, but not version 4.1.
    pub fn no_minor_version(peer: &str) -> Self {
        Self::mount(
            "mounting",
            format_args!("the server at {peer} does not speak NFSv4.1"),
        )
        .with_retry(Retry::HALF_UP)
        .remedy("enable NFSv4.1 on the server; versions 3 and 4.0 are not supported here")
    }

    /// The directory of the device does not exist on the server.
    pub fn no_directory(path: &str) -> Self {
        Self::mount(
            "mounting",
            format_args!("no such directory on the server: {}", quoting::name(path)),
        )
        .with_retry(Retry::NOT_SET_UP_YET)
        .remedy("check the part of the device after the colon, or the server's exports")
    }

    /// The device names something that is there and is no directory.
    pub fn not_a_directory(path: &str) -> Self {
        Self::mount(
            "mounting",
            format_args!("{} on the server is not a directory", quoting::name(path)),
        )
        .with_retry(Retry::NOT_SET_UP_YET)
    }

    /// The server does not let us at the directory.
    pub fn denied(path: &str, asked: &AccessRequest<'_>) -> Self {
        let AccessRequest {
            efs,
            tls,
            iam,
            access_point,
            port,
            skew,
        } = *asked;
        let denied = format!("access to {} denied by the server", quoting::name(path));
        let error = |why: String| {
            Self::mount("mounting", format_args!("{denied}{why}")).with_retry(Retry::NOT_SET_UP_YET)
        };
        if let Some(skew) = skew.filter(|skew| skew.abs() >= SKEW) {
            let direction = if skew > 0 { "ahead of" } else { "behind" };
            let why = format!(
                ", and the clock of this machine is {} s {direction} that of AWS",
                skew.abs()
            );
            return error(why).remedy("set the clock (timedatectl, chronyc tracking)");
        }
        let point = access_point.map(|point| {
            format!(
                "check that access point {point} exists, is of this file system, and that its root directory exists \
                 or may be created (aws efs describe-access-points)"
            )
        });
        match (efs, tls, iam, point) {
            (false, ..) => match port.filter(|port| !is_reserved(*port)) {
                Some(port) => error(format!(" to a client that comes from port {port}")).remedy(
                    "as root and without noresvport: servers that export `secure`, as Linux does by default, refuse \
                     ports above 1023; or check the export's client list and its root squashing",
                ),
                None => error(String::new())
                    .remedy("check the export's client list, its root squashing and the file system policy"),
            },
            (true, false, ..) => error(", without TLS, which the file system policy may demand".to_owned())
                .remedy("leave out notls; and add iam if the policy names principals"),
            (true, true, false, None) => error(", to a client without IAM identity".to_owned())
                .remedy("add iam: the file system policy may demand it; and if it is about an access point, accesspoint="),
            (true, true, false, Some(point)) => error(", to a client without IAM identity".to_owned())
                .remedy(format_args!("{point}; and add iam if the file system policy demands it")),
            (true, true, true, None) => error(" to this IAM principal".to_owned()).remedy(
                "allow it elasticfilesystem:ClientMount on the file system (file system policy and IAM policies; \
                 aws sts get-caller-identity says who it is)",
            ),
            (true, true, true, Some(point)) => error(" to this IAM principal".to_owned()).remedy(format_args!(
                "{point}, and allow the principal elasticfilesystem:ClientMount on it"
            )),
        }
    }

    /// The server accepts TLS and then hangs up without a word.
    pub fn hung_up(peer: &str) -> Self {
        Self::mount(
            "mounting",
            format_args!("{peer} ends every connection right after the TLS handshake"),
        )
        .with_retry(Retry::HALF_UP)
        .remedy(
            "check that an NFS server is behind it; if it is EFS, the file system id, accesspoint=, iam, and the clock",
        )
    }

    /// A signal ended mounting before it was done.
    pub fn interrupted() -> Self {
        Self::mount("mounting", "interrupted by a signal")
    }
}

impl From<Problem> for MountError {
    fn from(problem: Problem) -> Self {
        let retry = match problem.step {
            Step::Region | Step::Zone | Step::Credentials => Retry::NO_METADATA_YET,
            Step::Name | Step::MountTarget | Step::Connection | Step::Tls => Retry::NOT_UP_YET,
        };
        let error = Self::mount(problem.what, problem.why).with_retry(retry);
        match problem.remedy {
            Some(remedy) => error.remedy(remedy),
            None => error,
        }
    }
}

/// The system's words without the number that std appends to them.
fn plain(why: &str) -> String {
    match why.split_once(" (os error ") {
        Some((words, rest)) => {
            let behind = rest.split_once(')').map_or("", |(_, behind)| behind);
            format!("{}{behind}", words.to_lowercase())
        }
        None => why.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_reads_what_failed_why_and_what_to_try() {
        let error = MountError::mount("mounting", "the moon is full").remedy("wait a day");
        assert_eq!(
            error.to_string(),
            "mounting failed: the moon is full. Try: wait a day"
        );
        assert_eq!(error.status, 32);
    }

    #[test]
    fn how_long_a_server_was_silent_is_told_as_people_say_it() {
        for (limit, said) in [(4000, "4"), (4001, "4"), (1500, "1.5")] {
            let told = MountError::silent("h:1", Duration::from_millis(limit)).to_string();
            let said = format!("h:1 did not answer within {said} s.");
            assert!(told.contains(&said), "{told}");
        }
    }

    #[test]
    fn a_forbidden_mount_is_the_systems_fault() {
        let on = Path::new("/mnt");
        for errno in [libc::EPERM, libc::EACCES, libc::ENODEV, libc::ENOENT] {
            let error = MountError::mounting(on, &io::Error::from_raw_os_error(errno));
            assert_eq!(error.status, SYSTEM, "{error}");
            assert!(
                error.remedy.is_some() && !error.message.contains("os error"),
                "{error}"
            );
        }
        assert_eq!(
            MountError::mounting(on, &io::Error::from_raw_os_error(libc::EBUSY)).status,
            MOUNT
        );
    }

    #[test]
    fn each_way_of_being_denied_has_its_own_line() {
        let plain = AccessRequest {
            efs: true,
            ..AccessRequest::default()
        };
        let tls = AccessRequest { tls: true, ..plain };
        let iam = AccessRequest { iam: true, ..tls };
        let point = Some("fsap-0123456789abcdef0");
        let cases = [
            (AccessRequest::default(), "client list"),
            (
                AccessRequest {
                    port: Some(40_000),
                    ..AccessRequest::default()
                },
                "without noresvport",
            ),
            (plain, "leave out notls"),
            (tls, "add iam"),
            (
                AccessRequest {
                    access_point: point,
                    ..tls
                },
                "access point fsap-0123456789abcdef0",
            ),
            (iam, "elasticfilesystem:ClientMount on the file system"),
            (
                AccessRequest {
                    access_point: point,
                    ..iam
                },
                "elasticfilesystem:ClientMount on it",
            ),
            (
                AccessRequest {
                    skew: Some(-900),
                    ..iam
                },
                "set the clock",
            ),
        ];
        let mut lines: Vec<_> = cases
            .iter()
            .map(|(asked, words)| {
                let line = MountError::denied("/", asked).to_string();
                assert!(line.contains(words), "{line}");
                assert!(line.contains("access to / denied by the server"), "{line}");
                line
            })
            .collect();
        assert!(lines[7].contains("900 s behind"), "{}", lines[7]);
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), cases.len());
        // A small skew is none.
        let line = MountError::denied(
            "/",
            &AccessRequest {
                skew: Some(60),
                ..iam
            },
        )
        .to_string();
        assert!(!line.contains("clock"), "{line}");
    }

    #[test]
    fn a_failed_connection_says_which_step_it_was() {
        let refused = MountError::connecting("h:2049", &io::ErrorKind::ConnectionRefused.into());
        assert!(
            refused.message.starts_with("connecting to h:2049 failed: "),
            "{refused}"
        );
        let unknown = MountError::connecting("[::1]:2049", &io::ErrorKind::NotFound.into());
        assert!(
            unknown.message.starts_with("resolving [::1] failed: "),
            "{unknown}"
        );
        assert_eq!((refused.status, unknown.status), (MOUNT, MOUNT));
    }

    /// What `wait=` goes on after, and what ends it at once.
    #[test]
    fn waiting_goes_on_for_the_server_and_not_for_what_the_user_must_change() {
        let peer = "h:2049";
        let problem = |step| MountError::from(Problem::new(step, "finding it", "it is away"));
        let steps = [
            Step::Region,
            Step::Zone,
            Step::Name,
            Step::MountTarget,
            Step::Connection,
            Step::Tls,
            Step::Credentials,
        ];
        let kinds = [
            io::ErrorKind::NotFound,
            io::ErrorKind::ConnectionRefused,
            io::ErrorKind::TimedOut,
            io::ErrorKind::Other,
        ];
        let connecting = kinds.map(|kind| MountError::connecting(peer, &kind.into()));
        let may_pass = [
            MountError::silent(peer, Duration::from_secs(1)),
            MountError::not_nfs(peer),
            MountError::no_minor_version(peer),
            MountError::no_directory("/d"),
            MountError::not_a_directory("/d"),
            MountError::denied("/d", &AccessRequest::default()),
            MountError::hung_up(peer),
        ];
        let all = may_pass.into_iter().chain(connecting);
        for error in all.chain(steps.map(problem)) {
            assert!(matches!(error.retry, Retry::MayHelp(_)), "{error}");
            assert_eq!(error.status, MOUNT, "{error}");
        }
        let on = Path::new("/mnt");
        let forbidden = io::Error::from_raw_os_error(libc::EPERM);
        for error in [
            MountError::usage("reading options", "no such option"),
            MountError::system("starting a thread", "no memory"),
            MountError::mounting(on, &forbidden),
            MountError::interrupted(),
        ] {
            assert_eq!(error.retry, Retry::InVain, "{error}");
        }
    }
}
