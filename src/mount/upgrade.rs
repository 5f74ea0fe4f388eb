//! A request for another program to take over, on its way from the control socket to whoever
//! serves the mount.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::handover::memory::LAYOUT;
use crate::telemetry::control::UpgradeFn;

/// A request that waits for its answer.
#[derive(Debug)]
pub struct Asked {
    /// The program that is to take over.
    pub program: PathBuf,
    answer: oneshot::Sender<Value>,
}

impl Asked {
    /// The mount stays with this daemon, for this reason.
    pub fn refuse(self, why: &str) {
        // Who asked may be gone.
        let _ = self.answer.send(refusal(why));
    }
}

fn refusal(why: &str) -> Value {
    json!({ "error": why })
}

/// Requests as they come in.
#[derive(Debug)]
pub struct Requests(mpsc::Receiver<Asked>);

impl Requests {
    /// The next request. Never returns without one.
    pub async fn next(&mut self) -> Asked {
        match self.0.recv().await {
            Some(asked) => asked,
            // Nobody is left who could ask.
            None => std::future::pending().await,
        }
    }
}

/// What takes requests in, one at a time, and where they come out: `{"program": PATH,
/// "layouts": [NUMBER, ...]}`, the layouts of a state that the program can read.
pub fn line() -> (UpgradeFn, Requests) {
    let (sender, receiver) = mpsc::channel(1);
    let hear = move |request: &Value| {
        let (answer, outcome) = oneshot::channel();
        let refused = match readable(request) {
            Err(why) => Some((answer, why)),
            Ok(program) => match sender.try_send(Asked { program, answer }) {
                Ok(()) => None,
                Err(full) => Some((
                    full.into_inner().answer,
                    "it is being handed over already".to_owned(),
                )),
            },
        };
        if let Some((answer, why)) = refused {
            let _ = answer.send(refusal(&why));
        }
        outcome
    };
    (Arc::new(hear), Requests(receiver))
}

/// The program that a request names, if it can read what this one writes.
fn readable(request: &Value) -> Result<PathBuf, String> {
    let program = request["program"].as_str().map(Path::new);
    let program = program.filter(|program| program.is_absolute());
    let program = program.ok_or("no program is named")?;
    let layouts = request["layouts"].as_array();
    let known = layouts.is_some_and(|layouts| layouts.iter().any(|known| known == LAYOUT));
    match known {
        true => Ok(program.to_owned()),
        false => Err(format!(
            "the state that it leaves has layout {LAYOUT}, which {} does not read",
            program.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_cannot_read_the_state_is_refused_before_anything_happens() {
        let (hear, mut requests) = line();
        for (request, because) in [
            (json!({"layouts": [LAYOUT]}), "no program"),
            (json!({"program": "x", "layouts": [LAYOUT]}), "no program"),
            (json!({"program": "/x"}), "layout"),
            (json!({"program": "/x", "layouts": [LAYOUT + 1]}), "layout"),
        ] {
            let answer = hear(&request).await;
            let why = answer.ok().map(|answer| answer["error"].to_string());
            assert!(why.is_some_and(|why| why.contains(because)), "{request}");
        }
        assert!(requests.0.try_recv().is_err());
    }

    #[tokio::test]
    async fn requests_come_one_at_a_time_and_are_answered_each() {
        let (hear, mut requests) = line();
        let request = json!({"program": "/usr/bin/efs-fuse", "layouts": [LAYOUT + 1, LAYOUT]});
        let (first, second) = (hear(&request), hear(&request));
        let error = second.await.ok().map(|answer| answer["error"].to_string());
        assert!(error.is_some_and(|why| why.contains("already")));
        let asked = requests.next().await;
        assert_eq!(asked.program, Path::new("/usr/bin/efs-fuse"));
        asked.refuse("the server does not answer");
        let answer = first.await.ok();
        assert!(answer.is_some_and(|answer| answer["error"] == "the server does not answer"));
    }
}
