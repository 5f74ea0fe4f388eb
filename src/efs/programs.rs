//! Which bind programs a server takes: for people (`doctor --probe`).

use super::bind::{self, Ask, Generation, NoReply};
use super::connector::{self, ServerConnector};

impl ServerConnector {
    /// Asks each known program for its partition, over a connection of its own as a
    /// mount would be. The program's number, and what the server says or why not.
    pub async fn bind_programs(&self) -> Vec<(u32, String)> {
        let mut found = Vec::new();
        for generation in [Generation::Two, Generation::One] {
            let (program, _) = generation.number();
            found.push((program, self.asked_by(generation).await));
        }
        found
    }

    async fn asked_by(&self, generation: Generation) -> String {
        let mut identifier = [0; 16];
        if let Err(why) = getrandom::fill(&mut identifier) {
            return why.to_string();
        }
        let ask = Ask {
            generation,
            identifier: bind::uuid(identifier),
            incarnation: 1,
            tried: 0,
        };
        let answered = async {
            let mut stream = self.open().await.map_err(|why| why.to_string())?;
            let reply = connector::bind(&mut stream, &ask).await;
            match reply.map_err(|why| why.to_string())? {
                Ok(reply) => Ok(reply.to_string()),
                Err(NoReply::NotSpoken) => Err("not spoken".to_owned()),
                Err(NoReply::Failed(why)) => Err(why),
            }
        };
        answered.await.unwrap_or_else(|why: String| why)
    }
}
