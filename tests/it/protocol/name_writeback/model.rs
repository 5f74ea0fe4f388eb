//! What a server has of a directory, after each of many changes that are ahead of it: always what
//! the directory was here at some moment, never one before the last.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use efs_fuse::vfs::types::{Errno, Ino, ROOT_INO, SetAttr};
use proptest::prelude::*;
use tokio::task::JoinHandle;

use super::super::rig::{Mount, Open, millis, within};
use super::killed::Surviving;
use super::{EXCLUSIVE, settled};
use crate::fixtures::setting;
use crate::peer::proto::op;
use crate::peer::{Action, PeerConfig};

/// What is done in a directory, and how long it is until the next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Make(u8),
    MakeDirectory(u8),
    /// Of the directory itself.
    Chmod(u8),
    /// Of a file, by its name.
    ChmodFile(u8, u8),
    Unlink(u8),
    Rename(u8, u8),
    Wait(u16),
    /// Of the daemon, for another one to go on from its log.
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    let name = || 0..8_u8;
    prop_oneof![
        4 => name().prop_map(Step::Make),
        1 => name().prop_map(Step::MakeDirectory),
        1 => (0..8_u8).prop_map(Step::Chmod),
        2 => (name(), 0..8_u8).prop_map(|(of, bits)| Step::ChmodFile(of, bits)),
        2 => name().prop_map(Step::Unlink),
        2 => (name(), name()).prop_map(|(from, to)| Step::Rename(from, to)),
        3 => (0..40_u16).prop_map(Step::Wait),
        1 => Just(Step::Kill),
    ]
}

/// What a directory holds by its names: what was written to a file, or nothing of a directory. By
/// [`MODE`] its own permission bits.
type Held = BTreeMap<String, Option<String>>;

const MODE: &str = ".";

fn mode_text(mode: u32) -> Option<String> {
    Some(format!("{mode:o}"))
}

fn held(mount: &Mount) -> Held {
    let fs = mount.peer.fs();
    let names = fs.list("/d").expect("names").into_iter();
    let read = |name: &str| fs.read_file(&format!("/d/{name}")).ok();
    let text = |data: Vec<u8>| String::from_utf8(data).expect("text");
    let mode = mode_text(fs.stat("/d").expect("stat").mode);
    let names = names.map(|name| (name.clone(), read(&name).map(text)));
    names.chain([(MODE.to_owned(), mode)]).collect()
}

/// The modes that a file was given, by what was written to it, and which of them the server was seen to
/// have last. They are in order with that file's names alone, as its data are.
#[derive(Default)]
struct Modes(BTreeMap<String, (Vec<u32>, usize)>);

impl Modes {
    fn was_set(&mut self, text: &str, mode: u32) {
        let (modes, _) = self.0.entry(text.to_owned()).or_default();
        modes.push(mode);
    }

    /// The server has, of each file, one that it was given, and never an earlier one than before.
    fn never_go_back(&mut self, mount: &Mount) {
        let fs = mount.peer.fs();
        for name in fs.list("/d").expect("names") {
            let path = format!("/d/{name}");
            let Ok(Ok(text)) = fs.read_file(&path).map(String::from_utf8) else {
                continue;
            };
            let Some((modes, at)) = self.0.get_mut(&text) else {
                continue;
            };
            let mode = fs.stat(&path).expect("stat").mode;
            let found = modes[*at..].iter().position(|known| *known == mode);
            *at +=
                found.unwrap_or_else(|| panic!("{path}: {mode:o} was not in {modes:?} after {at}"));
        }
    }

    /// It has the last of them.
    fn are_there(&mut self, mount: &Mount) {
        self.never_go_back(mount);
        let fs = mount.peer.fs();
        for name in fs.list("/d").expect("names") {
            let path = format!("/d/{name}");
            let text = fs.read_file(&path).map(String::from_utf8);
            let known = text
                .ok()
                .and_then(Result::ok)
                .and_then(|text| self.0.get(&text));
            if let Some((modes, _)) = known {
                let mode = fs.stat(&path).expect("stat").mode;
                assert_eq!(Some(&mode), modes.last(), "{path}");
            }
        }
    }
}

/// The same names of the same kinds. What is written to a file, all or nothing of it, is in order
/// with that file's names alone.
fn is_like(state: &Held, now: &Held) -> bool {
    type Entry<'a> = (&'a String, &'a Option<String>);
    let is_same = |((name, state), (_, now)): (Entry<'_>, Entry<'_>)| match (state, now) {
        (Some(text), Some(data)) => data == text || name != MODE && data.is_empty(),
        (None, None) => true,
        _ => false,
    };
    state.keys().eq(now.keys()) && state.iter().zip(now).all(is_same)
}

