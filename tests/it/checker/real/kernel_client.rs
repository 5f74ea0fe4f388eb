//! What Linux's own NFS client does that no rule allows, where it is one of the hosts: the judge
//! hears of it before it judges. Each was seen, and found in the sources of Linux 6.1.

use super::super::history::{Answer, Call, Event, Path};

/// `EFS_FUSE_CHECKER_KERNELS`: the hosts that have the kernel's client, by their number, with
/// commas.
pub(in super::super) fn kernels() -> Vec<u8> {
    let kernels = std::env::var("EFS_FUSE_CHECKER_KERNELS").unwrap_or_default();
    let hosts = kernels.split(',').filter(|host| !host.is_empty());
    hosts
        .map(|host| host.parse().expect("EFS_FUSE_CHECKER_KERNELS: numbers"))
        .collect()
}

/// It does not send a change of size to what it believes the size to be.
fn is_skipped(event: &Event) -> bool {
    matches!(event.call, Call::Truncate(_) | Call::Ftruncate(_))
        && event.answer == Some(Answer::Done)
}

/// It makes a file where it believes none to be as with O_EXCL, and says so if there is one by
/// then.
fn is_told_late(event: &Event) -> bool {
    matches!(event.call, Call::Open { how, .. } if how.create)
        && event.answer == Some(Answer::Refused(libc::EEXIST))
}

/// nfs-ganesha says NFS4ERR_SYMLINK to an exclusive OPEN of a link's name, and it hands that on as
/// ELOOP, where open(2) promises EEXIST: there is something, which is what EEXIST would say.
fn is_told_of_a_link(event: &Event) -> bool {
    matches!(event.call, Call::Open { how, .. } if how.create && how.exclusive)
        && event.answer == Some(Answer::Refused(libc::ELOOP))
}

/// The answer of this call says nothing.
pub(super) fn is_unclear(event: &Event, kernels: &[u8]) -> bool {
    let unclear = [is_skipped, is_told_late, is_told_of_a_link];
    kernels.contains(&event.host) && unclear.iter().any(|is_so| is_so(event))
}

/// While it has writes of its own under way it keeps the size that it believes, though the file was
/// cut elsewhere: what it reads behind the end are zeros. Without them, if there are any.
pub(super) fn without_zeros(history: &[Event], kernels: &[u8]) -> Option<Vec<Event>> {
    let (mut history, mut any) = (history.to_vec(), false);
    for event in history
        .iter_mut()
        .filter(|event| kernels.contains(&event.host))
    {
        if let Some(Answer::Data(data)) = &mut event.answer {
            let len = data
                .iter()
                .rposition(|&token| token != 0)
                .map_or(0, |at| at + 1);
            any |= len < data.len();
            data.truncate(len);
        }
    }
    any.then_some(history)
}

/// Before it renames onto a file that it has open it gives that a hidden name
/// (nfs_rename, sillyrename), and does not give it back if the rename is refused then. So such a
/// rename may have removed a name: each has a removal by another process beside it, of which
/// nobody has heard.
pub(super) fn with_hidden_targets(history: &mut Vec<Event>, kernels: &[u8]) {
    let hides = |event: &&Event| {
        let refused = matches!(event.answer, Some(Answer::Refused(_)));
        kernels.contains(&event.host) && refused && replaces(event).is_some()
    };
    let removals: Vec<Event> = (history.iter().filter(hides))
        .filter_map(|event| {
            let target = replaces(event)?;
            has_open(history, event, target).then(|| Event {
                process: u16::MAX - event.process,
                call: Call::Unlink(target),
                answer: None,
                ..event.clone()
            })
        })
        .collect();
    history.extend(removals);
}

fn replaces(event: &Event) -> Option<Path> {
    match event.call {
        Call::Rename { from, to, replaces } if replaces && from != to => Some(to),
        _ => None,
    }
}

/// The host has opened something by this name before, and not closed it.
fn has_open(history: &[Event], rename: &Event, target: Path) -> bool {
    let mine = |event: &&Event| event.host == rename.host;
    let closed = |wanted| {
        history.iter().filter(mine).any(
            |event| matches!(event.call, Call::Close(fd) if fd == wanted && event.ended < rename.began),
        )
    };
    history.iter().filter(mine).any(|event| {
        matches!(event.call, Call::Open { at, fd, .. }
            if at == target && event.began < rename.ended && !closed(fd))
            && event.answer == Some(Answer::Done)
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::history::How;
    use super::super::super::judge::{Verdict, judge};
    use super::super::super::rules::Rules;
    use super::*;

    const A: Path = Path {
        dir: None,
        name: b'a',
    };
    const B: Path = Path {
        dir: None,
        name: b'b',
    };

    fn event(host: u8, at: u64, call: Call, answer: Answer) -> Event {
        Event {
            host,
            process: host.into(),
            call,
            began: at,
            ended: at + 5,
            answer: Some(answer),
            unsure: false,
        }
    }

    fn open(host: u8, at: u64, fd: u32) -> Event {
        let how = How {
            create: true,
            ..How::default()
        };
        event(host, at, Call::Open { at: A, how, fd }, Answer::Done)
    }

    fn is_wrong(history: &[Event]) -> bool {
        matches!(
            judge(history, &Rules::new(history, 0, 0)),
            Verdict::Wrong(_)
        )
    }

    /// Seed 2101 with the kernel's client on knfsd.
    #[test]
    fn a_rename_that_is_refused_may_have_hidden_what_it_was_to_replace() {
        let rename = Call::Rename {
            from: B,
            to: A,
            replaces: true,
        };
        let mut history = vec![
            open(1, 0, 1),
            event(1, 10, rename, Answer::Refused(libc::ENOENT)),
            event(0, 20, Call::Unlink(A), Answer::Refused(libc::ENOENT)),
        ];
        assert!(is_wrong(&history));
        let mut ours = history.clone();
        with_hidden_targets(&mut ours, &[]);
        assert!(is_wrong(&ours), "of nobody else");
        let closed = event(1, 4, Call::Close(1), Answer::Done);
        let mut without = [&history[..1], &[closed], &history[1..]].concat();
        with_hidden_targets(&mut without, &[1]);
        assert_eq!(without.len(), 4, "nothing is hidden that is not open");
        with_hidden_targets(&mut history, &[1]);
        assert!(!is_wrong(&history));
    }

    /// Seed 2001 of the same.
    #[test]
    fn zeros_behind_an_end_that_was_cut_elsewhere_are_not_counted() {
        let read = |host, data: &[u32]| event(host, 20, Call::Read(1), Answer::Data(data.to_vec()));
        let history = [open(1, 0, 1), read(1, &[7, 0, 0])];
        let shorter = without_zeros(&history, &[1]).expect("there are zeros");
        assert_eq!(shorter[1].answer, Some(Answer::Data(vec![7])));
        assert!(without_zeros(&history, &[0]).is_none());
        assert!(without_zeros(&[read(1, &[0, 7])], &[1]).is_none());
    }
}
