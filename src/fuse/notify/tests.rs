use std::sync::mpsc;
use std::time::Duration;

use super::*;

const SOON: Duration = Duration::from_secs(20);

type Told = mpsc::Receiver<(Ino, Vec<u8>)>;

/// A kernel that takes an invalidation only when the test lets it.
struct Slow {
    sent: mpsc::Sender<(Ino, Vec<u8>)>,
    go: Mutex<mpsc::Receiver<()>>,
    refuses: bool,
}

impl Slow {
    fn take(&self, ino: Ino, name: &[u8]) -> io::Result<()> {
        self.sent.send((ino, name.to_vec())).unwrap();
        let _ = self.go.lock().recv_timeout(SOON);
        if self.refuses {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(())
    }
}

impl Kernel for Slow {
    fn inval_inode(&self, ino: Ino) -> io::Result<()> {
        self.take(ino, b"")
    }

    fn inval_attr(&self, ino: Ino) -> io::Result<()> {
        self.take(ino, b"")
    }

    fn inval_entry(&self, parent: Ino, name: &[u8]) -> io::Result<()> {
        self.take(parent, name)
    }

    fn has_grown(&self, ino: Ino, size: u64) -> io::Result<()> {
        self.take(ino, size.to_string().as_bytes())
    }
}

fn slow() -> (Arc<Notify>, Told, mpsc::Sender<()>) {
    slow_one(true)
}

fn slow_but_willing() -> (Arc<Notify>, Told, mpsc::Sender<()>) {
    slow_one(false)
}

fn slow_one(refuses: bool) -> (Arc<Notify>, Told, mpsc::Sender<()>) {
    let (sent, seen) = mpsc::channel();
    let (let_go, go) = mpsc::channel();
    let queue = Notify::new();
    let go = Mutex::new(go);
    let kernel = Arc::new(Slow { sent, go, refuses });
    queue.connect_to(kernel, Tasks::new()).unwrap();
    (queue, seen, let_go)
}

#[test]
fn nothing_is_queued_without_a_kernel() {
    let queue = Notify::new();
    queue.inval_inode(5);
    queue.inval_entry(1, b"name");
    assert!(queue.state.lock().order.is_empty());
}

#[test]
fn repeated_invalidations_are_sent_once_and_none_is_lost() {
    let (queue, seen, go) = slow();
    queue.inval_inode(5);
    assert_eq!(seen.recv_timeout(SOON).unwrap(), (5, vec![]));
    // 5 is being sent: a new one must follow. The rest merges.
    for _ in 0..100 {
        queue.inval_inode(5);
        queue.inval_inode(6);
        queue.inval_entry(1, b"name");
    }
    for _ in 0..4 {
        go.send(()).unwrap();
    }
    let rest: Vec<_> = (0..3).map(|_| seen.recv_timeout(SOON).unwrap()).collect();
    assert_eq!(rest, [(5, vec![]), (6, vec![]), (1, b"name".to_vec())]);
    queue.close();
    assert!(seen.recv_timeout(SOON).is_err(), "more than was queued");
}

#[test]
fn nothing_is_left_to_be_told_of_an_inode_that_was_settled() {
    let (queue, seen, go) = slow();
    let five = (5, vec![]);
    queue.inval_inode(5);
    assert_eq!(seen.recv_timeout(SOON).unwrap(), five, "being sent");
    queue.inval_inode(6);
    queue.inval_inode(5);
    assert!(queue.is_telling(5) && queue.is_telling(6) && !queue.is_telling(7));
    let settling = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || queue.settle(5))
    };
    // Taken out of the line; what is being sent is waited for.
    while queue.state.lock().order.len() == 2 {
        thread::yield_now();
    }
    assert!(
        !settling.is_finished() && queue.is_telling(5),
        "all the time"
    );
    go.send(()).unwrap();
    let mut next = [(); 2].map(|()| seen.recv_timeout(SOON).unwrap());
    next.sort();
    assert_eq!(next, [five, (6, vec![])], "each once more");
    go.send(()).unwrap();
    go.send(()).unwrap();
    settling.join().unwrap();
    assert!(!queue.is_telling(5));
    queue.close();
}

#[test]
fn what_has_grown_is_told_to_be_as_large_behind_its_invalidation() {
    let (queue, seen, go) = slow_but_willing();
    queue.inval_inode_grown(5, 10);
    let told = |size: &str| (5, size.as_bytes().to_vec());
    assert_eq!(seen.recv_timeout(SOON).unwrap(), told(""));
    // Queued again: the last size counts, and no size does not take it away.
    queue.inval_inode_grown(5, 20);
    queue.inval_inode_grown(5, 30);
    queue.inval_inode(5);
    for expected in ["10", "", "30"] {
        assert!(queue.is_telling(5));
        go.send(()).unwrap();
        assert_eq!(seen.recv_timeout(SOON).unwrap(), told(expected));
    }
    go.send(()).unwrap();
    queue.settle(5);
    // Who settles tells it himself.
    queue.inval_inode_grown(6, 1);
    assert_eq!(seen.recv_timeout(SOON).unwrap(), (6, vec![]));
    queue.inval_inode_grown(5, 40);
    let settling = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || queue.settle(5))
    };
    for _ in 0..4 {
        go.send(()).unwrap();
    }
    settling.join().unwrap();
    let mut rest: Vec<_> = (0..3).map(|_| seen.recv_timeout(SOON).unwrap()).collect();
    rest.retain(|(ino, _)| *ino == 5);
    assert_eq!(rest, [told(""), told("40")]);
    queue.close();
}

