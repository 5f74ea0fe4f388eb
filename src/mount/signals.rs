//! SIGTERM, SIGINT and SIGHUP mean: unmount cleanly and end.
//!
//! [`Shutdown`] is a latch: once asked for, it stays asked for, and everybody
//! who waits, before or after, hears of it.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::notify;
use crate::background::Tasks;

/// Whether the process shall end. Clones share one latch.
#[derive(Debug, Clone)]
pub struct Shutdown {
    asked: watch::Sender<bool>,
}

impl Shutdown {
    /// A latch that nobody has asked yet, without signal handlers.
    pub fn new() -> Self {
        Self {
            asked: watch::Sender::new(false),
        }
    }

    /// A latch that SIGTERM, SIGINT and SIGHUP set, from now on and for the
    /// rest of the process. Needs a tokio runtime. The service manager is told
    /// when the first of them comes.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn on_signals(tasks: &Arc<Tasks>) -> io::Result<Self> {
        let latch = Self::new();
        for kind in [
            SignalKind::terminate(),
            SignalKind::interrupt(),
            SignalKind::hangup(),
        ] {
            let mut installed = Some(signal(kind)?);
            let (latch, of) = (latch.clone(), Arc::clone(tasks));
            tasks.restarted("signals", move || {
                let (latch, of, first) = (latch.clone(), Arc::clone(&of), installed.take());
                async move {
                    of.point("signals");
                    let mut signals = match first.map_or_else(|| signal(kind), Ok) {
                        Ok(signals) => signals,
                        Err(why) => return tracing::error!(%why, "deaf for signals"),
                    };
                    while signals.recv().await.is_some() {
                        if latch.ask() {
                            tracing::info!(signal = kind.as_raw_value(), "ending on a signal");
                            notify::stopping();
                        }
                    }
                }
            });
        }
        Ok(latch)
    }

    /// Asks for the end. True if nobody had before.
    pub fn ask(&self) -> bool {
        !self.asked.send_replace(true)
    }

    /// Whether somebody asked.
    pub fn is_asked(&self) -> bool {
        *self.asked.borrow()
    }

    /// Returns when somebody asks, at once if somebody has.
    pub async fn asked(&self) {
        let mut receiver = self.asked.subscribe();
        // The sender cannot be gone while `self` has it.
        let _ = receiver.wait_for(|asked| *asked).await;
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everybody_hears_of_the_end_early_or_late() {
        let latch = Shutdown::new();
        let early = tokio::spawn({
            let latch = latch.clone();
            async move { latch.asked().await }
        });
        tokio::task::yield_now().await;
        assert!(!latch.is_asked());
        assert!(latch.ask());
        assert!(!latch.ask());
        latch.asked().await;
        assert!(early.await.is_ok());
    }

    #[tokio::test]
    async fn a_hangup_sets_the_latch() -> io::Result<()> {
        let latch = Shutdown::on_signals(&Tasks::new())?;
        // SAFETY: raise has no memory effects; the handler is installed.
        assert_eq!(unsafe { libc::raise(libc::SIGHUP) }, 0);
        latch.asked().await;
        assert!(latch.is_asked());
        Ok(())
    }
}
