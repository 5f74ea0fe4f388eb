//! What lists of options mean, and what is said of those that mean nothing.

use super::*;
use crate::efs::Settings;
use crate::mount::options::{Atime, MAX_IO, MIN_IO, MountWait, Unanswered};

fn meant(list: &str) -> Result<MountOptions, OptionError> {
    mean(&read(&[list], false)?.typed)
}

#[track_caller]
fn taken(list: &str) -> MountOptions {
    meant(list).unwrap_or_else(|why| panic!("{list}: {why}"))
}

#[track_caller]
fn wrong(list: &str, because: &str) -> OptionError {
    match meant(list) {
        Ok(options) => panic!("{list} was taken for {options:?}"),
        Err(why) => {
            assert!(why.to_string().contains(because), "{list}: {why}");
            why
        }
    }
}

#[test]
fn nothing_given_means_the_defaults() {
    for list in ["", ",", "defaults", "rw", "hard,ac,dev,suid,exec,async"] {
        assert_eq!(taken(list), MountOptions::default(), "{list}");
    }
}

#[test]
fn a_later_option_wins_over_a_profile_and_a_later_profile_over_an_option() {
    let web = taken("profile=web");
    assert_eq!(web.name_cache, NameCache::Complete);
    assert!(!web.close_to_open);
    let times = |o: &MountOptions| {
        (
            o.cache_times.reg_min.as_secs(),
            o.cache_times.reg_max.as_secs(),
        )
    };
    assert_eq!(times(&web), (10, 30));
    let other = taken("profile=web,cto,acregmax=300");
    assert!(other.close_to_open);
    assert_eq!(times(&other), (10, 300));
    assert_eq!(other.name_cache, NameCache::Complete, "the rest stays");
    assert_eq!(times(&taken("acregmax=300,profile=web")), (10, 30));
    assert_eq!(times(&taken("profile=web,acregmax=2")), (2, 2));
    assert_eq!(times(&taken("profile=web,noac")), (0, 0));
    assert!(taken("profile=web,profile=db").close_to_open);
}

#[test]
fn a_profile_is_written_with_all_that_it_stands_for_and_read_again_as_the_same() {
    let typed = read(&["profile=web,cto"], false).unwrap().typed;
    let written: Vec<_> = typed.iter().map(Typed::written).collect();
    assert_eq!(
        written[..3],
        ["profile=web", "nocto", "lookupcache=complete"]
    );
    assert_eq!(written.last().map(String::as_str), Some("cto"));
    let again = read(&[written.join(",")], false).unwrap().typed;
    assert_eq!(mean(&again).unwrap(), mean(&typed).unwrap());
}

#[test]
fn a_profile_that_there_is_not_is_told_with_those_that_there_are() {
    let why = wrong("profile=wbe", "expected one of ci, db, home, ml, web");
    assert_eq!(why.to_string().lines().count(), 1);
    wrong("profile", "profile=ci|db|home|ml|web");
}

#[test]
fn every_supported_option_reaches_its_field() {
    let o = taken(
        "ro,nodev,nosuid,noexec,noatime,allow_other,nodefault_permissions,port=12049,region=eu-west-1,notls,\
         mount_timeout=7,softerr,timeo=50,retrans=3,rsize=64k,wsize=131072,write_window=8m,max_requests=16,fuse_threads=3,\
         acregmin=1,acregmax=2,acdirmin=4,acdirmax=5,lookupcache=pos,debug,log=/var/log/e,\
         slow_op_ms=250,metrics=:9400,nconnect=2,max_connections=6,writeback,writeback_delay=300",
    );
    assert_eq!(
        (o.writeback, o.writeback_delay),
        (true, Duration::from_millis(300))
    );
    assert!(
        o.read_only
            && !o.dev
            && !o.suid
            && !o.exec
            && o.server.tls == Some(false)
            && o.debug
            && !o.default_permissions
    );
    assert_eq!(
        (o.atime, o.allow_other, o.server.port),
        (Atime::Never, Some(true), 12049)
    );
    assert_eq!(o.server.region.as_deref(), Some("eu-west-1"));
    assert_eq!(o.mount_wait, MountWait::GiveUpAfter(Duration::from_secs(7)));
    assert_eq!(
        (o.unanswered, o.timeo, o.retrans),
        (Unanswered::SoftErr, Duration::from_secs(5), 3)
    );
    assert_eq!(o.soft_limit(), Duration::from_secs(15));
    for (list, unanswered) in [("soft", Unanswered::Soft), ("hard", Unanswered::Hard)] {
        assert_eq!(taken(list).unanswered, unanswered, "{list}");
    }
    assert_eq!(
        (o.rsize, o.wsize, o.write_window),
        (65_536, 131_072, 8 << 20)
    );
    assert_eq!((o.max_requests, o.fuse_threads), (16, 3));
    assert_eq!((o.nconnect, o.max_connections), (Some(2), Some(6)));
    let seconds = |s| Duration::from_secs(s);
    let times = CacheTimes {
        reg_min: seconds(1),
        reg_max: seconds(2),
        dir_min: seconds(4),
        dir_max: seconds(5),
    };
    assert_eq!((o.cache_times, o.name_cache), (times, NameCache::Positive));
    assert_eq!(o.log_file.as_deref(), Some("/var/log/e".as_ref()));
    assert_eq!(o.slow_op, Some(Duration::from_millis(250)));
    assert!(o.metrics.is_some() && !o.remount);
}