#[test]
fn a_queue_is_frozen_only_when_it_is_empty_and_nobody_is_in_the_kernel() {
    let (queue, seen, go) = slow();
    queue.inval_entry(1, b"name");
    assert_eq!(seen.recv_timeout(SOON).unwrap(), (1, b"name".to_vec()));
    assert!(!queue.freeze(), "while a name is being sent");
    let before = queue.calls();
    assert_eq!(before.inside, 1);
    go.send(()).unwrap();
    while !queue.freeze() {
        thread::yield_now();
    }
    let after = queue.calls();
    assert_eq!((after.inside, after.done), (0, before.done + 1));
    // Nothing enters the kernel any more, not even what must be at once; nothing is lost.
    queue.inval_inode(5);
    queue.inval_inode_now(6);
    queue.inval_attr(7);
    queue.settle(5);
    assert!(seen.recv_timeout(Duration::from_millis(50)).is_err());
    assert!(!queue.is_idle() && !queue.freeze());
    queue.thaw();
    for ino in 5..8 {
        go.send(()).unwrap();
        assert_eq!(seen.recv_timeout(SOON).unwrap(), (ino, vec![]));
    }
    queue.close();
}

/// A kernel on whose invalidations the thread panics, so often.
struct Deadly {
    sent: mpsc::Sender<(Ino, Vec<u8>)>,
    rest: Mutex<u32>,
    /// The first waits for the end of this.
    go: Mutex<Option<mpsc::Receiver<()>>>,
}

impl Kernel for Deadly {
    fn inval_inode(&self, ino: Ino) -> io::Result<()> {
        self.inval_entry(ino, b"")
    }

    fn inval_attr(&self, _ino: Ino) -> io::Result<()> {
        Ok(())
    }

    fn inval_entry(&self, parent: Ino, name: &[u8]) -> io::Result<()> {
        if let Some(go) = self.go.lock().take() {
            let _ = go.recv_timeout(SOON);
        }
        let mut rest = self.rest.lock();
        if *rest > 0 {
            *rest -= 1;
            panic!("upon {parent}");
        }
        self.sent.send((parent, name.to_vec())).unwrap();
        Ok(())
    }

    fn has_grown(&self, _ino: Ino, _size: u64) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_invalidation_on_which_the_thread_dies_is_sent_again_and_nobody_waits_for_ever() {
    let (sent, seen) = mpsc::channel();
    let (queue, tasks) = (Notify::new(), Tasks::new());
    let kernel = Arc::new(Deadly {
        sent,
        rest: Mutex::new(3),
        go: Mutex::default(),
    });
    queue.connect_to(kernel, Arc::clone(&tasks)).unwrap();
    queue.inval_inode(5);
    queue.inval_entry(1, b"name");
    let mut all = [(); 2].map(|()| seen.recv_timeout(SOON).unwrap());
    all.sort();
    assert_eq!(all, [(1, b"name".to_vec()), (5, vec![])]);
    queue.settle(5);
    assert_eq!(tasks.deaths("notify"), 3);
    queue.close();
}

#[test]
fn who_waits_for_an_invalidation_goes_on_when_it_was_sent_and_not_when_its_thread_has_died() {
    let (sent, seen) = mpsc::channel();
    let (go_on, go) = mpsc::channel::<()>();
    let (queue, tasks) = (Notify::new(), Tasks::new());
    let kernel = Arc::new(Deadly {
        sent,
        rest: Mutex::new(1),
        go: Mutex::new(Some(go)),
    });
    queue.connect_to(kernel, tasks).unwrap();
    queue.inval_inode(5);
    while queue.state.lock().sending.is_empty() {
        thread::yield_now();
    }
    let settling = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || queue.settle(5))
    };
    thread::sleep(Duration::from_millis(50));
    assert!(!settling.is_finished());
    drop(go_on);
    settling.join().unwrap();
    assert!(!queue.is_telling(5), "an open is answered from here on");
    assert_eq!(seen.try_recv().unwrap(), (5, vec![]));
    queue.close();
}

#[test]
fn names_beyond_the_bound_are_dropped_and_counted_but_inodes_never() {
    let (queue, seen, go) = slow();
    queue.inval_inode(1);
    seen.recv_timeout(SOON).unwrap();
    for n in 0..MAX_NAMES + 10 {
        queue.inval_entry(1, format!("{n}").as_bytes());
    }
    for ino in 0..100_000 {
        queue.inval_inode(ino);
    }
    assert_eq!(queue.dropped(), 10);
    assert_eq!(queue.state.lock().order.len(), MAX_NAMES + 100_000);
    queue.close();
    assert!(queue.state.lock().order.is_empty());
    go.send(()).unwrap();
    assert!(seen.recv_timeout(SOON).is_err(), "sent after the end");
}
