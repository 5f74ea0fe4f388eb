//! Names, listings and attributes that are answered without asking: what that
//! saves, and that it breaks no promise. The other host is the server's own
//! file system, which tells nobody.

use std::sync::Arc;
use std::time::Duration;

use efs_fuse::rpc::auth::Credential;
use efs_fuse::vfs::Timeouts;
use efs_fuse::vfs::types::{Ino, Lookup, MissingNames, ROOT_INO, SetAttr};

use super::rig::{Mount, connect, default_timeouts, join_all, millis, seconds, within};
use crate::peer::proto::op;
use crate::peer::{Action, Peer, PeerConfig};

pub(super) async fn mount(cfg: PeerConfig) -> Mount {
    Mount::of(&slow_peer(cfg), "one", default_timeouts()).await
}

fn slow_peer(cfg: PeerConfig) -> Arc<Peer> {
    Peer::new(PeerConfig {
        latency: Duration::from_millis(1),
        ..cfg
    })
}

/// Both kinds of server: change_info4 is atomic, or is not.
fn kinds() -> [PeerConfig; 2] {
    [false, true].map(|atomic_cinfo| PeerConfig {
        atomic_cinfo,
        ..PeerConfig::default()
    })
}

/// Runs something and says what it cost.
async fn cost<T>(mount: &Mount, run: impl Future<Output = T>) -> (T, u64) {
    mount.peer.clear_log();
    let result = within(1000, run).await;
    (result, mount.peer.round_trips())
}

pub(super) async fn is_there(mount: &Mount, dir: Ino, name: &str) -> bool {
    mount.lookup(dir, name).await.expect("lookup").is_some()
}