#[test]
fn waiting_is_for_a_time_or_forever() {
    assert_eq!(
        taken("wait=90").mount_wait,
        MountWait::WaitFor(Duration::from_secs(90))
    );
    assert_eq!(taken("wait=forever").mount_wait, MountWait::WaitForever);
    wrong("wait=never", "forever");
    wrong("wait=0", "at least 1");
    let minutes = |n: u64| MountWait::WaitFor(Duration::from_secs(60 * n));
    assert_eq!(taken("retry=2").mount_wait, minutes(2));
    assert_eq!(
        taken("wait=forever,retry=10000").mount_wait,
        minutes(10_000)
    );
    // One attempt, as long as it takes to know.
    assert_eq!(
        taken("retry=0").mount_wait,
        MountOptions::default().mount_wait
    );
}

#[test]
fn what_mount_and_fstab_add_is_tolerated() {
    taken("defaults,_netdev,nofail,noauto,auto,user,user=joe,users,owner,group,comment=x");
    taken("x-systemd.automount,x-systemd.idle-timeout=60,X-mount.mkdir,noresvport,nointr,intr,tcp");
    taken(
        "vers=4.1,nfsvers=4.1,minorversion=1,proto=tcp,sec=sys,timeo=600,retrans=2,lookupcache=all,cto,fg",
    );
}

#[test]
fn another_protocol_is_a_clear_error() {
    for list in [
        "vers=3",
        "v4.2",
        "vers=4.2",
        "minorversion=0",
        "proto=udp",
        "sec=krb5",
        "udp",
    ] {
        let why = wrong(list, "not supported");
        assert!(
            why.to_string()
                .contains(list.split('=').next().unwrap_or(list)),
            "{why}"
        );
    }
}

#[test]
fn what_later_versions_bring_is_refused_by_name() {
    for list in ["softreval", "trunkdiscovery"] {
        let why = wrong(list, "not supported").to_string();
        assert!(why.contains("this version"), "{why}");
    }
}