/// Does one step here and in the model. False: nobody can say whether it was done, as a session was
/// `lost` in which it may have been.
async fn do_step(
    (mount, open): (&Mount, &mut Released),
    dir: Ino,
    step: Step,
    (model, modes): (&mut Held, &mut Modes),
    (number, lost): (usize, &AtomicBool),
) -> bool {
    let name = |name: u8| format!("n{name}");
    let is_dir = |of: u8| matches!(model.get(&name(of)), Some(None));
    // The kernel knows what is a directory, and does not ask.
    let asked = match step {
        Step::Unlink(of) => !is_dir(of),
        Step::Rename(from, to) => is_dir(from) == is_dir(to) || !model.contains_key(&name(to)),
        _ => true,
    };
    if !asked {
        return true;
    }
    let told = match step {
        Step::Make(of) => match mount.create(dir, &name(of), EXCLUSIVE).await {
            Ok(file) => {
                // Of every second name it is much: a later one behind it begins in another page.
                let text = format!("{number}").repeat(if of % 2 == 0 { 1 } else { 3000 });
                mount.write(file, 0, text.as_bytes()).await.expect("write");
                open.shut(mount, file).await;
                let made = mount.getattr(file.ino).await.expect("stat").perm;
                modes.was_set(&text, made.into());
                assert!(model.insert(name(of), Some(text)).is_none(), "O_EXCL");
                Ok(())
            }
            Err(error) => Err(error),
        },
        Step::MakeDirectory(of) => mount.mkdir(dir, &name(of)).await.map(|_| {
            assert!(model.insert(name(of), None).is_none(), "mkdir");
        }),
        Step::Chmod(bits) => {
            let mode = 0o700 | u32::from(bits);
            let set = SetAttr {
                mode: Some(mode),
                ..SetAttr::default()
            };
            let set = mount.vfs.setattr(&mount.cred, dir, None, set).await;
            let (stat, _) = set.expect("chmod");
            assert_eq!(u32::from(stat.perm), mode);
            model.insert(MODE.into(), mode_text(mode));
            Ok(())
        }
        Step::ChmodFile(of, bits) => {
            let Some(Some(text)) = model.get(&name(of)) else {
                return true;
            };
            let found = mount.lookup(dir, &name(of)).await.expect("a name");
            let ino = found.expect("it is there").ino;
            let mode = 0o600 | u32::from(bits);
            modes.was_set(text, mode);
            let set = SetAttr {
                mode: Some(mode),
                ..SetAttr::default()
            };
            let set = mount.vfs.setattr(&mount.cred, ino, None, set).await;
            let (stat, _) = set.expect("chmod");
            assert_eq!(u32::from(stat.perm), mode);
            let stat = mount.getattr(ino).await.expect("stat");
            assert_eq!(u32::from(stat.perm), mode);
            Ok(())
        }
        Step::Unlink(of) => mount.unlink(dir, &name(of)).await.map(|()| {
            assert!(model.remove(&name(of)).flatten().is_some(), "unlink");
        }),
        Step::Rename(from, to) => {
            let told = mount.rename((dir, &name(from)), (dir, &name(to))).await;
            told.map(|()| {
                let moved = model.remove(&name(from)).expect("rename");
                model.insert(name(to), moved);
            })
        }
        Step::Wait(time) => {
            millis(time.into()).await;
            Ok(())
        }
        Step::Kill => unreachable!("it is no step of a mount"),
    };
    if let Err(error) = told {
        let (there, of) = match step {
            Step::Make(of) | Step::MakeDirectory(of) => (true, of),
            Step::Unlink(of) | Step::Rename(of, _) => (false, of),
            Step::Chmod(_) | Step::ChmodFile(..) | Step::Wait(_) | Step::Kill => {
                unreachable!("they cannot fail")
            }
        };
        let known = model.get(&name(of));
        let is_right = match error.raw() {
            libc::EEXIST => there && known.is_some(),
            libc::ENOENT => !there && known.is_none(),
            // A directory is no file, and the other way round.
            libc::EISDIR | libc::ENOTDIR | libc::EPERM | libc::ENOTEMPTY => true,
            _ => false,
        };
        let doubtful =
            lost.load(Ordering::Relaxed) && [libc::EEXIST, libc::ENOENT].contains(&error.raw());
        assert!(is_right || doubtful, "{step:?} of {known:?}: {error}");
        return is_right;
    }
    true
}

/// Files that are being released: the kernel has a daemon that goes on do it once more.
#[derive(Default)]
struct Released(Vec<(Open, JoinHandle<()>)>);

impl Released {
    fn release(&mut self, mount: &Mount, file: Open) {
        let releasing = mount.vfs.release(file.fh);
        let releasing = tokio::spawn(async { drop(releasing.await) });
        self.0.push((file, releasing));
    }