/// As the kernel and the adapter do.
pub(super) async fn make(mount: &Mount, dir: Ino, name: &str) {
    if !mount.vfs.may_be_made(dir, name.as_bytes()) {
        assert!(!is_there(mount, dir, name).await, "{name} is there already");
    }
    let file = mount.create(dir, name, libc::O_RDWR).await.expect("create");
    mount.close(file).await.expect("close");
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_we_made_knows_what_is_missing_in_it() {
    for cfg in kinds() {
        let mount = mount(cfg).await;
        let dir = mount.mkdir(ROOT_INO, "dir").await.unwrap();
        for number in 0..50 {
            make(&mount, dir, &format!("f{number}")).await;
        }
        mount.rename((dir, "f0"), (dir, "moved")).await.unwrap();
        mount.unlink(dir, "f1").await.unwrap();
        let ((), spent) = cost(&mount, async {
            assert!(!is_there(&mount, dir, "f0").await);
            assert!(!is_there(&mount, dir, "f1").await);
            assert!(is_there(&mount, dir, "moved").await);
            assert!(is_there(&mount, dir, "f49").await);
            assert!(
                mount.vfs.may_be_made(dir, b"none"),
                "but not answered by us"
            );
        })
        .await;
        assert_eq!(spent, 0);
        assert_eq!(mount.peer.count_op(op::LOOKUP), 0);
        for spent in [1, 0] {
            let (there, cost) = cost(&mount, is_there(&mount, dir, "none")).await;
            assert!(!there && cost == spent, "asked for once");
        }
        let (listed, spent) = cost(&mount, mount.list(dir, true)).await;
        assert_eq!(listed.unwrap().len(), 49);
        assert_eq!(spent, 1, "the server is asked whether they are still those");
    }
}

#[tokio::test(start_paused = true)]
async fn files_made_in_parallel_in_one_directory_cost_no_lookups() {
    for cfg in kinds() {
        let mount = mount(cfg).await;
        let dir = mount.mkdir(ROOT_INO, "dir").await.unwrap();
        mount.peer.clear_log();
        // Replies overtake each other.
        let mut turn = 0_u64;
        mount.peer.on_op(move |event| {
            if event.op == op::SEQUENCE {
                turn += 1;
                return Action::Delay(Duration::from_micros(turn * 7919 % 2000));
            }
            Action::Pass
        });
        within(600, async {
            let workers = (0..8).map(|worker| {
                let mount = &mount;
                async move {
                    for number in 0..25 {
                        make(mount, dir, &format!("{worker}.{number}")).await;
                    }
                }
            });
            join_all(workers).await;
        })
        .await;
        let lookups = mount.peer.count_op(op::LOOKUP) + mount.peer.count_op(op::READDIR);
        // While a reply has overtaken another, nothing is believed.
        assert!(lookups <= 60, "{lookups} for 200 files");
        mount.peer.clear_script();
        let ((), spent) = cost(&mount, async {
            assert!(!is_there(&mount, dir, "none").await);
            assert!(is_there(&mount, dir, "7.24").await);
        })
        .await;
        // A name that was never asked for is; and replies that overtook each other may have
        // left the directory unknown.
        assert!(spent <= 2, "{spent}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_foreign_name_is_seen_once_a_change_of_ours_has_shown_it() {
    for cfg in kinds() {
        let mount = mount(cfg).await;
        let dir = mount.mkdir(ROOT_INO, "dir").await.unwrap();
        make(&mount, dir, "mine").await;
        mount.peer.fs().write_file("/dir/theirs", b"x").unwrap();
        // It may be missing here as long as nothing has told us.
        mount.mkdir(dir, "next").await.unwrap();
        assert!(is_there(&mount, dir, "theirs").await);
        assert!(!is_there(&mount, dir, "none").await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_foreign_change_while_ours_are_under_way_is_not_taken_for_ours() {
    for cfg in kinds() {
        let mount = mount(cfg).await;
        let dir = mount.mkdir(ROOT_INO, "dir").await.unwrap();
        let (peer, mut turn) = (Arc::clone(&mount.peer), 0);
        mount.peer.on_op(move |event| {
            if event.op == op::SEQUENCE && event.compound.contains(&op::CREATE) {
                turn += 1;
                if turn == 3 {
                    peer.fs().write_file("/dir/theirs", b"x").unwrap();
                }
                return Action::Delay(Duration::from_micros(turn * 1013 % 900));
            }
            Action::Pass
        });
        within(60, async {
            let made = (0..6).map(|number| {
                let mount = &mount;
                async move { mount.mkdir(dir, &format!("d{number}")).await.unwrap() }
            });
            join_all(made).await;
        })
        .await;
        assert!(is_there(&mount, dir, "theirs").await);
    }
}

/// A server without atomic change_info4 lets a foreign change slip between the
/// attributes before ours and ours itself: nothing shows it.
async fn with_a_name_hidden_in_our_own_change(asked: bool) -> (Mount, Ino) {
    let mount = mount(PeerConfig::default()).await;
    let dir = mount.mkdir(ROOT_INO, "dir").await.unwrap();
    if asked {
        assert!(!is_there(&mount, dir, "theirs").await);
    }
    let (peer, mut done) = (Arc::clone(&mount.peer), false);
    mount.peer.on_op(move |event| {
        if event.op == op::CREATE && !std::mem::replace(&mut done, true) {
            peer.fs().write_file("/dir/theirs", b"x").unwrap();
        }
        Action::Pass
    });
    mount.mkdir(dir, "mine").await.unwrap();
    (mount, dir)
}

#[tokio::test(start_paused = true)]
async fn a_foreign_name_hidden_in_our_own_change_is_listed_and_found_if_it_was_never_asked_for() {
    let (mount, dir) = with_a_name_hidden_in_our_own_change(false).await;
    let mut listed = mount.list(dir, true).await.unwrap();
    listed.sort();
    assert_eq!(listed, ["mine", "theirs"]);
    let (mount, dir) = with_a_name_hidden_in_our_own_change(false).await;
    assert!(is_there(&mount, dir, "theirs").await);
}

#[tokio::test(start_paused = true)]
async fn a_foreign_name_hidden_in_our_own_change_is_missing_for_the_cache_time_at_most() {
    let (mount, dir) = with_a_name_hidden_in_our_own_change(true).await;
    assert!(!is_there(&mount, dir, "theirs").await, "it was asked for");
    // We go on, and each change of ours confirms what we know.
    for second in 0..61 {
        seconds(1).await;
        make(&mount, dir, &format!("f{second}")).await;
    }
    assert!(is_there(&mount, dir, "theirs").await, "after acdirmax");
}

#[tokio::test(start_paused = true)]
async fn with_atomic_change_info_nothing_hides_in_our_own_change() {
    let mount = mount(PeerConfig {
        atomic_cinfo: true,
        ..PeerConfig::default()
    })
    .await;
    let dir = mount.mkdir(ROOT_INO, "dir").await.unwrap();
    let (peer, mut done) = (Arc::clone(&mount.peer), false);
    mount.peer.on_op(move |event| {
        if event.op == op::CREATE && !std::mem::replace(&mut done, true) {
            peer.fs().write_file("/dir/theirs", b"x").unwrap();
        }
        Action::Pass
    });
    mount.mkdir(dir, "mine").await.unwrap();
    assert!(is_there(&mount, dir, "theirs").await);
}

#[tokio::test(start_paused = true)]
async fn names_are_fetched_whole_when_two_are_asked_for_and_not_before() {
    let mount = mount(PeerConfig::default()).await;
    let fs = mount.peer.fs();
    fs.mkdir("/dir").unwrap();
    for number in 0..100 {
        fs.write_file(&format!("/dir/{number}"), b"x").unwrap();
    }
    let dir = mount.walk("dir").await.unwrap();
    mount.peer.clear_log();
    assert!(is_there(&mount, dir, "0").await);
    seconds(5).await;
    assert!(is_there(&mount, dir, "1").await);
    assert_eq!(mount.peer.count_op(op::READDIR), 0, "one now and then");
    let ((), spent) = cost(&mount, async {
        for number in 2..100 {
            assert!(is_there(&mount, dir, &number.to_string()).await);
        }
        for number in 100..200 {
            assert!(!is_there(&mount, dir, &number.to_string()).await);
        }
    })
    .await;
    assert_eq!(mount.peer.count_op(op::READDIR), 1);
    assert_eq!(spent, 101, "and each name that is not there is asked for");
}

/// Whoever was told of a file by another host must find it, and not only when
/// the cache times are over.
#[tokio::test(start_paused = true)]
async fn a_name_that_another_host_has_made_in_our_directory_is_found_at_once() {
    for cfg in kinds() {
        let mount = mount(cfg).await;
        let dir = mount.mkdir(ROOT_INO, "dir").await.unwrap();
        mount.peer.fs().write_file("/dir/first", b"x").unwrap();
        assert!(is_there(&mount, dir, "first").await);
        for number in 0..20 {
            make(&mount, dir, &format!("f{number}")).await;
        }
        mount.peer.fs().write_file("/dir/theirs", b"x").unwrap();
        // What it takes to make it and to tell us.
        millis(3).await;
        assert!(is_there(&mount, dir, "theirs").await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_not_there_is_asked_for_once_and_found_as_soon_as_it_is_made() {
    let mount = mount(PeerConfig::default()).await;
    let fs = mount.peer.fs();
    fs.mkdir("/dir").unwrap();
    fs.write_file("/dir/a", b"").unwrap();
    let dir = mount.walk("dir").await.unwrap();
    mount.list(dir, true).await.unwrap();
    let ((), spent) = cost(&mount, async {
        for number in 0..50 {
            assert!(!is_there(&mount, dir, &format!("none{number}")).await);
        }
    })
    .await;
    assert_eq!(spent, 50);
    let ((), spent) = cost(&mount, async {
        for number in 0..50 {
            assert!(!is_there(&mount, dir, &format!("none{number}")).await);
        }
    })
    .await;
    assert_eq!(spent, 0, "within the directory's cache time");
    fs.write_file("/dir/new", b"").unwrap();
    assert!(is_there(&mount, dir, "new").await);
}

/// `git gc` elsewhere: `refs/heads/main` is gone, and `packed-refs`, which was missed
/// before, is there.
#[tokio::test(start_paused = true)]
async fn what_was_missing_is_asked_for_again_once_another_host_was_seen_at_work() {
    type Meets = fn(&Arc<Peer>);
    let ways: [(&str, Meets, bool); 2] = [
        (
            "gone",
            |peer| peer.fs().remove("/refs/main").unwrap(),
            false,
        ),
        (
            "replaced",
            |peer| {
                peer.fs().write_file("/refs/new", b"2").unwrap();
                peer.fs().rename("/refs/new", "/refs/main").unwrap();
            },
            true,
        ),
    ];
    for (what, act, by_open) in ways {
        let mount = mount(PeerConfig::default()).await;
        let fs = mount.peer.fs();
        fs.mkdir("/refs").unwrap();
        fs.write_file("/refs/main", b"1").unwrap();
        let refs = mount.walk("refs").await.unwrap();
        let main = mount.lookup(refs, "main").await.unwrap().unwrap();
        assert!(!is_there(&mount, ROOT_INO, "packed-refs").await);
        fs.write_file("/packed-refs", b"x").unwrap();
        assert!(!is_there(&mount, ROOT_INO, "packed-refs").await, "known");
        act(&mount.peer);
        if by_open {
            let opened = mount.open(main.ino, libc::O_RDONLY).await;
            assert_eq!(opened.unwrap_err().0, libc::ESTALE);
        } else {
            let asked = mount.vfs.lookup_asked(&mount.cred, refs, b"main").await;
            assert!(matches!(asked, Ok(Lookup::Missing { .. })));
        }
        assert!(is_there(&mount, ROOT_INO, "packed-refs").await, "{what}");
        // Once.
        let ((), spent) = cost(&mount, async {
            for _ in 0..10 {
                assert!(!is_there(&mount, refs, "none").await);
            }
        })
        .await;
        assert_eq!(spent, 1, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn with_lookupcache_complete_a_directory_known_whole_answers_for_every_name() {
    for (which, spent) in [(MissingNames::AskedFor, 20), (MissingNames::AllOthers, 0)] {
        let peer = slow_peer(PeerConfig::default());
        peer.fs().mkdir("/dir").unwrap();
        peer.fs().write_file("/dir/a", b"").unwrap();
        let client = connect(&peer, "one").await;
        let mount = Mount::knowing(&client, &peer, default_timeouts(), 64 << 20, which);
        let dir = mount.walk("dir").await.unwrap();
        mount.list(dir, true).await.unwrap();
        let (missing, cost) = cost(&mount, async {
            for number in 0..20 {
                if is_there(&mount, dir, &format!("none{number}")).await {
                    return false;
                }
            }
            true
        })
        .await;
        assert!(missing);
        assert_eq!(cost, spent, "{which:?}");
        // What another host makes is seen when the directory is not believed any more.
        peer.fs().write_file("/dir/new", b"").unwrap();
        let at_once = is_there(&mount, dir, "new").await;
        assert_eq!(at_once, which == MissingNames::AskedFor);
        seconds(61).await;
        assert!(is_there(&mount, dir, "new").await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_huge_directory_is_not_fetched_for_a_few_names_and_not_kept() {
    let mount = mount(PeerConfig::default()).await;
    let fs = mount.peer.fs();
    fs.mkdir("/dir").unwrap();
    for number in 0..5000 {
        fs.write_file(&format!("/dir/{number}"), b"").unwrap();
    }
    let dir = mount.walk("dir").await.unwrap();
    let ((), spent) = cost(&mount, async {
        for number in 0..20 {
            assert!(!is_there(&mount, dir, &format!("none{number}")).await);
        }
    })
    .await;
    assert!(spent <= 21, "{spent} round trips");
    assert_eq!(mount.peer.count_op(op::READDIR), 1, "tried once");
    // More names than the cache keeps of one directory (a quarter of 10,000).
    assert_eq!(mount.list(dir, true).await.unwrap().len(), 5000);
    let (listed, spent) = cost(&mount, mount.list(dir, true)).await;
    assert_eq!(listed.unwrap().len(), 5000);
    assert!(spent >= 2, "passed on page by page: {spent}");
    assert!(is_there(&mount, dir, "4999").await);
}

#[tokio::test(start_paused = true)]
async fn a_listing_shows_what_another_host_has_done_before_it() {
    let mount = mount(PeerConfig::default()).await;
    let fs = mount.peer.fs();
    fs.mkdir("/dir").unwrap();
    let dir = mount.walk("dir").await.unwrap();
    for number in 0..20 {
        fs.write_file(&format!("/dir/{number}"), b"").unwrap();
        assert_eq!(mount.list(dir, true).await.unwrap().len(), number + 1);
        assert_eq!(mount.list(dir, false).await.unwrap().len(), number + 1);
    }
    for number in 0..20 {
        fs.remove(&format!("/dir/{number}")).unwrap();
        assert_eq!(mount.list(dir, true).await.unwrap().len(), 19 - number);
    }
}

async fn forest(mount: &Mount, dirs: usize) -> Vec<Ino> {
    let fs = mount.peer.fs();
    let mut inos = Vec::new();
    fs.mkdir("/top").unwrap();
    for dir in 0..dirs {
        fs.mkdir(&format!("/top/d{dir:02}")).unwrap();
        for file in 0..10 {
            let name = format!("/top/d{dir:02}/f{file}");
            fs.write_file(&name, b"x").unwrap();
        }
    }
    let top = mount.walk("top").await.unwrap();
    mount.list(top, true).await.unwrap();
    for dir in 0..dirs {
        let name = format!("d{dir:02}");
        inos.push(mount.lookup(top, &name).await.unwrap().unwrap().ino);
    }
    inos
}

async fn walk(mount: &Mount, inos: &[Ino]) {
    let top = mount.walk("top").await.unwrap();
    mount.list(top, true).await.unwrap();
    for &ino in inos {
        mount.list(ino, true).await.unwrap();
        for file in 0..10 {
            let name = format!("f{file}");
            let file = mount.lookup(ino, &name).await.unwrap().unwrap();
            mount.getattr(file.ino).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_walk_confirms_seven_directories_in_a_round_trip() {
    let mount = mount(PeerConfig::default()).await;
    let inos = forest(&mount, 70).await;
    let ((), cold) = cost(&mount, walk(&mount, &inos)).await;
    assert!(cold <= 72, "{cold} round trips for 71 directories");
    // At once, and after what is expected to be opened is not believed any more.
    for pause in [0, 600] {
        millis(pause).await;
        let ((), warm) = cost(&mount, walk(&mount, &inos)).await;
        assert!((11..=13).contains(&warm), "{warm} round trips when warm");
    }
    assert!(mount.peer.max_ops_seen() <= 16);
}

#[tokio::test(start_paused = true)]
async fn attributes_that_are_too_old_come_back_a_directory_in_a_round_trip() {
    let mount = mount(PeerConfig::default()).await;
    let inos = forest(&mount, 20).await;
    walk(&mount, &inos).await;
    for (number, _) in inos.iter().enumerate() {
        let name = format!("/top/d{number:02}/f7");
        mount.peer.fs().write_file(&name, b"longer").unwrap();
    }
    // Names are believed for 30 s, files' attributes for 3.
    seconds(4).await;
    let ((), spent) = cost(&mount, walk(&mount, &inos)).await;
    assert!(spent <= 4 + 20 + 3, "{spent} round trips");
    for &ino in &inos {
        let file = mount.lookup(ino, "f7").await.unwrap().unwrap();
        assert_eq!(mount.getattr(file.ino).await.unwrap().size, 6);
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_watched_costs_one_getattr_each_time() {
    let mount = mount(PeerConfig::default()).await;
    let inos = forest(&mount, 1).await;
    walk(&mount, &inos).await;
    let file = mount.lookup(inos[0], "f3").await.unwrap().unwrap().ino;
    let ((), spent) = cost(&mount, async {
        for _ in 0..10 {
            seconds(61).await;
            mount.getattr(file).await.unwrap();
        }
    })
    .await;
    assert_eq!(mount.peer.count_op(op::GETATTR), 10);
    assert_eq!(mount.peer.count_op(op::READDIR), 0);
    // The lease is renewed meanwhile.
    assert!(spent >= 10, "{spent}");
}

#[tokio::test(start_paused = true)]
async fn what_was_expected_to_be_opened_next_is_believed_for_half_a_second() {
    let mount = mount(PeerConfig::default()).await;
    let inos = forest(&mount, 3).await;
    walk(&mount, &inos).await;
    seconds(1).await;
    // Two of them are opened, and the third is confirmed together with them.
    mount.list(inos[0], true).await.unwrap();
    mount.list(inos[1], true).await.unwrap();
    mount.peer.fs().write_file("/top/d02/new", b"x").unwrap();
    millis(501).await;
    assert_eq!(mount.list(inos[2], true).await.unwrap().len(), 11);
}

#[tokio::test(start_paused = true)]
async fn links_are_read_seven_in_a_round_trip_when_one_is() {
    let mount = mount(PeerConfig::default()).await;
    let fs = mount.peer.fs();
    for number in 0..14 {
        fs.symlink(&format!("target{number}"), &format!("/l{number}"))
            .unwrap();
    }
    mount.list(ROOT_INO, true).await.unwrap();
    assert_eq!(mount.peer.count_op(op::READLINK), 0);
    let ((), spent) = cost(&mount, async {
        for number in 0..14 {
            let link = mount.lookup(ROOT_INO, &format!("l{number}")).await;
            let link = link.unwrap().unwrap().ino;
            let text = match mount.vfs.readlink_cached(link) {
                Some(text) => text,
                None => mount.vfs.readlink(&mount.cred, link).await.unwrap(),
            };
            assert_eq!(text, format!("target{number}"));
        }
    })
    .await;
    assert_eq!(spent, 2);
}

#[tokio::test(start_paused = true)]
async fn files_are_removed_for_one_round_trip_each() {
    let mount = mount(PeerConfig::default()).await;
    let dir = mount.mkdir(ROOT_INO, "dir").await.unwrap();
    for number in 0..100 {
        make(&mount, dir, &number.to_string()).await;
    }
    // Longer than attributes are believed.
    seconds(10).await;
    let (names, listing) = cost(&mount, mount.list(dir, true)).await;
    assert_eq!(listing, 1);
    let ((), spent) = cost(&mount, async {
        for name in names.unwrap() {
            assert!(is_there(&mount, dir, &name).await);
            mount.unlink(dir, &name).await.unwrap();
        }
        mount
            .vfs
            .rmdir(&mount.cred, ROOT_INO, b"dir")
            .await
            .unwrap();
    })
    .await;
    assert_eq!(spent, 101);
}

#[tokio::test(start_paused = true)]
async fn with_no_cache_time_every_answer_is_the_servers() {
    let none = Timeouts {
        reg_min: Duration::ZERO,
        reg_max: Duration::ZERO,
        dir_min: Duration::ZERO,
        dir_max: Duration::ZERO,
    };
    let mount = Mount::of(&slow_peer(PeerConfig::default()), "one", none).await;
    let dir = mount.mkdir(ROOT_INO, "dir").await.unwrap();
    let fs = mount.peer.fs();
    for round in 0..5 {
        let name = format!("f{round}");
        assert!(!is_there(&mount, dir, &name).await);
        fs.write_file(&format!("/dir/{name}"), b"1").unwrap();
        let file = mount.lookup(dir, &name).await.unwrap().unwrap().ino;
        assert_eq!(mount.list(dir, true).await.unwrap().len(), round + 1);
        fs.write_file(&format!("/dir/{name}"), b"22").unwrap();
        assert_eq!(mount.getattr(file).await.unwrap().size, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_listing_is_shown_to_the_user_who_may_read_it_and_to_no_other() {
    let mount = mount(PeerConfig::default()).await;
    let fs = mount.peer.fs();
    fs.mkdir("/dir").unwrap();
    fs.write_file("/dir/secret", b"").unwrap();
    fs.chmod("/dir", 0o711).unwrap();
    let dir = mount.walk("dir").await.unwrap();
    assert_eq!(mount.list(dir, true).await.unwrap(), ["secret"]);
    let other = Mount {
        vfs: Arc::clone(&mount.vfs),
        peer: Arc::clone(&mount.peer),
        cred: Arc::new(Credential {
            uid: 1000,
            gid: 1000,
            gids: Vec::new(),
        }),
    };
    assert_eq!(other.list(dir, true).await.unwrap_err().0, libc::EACCES);
    assert_eq!(mount.list(dir, true).await.unwrap(), ["secret"]);
}

#[tokio::test(start_paused = true)]
async fn what_the_server_allows_is_believed_for_one_user_until_the_object_changes() {
    let mount = mount(PeerConfig::default()).await;
    let fs = mount.peer.fs();
    fs.write_file("/f", b"x").unwrap();
    fs.chmod("/f", 0o640).unwrap();
    let ino = mount.walk("f").await.unwrap();
    let user = |uid| {
        Arc::new(Credential {
            uid,
            gid: 77,
            gids: Vec::new(),
        })
    };
    let (one, other) = (user(1000), user(1001));
    let may = async |who: &Arc<Credential>, mask: i32| {
        let answer = cost(&mount, mount.vfs.access(who, ino, mask as u32)).await;
        (answer.0.map_err(|error| error.errno().0), answer.1)
    };
    let no = Err(libc::EACCES);
    assert_eq!(may(&one, libc::R_OK).await, (no, 1));
    assert_eq!(may(&one, libc::R_OK).await, (no, 0));
    assert_eq!(may(&other, libc::R_OK).await, (no, 1), "another user");
    assert_eq!(may(&one, libc::W_OK).await, (no, 1), "another question");
    // Ours is seen at once.
    let set = SetAttr {
        mode: Some(0o644),
        ..SetAttr::default()
    };
    mount
        .vfs
        .setattr(&mount.cred, ino, None, set)
        .await
        .unwrap();
    assert_eq!(may(&one, libc::R_OK).await, (Ok(()), 1));
    assert_eq!(may(&one, libc::R_OK).await, (Ok(()), 0));
    assert_eq!(may(&one, libc::R_OK | libc::W_OK).await, (no, 1));
    // Another host's, when the attributes have to be asked for again.
    fs.chmod("/f", 0o600).unwrap();
    seconds(61).await;
    assert_eq!(may(&one, libc::R_OK).await, (no, 1));
    assert_eq!(may(&one, libc::R_OK).await, (no, 0));
}

#[tokio::test(start_paused = true)]
async fn asking_for_one_thing_many_times_at_once_costs_one_round_trip() {
    let mount = mount(PeerConfig::default()).await;
    mount.peer.fs().write_file("/f", b"x").unwrap();
    let ino = mount.walk("f").await.unwrap();
    seconds(61).await;
    let (_, spent) = cost(&mount, join_all((0..20).map(|_| mount.getattr(ino)))).await;
    assert_eq!(spent, 1);
}

/// nfs-ganesha says what it is that has the name.
/// The kernel makes EIO of a whole listing in which one name has a "/".
#[tokio::test(start_paused = true)]
async fn a_name_that_cannot_be_one_is_left_out_of_a_listing_and_nothing_else_is() {
    const BAD: [(&str, &[u8]); 6] = [
        ("bad0", b"a/b"),
        ("bad1", b"a\0b"),
        ("bad2", b""),
        ("bad3", b".."),
        ("bad4", b"."),
        ("bad5", &[b'x'; 1025]),
    ];
    // Pages of one entry, too: some then hold nothing.
    for readdir_page_entries in [1, 2, u32::MAX] {
        let mount = mount(PeerConfig {
            readdir_page_entries,
            disguised: BAD.to_vec(),
            ..PeerConfig::default()
        })
        .await;
        let mut good: Vec<_> = (0..8).map(|number| format!("good{number}")).collect();
        for name in good
            .iter()
            .map(String::as_str)
            .chain(BAD.map(|(name, _)| name))
        {
            make(&mount, ROOT_INO, name).await;
        }
        // Another host, which has not made them.
        let other = Mount::of(&mount.peer, "two", default_timeouts()).await;
        for plus in [true, false] {
            let mut listed = other.list(ROOT_INO, plus).await.expect("a listing");
            listed.retain(|name| name != "." && name != "..");
            listed.sort();
            good.sort();
            assert_eq!(listed, good, "{readdir_page_entries} a page");
        }
    }
}