#[test]
fn the_options_of_mount_efs_reach_their_fields() {
    let s = taken(
        "tls,iam,accesspoint=fsap-0123456789abcdef0,az=eu-west-1a,region=eu-west-1,mounttargetip=10.0.0.7,\
         dns_suffix=amazonaws.example,noapi,client_source=k8s,\
         awsprofile=p,cafile=/ca.pem,verify=0,fips,tls_renew=5,netns=/run/netns/x,port=20049",
    )
    .server;
    assert_eq!(
        s,
        Settings {
            port: 20_049,
            reserved_port: None,
            tls: Some(true),
            iam: true,
            access_point: Some("fsap-0123456789abcdef0".to_owned()),
            region: Some("eu-west-1".to_owned()),
            dns_suffix: Some("amazonaws.example".to_owned()),
            zone: Some("eu-west-1a".to_owned()),
            mount_target: Some([10, 0, 0, 7].into()),
            ask_api: false,
            cross_account: false,
            profile: Some("p".to_owned()),
            credentials_uri: None,
            role: None,
            token_file: None,
            ca_file: Some("/ca.pem".into()),
            verify: false,
            fips: true,
            netns: Some("/run/netns/x".into()),
            client_source: Some("k8s".to_owned()),
            renew: Duration::from_secs(5),
        }
    );
    let s = taken("iam,rolearn=arn:aws:iam::1:role/r,jwtpath=/t,crossaccount").server;
    assert_eq!(
        (s.role.as_deref(), s.token_file),
        (Some("arn:aws:iam::1:role/r"), Some("/t".into()))
    );
    assert!(s.cross_account && s.verify && s.tls.is_none());
    assert_eq!(
        taken("iam,awscredsuri=/v2/c")
            .server
            .credentials_uri
            .as_deref(),
        Some("/v2/c")
    );
    assert_eq!(
        taken("mounttargetip=[::1]").server.mount_target,
        "::1".parse().ok()
    );
    // Nothing in between to configure.
    assert_eq!(
        taken("stunnel,tlsport=20050,noocsp"),
        MountOptions::default()
    );
    wrong("ocsp", "revoked");
    wrong("azid=euw1-az1", "S3 Files");
    wrong("capath=/x", "cafile=");
}

#[test]
fn an_option_that_means_nothing_alone_says_what_it_needs() {
    for (list, because) in [
        ("awsprofile=p", "awsprofile needs iam"),
        ("awscredsuri=/x", "awscredsuri needs iam"),
        ("iam,rolearn=arn:aws:iam::1:role/r", "rolearn needs jwtpath"),
        ("iam,jwtpath=/t", "jwtpath needs rolearn"),
    ] {
        assert!(
            wrong(list, because)
                .remedy()
                .is_some_and(|it| it.starts_with("add "))
        );
    }
}

#[test]
fn behind_an_access_point_the_server_alone_checks_permissions() {
    let point = "accesspoint=fsap-0123456789abcdef0";
    assert!(!taken(point).default_permissions);
    assert!(taken(&format!("{point},default_permissions")).default_permissions);
    assert!(taken("").default_permissions);
}

#[test]
fn an_unknown_option_is_named_with_its_nearest_neighbour() {
    let why = wrong("rszie=4096", "unknown option \"rszie\"");
    assert!(
        why.remedy()
            .is_some_and(|remedy| remedy.contains("-o rsize"))
    );
    let why = wrong("frobnicate", "\"frobnicate\"");
    assert!(why.remedy().is_some_and(|remedy| remedy.contains("--help")));
    let why = wrong("mount_timout=3", "\"mount_timout\"");
    assert!(
        why.remedy()
            .is_some_and(|remedy| remedy.contains("-o mount_timeout"))
    );
    // Case matters.
    wrong("RO", "\"RO\"");
}

#[test]
fn sloppy_turns_unknown_options_into_warnings() {
    let by_flag = read(&["frobnicate=1,ro"], true);
    let by_name = read(&["frobnicate=1", "ro,sloppy"], false);
    for found in [by_flag, by_name] {
        let found = found.unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(found.ignored, ["unknown option \"frobnicate\" is ignored"]);
        assert!(mean(&found.typed).is_ok_and(|options| options.read_only));
    }
    assert!(read(&["port=x"], true).is_ok_and(|found| mean(&found.typed).is_err()));
}

#[test]
fn sloppy_lets_everything_pass_that_is_refused_but_less_secrecy() {
    for spec in all() {
        let written = match spec.meaning {
            Meaning::Refused(_) => spec.name.to_owned(),
            Meaning::Only(_) => format!("{}=0", spec.name),
            _ => continue,
        };
        assert!(read(&[&written], false).is_err(), "{written}");
        let found = read(&[&written], true).unwrap_or_else(|why| panic!("{why}"));
        let [line] = &found.ignored[..] else {
            panic!("{:?}", found.ignored);
        };
        assert!(
            line.contains(spec.name) && line.contains(" is ignored: "),
            "{line}"
        );
    }
    assert!(read(&["sec=krb5p"], true).is_err());
    assert!(read(&["xprtsec=mtls"], true).is_ok_and(|found| mean(&found.typed).is_err()));
}

