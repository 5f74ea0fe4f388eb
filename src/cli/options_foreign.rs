//! Options of mount(8), nfs(5), `mount.efs` and other file systems that mean nothing here:
//! lines are copied from one machine, and from one file system, to another.
//!
//! What changes nothing of the mount's meaning is accepted, with a warning where somebody
//! may count on it. What would change the meaning, and cannot be had, is refused with a
//! sentence that helps; `sloppy` makes a warning of it.

use super::options::Value::{Allowed, Needed, No};
use super::options::{Meaning, OptionSpec, Value};

const LATER: &str = "this version does not have it yet";
const NOT_V41: &str = "this is an NFSv4.1 client over TCP";
const S3_FILES: &str = "it is for S3 Files, not for EFS";
const OWNERS: &str = "files have the owners that the server says; an access point of EFS with a POSIX user \
                      (accesspoint=) makes one of all";
const MODES: &str =
    "files have the modes that the server says; set them there, or in an access point of EFS";
const TIMES: &str = "how long attributes and names are believed is said by actimeo=, acregmin=, acregmax=, \
                     acdirmin=, acdirmax= and lookupcache=";
const PAGES: &str = "what the kernel keeps of a file follows from close-to-open consistency";
const THREADS: &str = "how much is under way at once is said by max_requests= and fuse_threads=";

const fn spec(name: &'static str, value: Value, meaning: Meaning) -> OptionSpec {
    OptionSpec {
        name,
        value,
        help: "",
        meaning,
    }
}

const fn tolerated(name: &'static str, value: Value) -> OptionSpec {
    spec(name, value, Meaning::Tolerated)
}

const fn vain(name: &'static str, why: &'static str) -> OptionSpec {
    spec(name, Allowed, Meaning::Vain(why))
}

const fn only(name: &'static str, values: &'static [&'static str]) -> OptionSpec {
    spec(name, Needed("VALUE"), Meaning::Only(values))
}

const fn refused(name: &'static str, why: &'static str) -> OptionSpec {
    spec(name, Allowed, Meaning::Refused(why))
}

/// The table. Those of one place stand together.
pub(super) static FOREIGN: &[OptionSpec] = &[
    // What this program does anyway.
    only("vers", &["4.1", "4"]),
    only("nfsvers", &["4.1", "4"]),
    only("minorversion", &["1"]),
    only("proto", &["tcp", "tcp6"]),
    spec("sec", Needed("VALUE"), Meaning::Strictly(&["sys"])),
    tolerated("v4", No),
    tolerated("v4.1", No),
    tolerated("tcp", No),
    tolerated("noacl", No),
    tolerated("acl", No),
    tolerated("fg", No),
    // mount(8)'s, systemd's and init's own.
    tolerated("defaults", No),
    tolerated("auto", No),
    tolerated("noauto", No),
    tolerated("_netdev", No),
    tolerated("nofail", No),
    tolerated("user", Allowed),
    tolerated("nouser", No),
    tolerated("users", No),
    tolerated("owner", No),
    tolerated("group", No),
    tolerated("comment", Allowed),
    // Shown in the mount table, and given back to us by `mount -o remount`.
    tolerated("user_id", Needed("UID")),
    tolerated("group_id", Needed("GID")),
    tolerated("max_read", Needed("BYTES")),
    tolerated("seclabel", No),
    tolerated("norelatime", No),
    tolerated("nostrictatime", No),
    tolerated("diratime", No),
    tolerated("nodiratime", No),
    tolerated("lazytime", No),
    tolerated("nolazytime", No),
    tolerated("iversion", No),
    tolerated("noiversion", No),
    tolerated("silent", No),
    tolerated("loud", No),
    // Of nfs(5), without a counterpart here.
    tolerated("intr", No),
    tolerated("nointr", No),
    tolerated("rdirplus", Allowed),
    tolerated("sharecache", No),
    tolerated("nosharecache", No),
    tolerated("posix", No),
    tolerated("noposix", No),
    tolerated("nomigration", No),
    tolerated("nofsc", No),
    tolerated("notrunkdiscovery", No),
    tolerated("clientaddr", Needed("ADDRESS")),
    tolerated("addr", Needed("ADDRESS")),
    tolerated("nosoftreval", No),
    vain(
        "bg",
        "mount returns when the directory can be used; -o wait=forever, or nofail in fstab, or \
         efs-fuse@.service for a server that comes later",
    ),
    vain(
        "nordirplus",
        "listings bring attributes along where they are used",
    ),
    vain("fsc", "there is no cache on local disk"),
    vain(
        "migration",
        "a file system that moves to another server is not followed; the name is resolved at every connection",
    ),
    // Of mount.efs, without a counterpart: there is no process in between.
    tolerated("stunnel", No),
    tolerated("tlsport", Needed("PORT")),
    tolerated("noocsp", No),
    // Of FUSE file systems, where it is so anyway.
    tolerated("nonempty", No),
    tolerated("big_writes", No),
    tolerated("rootmode", Needed("MODE")),
    // What later versions bring.
    refused("softreval", LATER),
    refused("max_connect", LATER),
    refused("trunkdiscovery", LATER),
    // What it will never be.
    refused(
        "ocsp",
        "issuers are not asked whether they revoked a certificate",
    ),
    refused("capath", "use cafile="),
    refused("azid", S3_FILES),
    refused("nodirects3read", S3_FILES),
    refused("nos3readcache", S3_FILES),
    refused("udp", NOT_V41),
    refused("rdma", NOT_V41),
    refused("v2", NOT_V41),
    refused("v3", NOT_V41),
    refused("v4.0", NOT_V41),
    refused("v4.2", NOT_V41),
    refused("mountproto", NOT_V41),
    refused("mountport", NOT_V41),
    refused("mountvers", NOT_V41),
    refused("mounthost", NOT_V41),
    // What users of other FUSE file systems know.
    refused("uid", OWNERS),
    refused("gid", OWNERS),
    refused("idmap", OWNERS),
    refused("umask", MODES),
    refused("fmask", MODES),
    refused("dmask", MODES),
    refused("file_mode", MODES),
    refused("dir_mode", MODES),
    refused("attr_timeout", TIMES),
    refused("entry_timeout", TIMES),
    refused("negative_timeout", TIMES),
    refused("ac_attr_timeout", TIMES),
    refused("kernel_cache", PAGES),
    refused("auto_cache", PAGES),
    refused("direct_io", PAGES),
    refused("max_background", THREADS),
    refused("congestion_threshold", THREADS),
    refused("max_threads", THREADS),
    refused("max_write", "the bytes of one WRITE are said by wsize="),
    refused("max_readahead", "the bytes of one READ are said by rsize="),
    refused(
        "allow_root",
        "use allow_other: permissions are the server's",
    ),
    refused("fsname", "the mount table shows the device"),
    refused("subtype", "the mount table shows fuse.efs-fuse"),
    refused(
        "auto_unmount",
        "a dead mount is replaced by the next one, or by efs-fuse umount",
    ),
    refused(
        "reconnect",
        "connections that are lost are made anew by themselves",
    ),
    refused(
        "credentials",
        "there are no passwords; iam, awsprofile= and what follows say who asks",
    ),
    refused("username", "each request is made as the user who asks"),
    refused(
        "password",
        "there are no passwords; iam says who connects to EFS",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_says_what_to_use_instead_or_why_there_is_nothing() {
        for spec in FOREIGN {
            if let Meaning::Refused(why) | Meaning::Vain(why) = spec.meaning {
                assert!(
                    why.len() > 10 && !why.ends_with('.'),
                    "{}: {why}",
                    spec.name
                );
            }
        }
    }
}