    async fn shut(&mut self, mount: &Mount, file: Open) {
        mount.flush(file).await.expect("close");
        self.forget_ended();
        self.release(mount, file);
        tokio::task::yield_now().await;
    }

    fn forget_ended(&mut self) {
        self.0.retain(|(_, releasing)| !releasing.is_finished());
    }

    fn again(&mut self, mount: &Mount) {
        for (file, _) in std::mem::take(&mut self.0) {
            self.release(mount, file);
        }
    }
}

/// What happens to the replies.
#[derive(Clone, Copy, Debug)]
struct Faults {
    /// So often the connection breaks before one; 0: never.
    breaks: u8,
    /// With the reply to the change of this number the session is lost; 0: with none.
    loses: u8,
}

async fn is_always_a_prefix(steps: Vec<Step>, latency: u16, faults: Faults, misplaces: bool) {
    let Faults { breaks, loses } = faults;
    let mut host = Surviving::new(PeerConfig {
        misplaces_later_data: misplaces,
        ..PeerConfig::default()
    })
    .await;
    let mount = &host.mount;
    let dir = mount.mkdir(ROOT_INO, "d").await.expect("mkdir");
    mount
        .peer
        .set_latency(Duration::from_millis(latency.into()));
    let (seen, lost) = (AtomicUsize::new(0), Arc::new(AtomicBool::new(false)));
    let (peer, loss) = (Arc::downgrade(&mount.peer), Arc::clone(&lost));
    mount.peer.on_op(move |event| {
        let about = matches!(
            event.op,
            op::OPEN | op::CREATE | op::REMOVE | op::RENAME | op::SETATTR
        );
        if !about {
            return Action::Pass;
        }
        let number = seen.fetch_add(1, Ordering::Relaxed) + 1;
        if number == usize::from(loses) {
            loss.store(true, Ordering::Relaxed);
            peer.upgrade().expect("it lives").destroy_sessions();
            return Action::DropConnectionAfter;
        }
        match breaks > 0 && number % (usize::from(breaks) + 3) == 3 {
            true => Action::DropConnectionAfter,
            false => Action::Pass,
        }
    });
    let (mut model, mut modes) = (held(mount), Modes::default());
    let mut states = vec![model.clone()];
    let mut at = 0;
    let (mut is_certain, mut open) = (true, Released::default());
    let is_now = |mount: &Mount, states: &[Held], at: &mut usize| {
        let now = held(mount);
        let found = states[*at..].iter().position(|state| is_like(state, &now));
        *at += found.unwrap_or_else(|| panic!("{now:?} was never so after {at}: {states:?}"));
    };
    for (number, step) in steps.into_iter().enumerate() {
        if matches!(step, Step::Kill) {
            open.forget_ended();
            host = host.killed().await;
            open.again(&host.mount);
            // What may have run is sent again, and may be seen twice.
            settled(&host.mount).await;
            if lost.load(Ordering::Relaxed) {
                break;
            }
            assert_eq!(held(&host.mount), model, "killed before step {number}");
            modes.are_there(&host.mount);
            at = states.len() - 1;
            continue;
        }
        let mount = &host.mount;
        let of_model = (&mut model, &mut modes);
        let is_known = do_step((mount, &mut open), dir, step, of_model, (number, &lost)).await;
        // What was sent twice may be seen twice, as it was and is. What is done behind it is done in a
        // directory that is not private any more.
        if lost.load(Ordering::Relaxed) {
            is_certain = is_known;
            break;
        }
        modes.never_go_back(mount);
        states.push(model.clone());
        is_now(mount, &states, &mut at);
    }
    let mount = &host.mount;
    let told = within(600, mount.vfs.fsyncdir(dir))
        .await
        .map_err(Errno::from);
    assert_eq!(told, Ok(()));
    if is_certain {
        assert_eq!(held(mount), model);
        modes.are_there(mount);
    }
    mount.peer.clear_script();
    within(600, mount.vfs.settled()).await;
    assert_eq!(mount.peer.open_count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn the_server_is_at_every_moment_as_the_directory_was_here_and_never_goes_back(
        steps in prop::collection::vec(step(), 1..40),
        latency in 0..30_u16,
        breaks in 0..6_u8,
        loses in prop_oneof![2 => Just(0), 1 => 1..40_u8],
        misplaces: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let faults = Faults { breaks, loses };
        runtime.block_on(is_always_a_prefix(steps, latency, faults, misplaces));
    }
}

/// `EFS_FUSE_WRITEBACK_CASES`: how often.
fn cases() -> u32 {
    u32::try_from(setting("EFS_FUSE_WRITEBACK_CASES", 200)).expect("a number")
}