#[test]
fn what_is_copied_from_other_machines_is_taken_as_it_is_meant() {
    let same = [
        "vers=4",
        "nfsvers=4",
        "v4.1",
        "v4",
        "minorversion=1",
        "sharecache",
        "migration",
        "posix",
        "write=lazy",
        "write=eager",
        "xprtsec=none",
        "acl",
        "noposix",
        "nodiratime",
        "fg",
        "bg",
        "nordirplus",
        "cto",
        "fsc",
        "nofsc",
        "nonempty",
    ];
    for list in same {
        let expected = MountOptions {
            server: Settings {
                tls: (list == "xprtsec=none").then_some(false),
                ..Settings::default()
            },
            ..MountOptions::default()
        };
        assert_eq!(taken(list), expected, "{list}");
    }
    assert_eq!(taken("write=wait").write_window, 0);
    assert!(taken("nosymfollow").nosymfollow && !taken("nosymfollow,symfollow").nosymfollow);
    wrong("xprtsec=tls", "RFC 9289");
    wrong("write=late", "lazy, eager or wait");
    wrong("retry=-1", "a number from 0");
}

#[test]
fn who_may_count_on_what_has_no_effect_is_told_why() {
    for name in ["bg", "nordirplus", "fsc", "migration"] {
        let found = read(&[name], false).unwrap_or_else(|why| panic!("{why}"));
        let start = format!("option {name} has no effect: ");
        assert!(found.ignored[0].starts_with(&start), "{:?}", found.ignored);
    }
    assert!(read(&["sharecache,nolock,intr"], false).is_ok_and(|found| found.ignored.is_empty()));
}

#[test]
fn contexts_are_for_the_kernel_and_keep_their_commas() {
    let list = "rootcontext=a:b:c:s0,context=\"a:b:c:s0\",context=\"a:b:c:s0:c1,c2\"";
    assert_eq!(
        taken(list).security,
        ["rootcontext=a:b:c:s0", "context=\"a:b:c:s0:c1,c2\""]
    );
    wrong("context", "needs a value");
}

#[test]
fn what_users_of_other_file_systems_write_is_refused_with_what_to_write_here() {
    for (list, because) in [
        ("uid=1000", "accesspoint="),
        ("umask=022", "access point"),
        ("attr_timeout=1", "acregmin="),
        ("allow_root", "allow_other"),
        ("max_write=131072", "wsize="),
    ] {
        wrong(list, because);
    }
}

#[test]
fn what_is_suggested_is_whole_and_can_be_had() {
    for (written, suggested) in [
        ("acregmim=3", "-o acregmin=SECONDS, or"),
        (
            "lookup_cache=none",
            "-o lookupcache=all|positive|none|complete, or",
        ),
        ("qq", "--help"),
        ("bq", "--help"),
        ("soft_reval", "-o nosoftreval, or"),
    ] {
        let remedy = wrong(written, "unknown option")
            .remedy()
            .unwrap_or_default();
        assert!(remedy.contains(suggested), "{written}: {remedy}");
    }
    for spec in all() {
        let refused = matches!(spec.meaning, Meaning::Refused(_) | Meaning::Vain(_));
        let near = nearest(&format!("{}_", spec.name)).unwrap_or_default();
        assert!(!refused || near != spec.written(), "{near}");
    }
}

#[test]
fn malformed_values_are_named() {
    for list in [
        "port=0",
        "port=65536",
        "port=nfs",
        "rsize=big",
        "rsize=0",
        "acregmin=-1",
        "acdirmax=1.5",
        "write_window=1x",
        "fuse_threads=0",
        "max_requests=0",
        "nconnect=0",
        "nconnect=17",
        "max_connections=many",
        "mount_timeout=0",
        "lookupcache=some",
        "region=EU",
        "timeo=0",
        "retrans=many",
        "slow_op_ms=0",
        "metrics=somewhere",
        "accesspoint=fsap-12345678",
        "accesspoint=fsap-0123456789ABCDEF0",
        "mounttargetip=host",
        "verify=9",
        "az=A",
        "tls_renew=0",
    ] {
        let name = list.split('=').next().unwrap_or(list);
        let why = wrong(list, "malformed").to_string();
        assert!(why.starts_with(&format!("{name}=")), "{why}");
    }
    wrong("port", "needs a value, port=PORT");
    wrong("port=", "needs a value");
    wrong("ro=1", "takes no value");
}

#[test]
fn what_cannot_both_be_meant_is_named() {
    for (list, because) in [
        (
            "mounttargetip=::1,crossaccount",
            "mounttargetip and crossaccount",
        ),
        (
            "iam,awsprofile=p,awscredsuri=/x",
            "awsprofile and awscredsuri",
        ),
    ] {
        assert!(wrong(list, because).remedy().is_some());
    }
}

#[test]
fn of_two_that_contradict_each_other_the_later_counts() {
    for (first, second) in [
        ("ro", "rw"),
        ("ac", "noac"),
        ("sync", "async"),
        ("sync", "write_window=1m"),
        ("hard", "soft"),
        ("soft", "softerr"),
        ("mount_timeout=5", "wait=7"),
        ("wait=7", "retry=1"),
        ("tls", "notls"),
        ("tls", "xprtsec=none"),
        ("lock", "nolock"),
        ("resvport", "noresvport"),
        ("acregmin=10,acregmax=20", "acregmin=5,acregmax=6"),
    ] {
        let both = [format!("{first},{second}"), format!("{second},{first}")];
        assert_eq!(taken(&both[0]), taken(second), "{}", both[0]);
        assert_eq!(taken(&both[1]), taken(first), "{}", both[1]);
    }
    // Of two times that cannot both be, the earlier one gives way.
    let times = |list| {
        let CacheTimes {
            reg_min, reg_max, ..
        } = taken(list).cache_times;
        (reg_min.as_secs(), reg_max.as_secs())
    };
    assert_eq!(times("acregmin=10,acregmax=5"), (5, 5));
    assert_eq!(times("acregmax=5,acregmin=10"), (10, 10));
}

#[test]
fn the_last_of_several_counts() {
    assert_eq!(taken("port=1,port=2").server.port, 2);
    assert!(taken("nosuid,suid").suid);
    let two_lists = read(&["acregmin=1", "acregmin=2"], false).and_then(|found| mean(&found.typed));
    assert!(two_lists.is_ok_and(|o| o.cache_times.reg_min == Duration::from_secs(2)));
}

#[test]
fn a_default_gives_way_to_what_was_given() {
    assert_eq!(
        taken("acregmax=1").cache_times.reg_min,
        Duration::from_secs(1)
    );
    assert_eq!(
        taken("acdirmin=600").cache_times.dir_max,
        Duration::from_secs(600)
    );
}

#[test]
fn noac_believes_nothing() {
    for list in [
        "noac",
        "noac,actimeo=0",
        "noac,actimeo=30",
        "acregmax=9,noac",
    ] {
        let options = taken(list);
        assert_eq!(
            (options.cache_times, options.name_cache),
            (CacheTimes::NONE, NameCache::None)
        );
    }
    let options = taken("actimeo=0");
    assert_eq!(
        (options.cache_times, options.name_cache),
        (CacheTimes::NONE, NameCache::All)
    );
}

#[test]
fn sizes_are_brought_within_the_limits() {
    assert_eq!(taken("rsize=1024").rsize, MIN_IO);
    assert_eq!(taken("wsize=1g").wsize, MAX_IO);
    assert_eq!(taken("rsize=5000").rsize, 4096);
    assert_eq!(taken("sync").write_window, 0);
    assert_eq!(taken("sync,write_window=0").write_window, 0);
}

#[test]
fn a_quoted_value_may_contain_commas_and_equals_signs() {
    assert_eq!(
        taken("log=\"/a,b=c\",ro").log_file.as_deref(),
        Some("/a,b=c".as_ref())
    );
    // Split at the first equals sign only.
    assert_eq!(taken("log=/a=b").log_file.as_deref(), Some("/a=b".as_ref()));
}

#[test]
fn a_relative_log_file_is_of_the_directory_of_the_command() {
    let expected = std::env::current_dir().map(|dir| dir.join("x.log")).ok();
    assert_eq!(taken("log=x.log").log_file, expected);
}

#[test]
fn contradictions_are_between_options_that_exist() {
    let exists = |name: &str| all().any(|spec| spec.name == name);
    let pairs = CONTRADICTIONS.iter().flat_map(|(one, other)| [one, other]);
    let needs = NEEDS.iter().flat_map(|(one, other)| [one, other]);
    assert!(pairs.chain(needs).all(|name| exists(name)));
}
