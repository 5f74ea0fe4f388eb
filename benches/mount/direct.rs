//! Our own client without FUSE: what the same server gives a plain loop of
//! READs and WRITEs, one after the other or several under way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use efs_fuse::efs::TcpConnector;
use efs_fuse::nfs::calls::HowToOpen;
use efs_fuse::nfs::proto::ops::{ACCESS_READ, ACCESS_WRITE};
use efs_fuse::nfs::proto::types::Stable;
use efs_fuse::nfs::session::establish::Identity;
use efs_fuse::nfs::state::OpenState;
use efs_fuse::nfs::{Client, ClientConfig};
use efs_fuse::rpc::auth::Credential;
use efs_fuse::rpc::{Connections, Tolerance};
use efs_fuse::telemetry::Metrics;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::host::{Context, Result, go_on};

/// Bytes of one READ or WRITE.
pub(crate) const BLOCK: usize = 1 << 20;

pub(crate) struct Direct {
    runtime: Runtime,
    client: Arc<Client>,
    open: Arc<OpenState>,
}

impl Direct {
    /// A client with one file open.
    pub(crate) fn open(server: SocketAddr, name: &str) -> Result<Self> {
        go_on()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("the runtime")?;
        let (client, open) = runtime.block_on(connect(server, name))?;
        Ok(Self {
            runtime,
            client,
            open,
        })
    }

    /// The time of `size` bytes of WRITE, `depth` of them under way, and COMMIT.
    pub(crate) fn write(&self, size: u64, depth: usize) -> Result<Duration> {
        self.write_at(offsets(size), BLOCK, depth)
    }

    /// The time of WRITEs of `len` bytes at `offsets`, and COMMIT.
    pub(crate) fn write_at(
        &self,
        offsets: impl Iterator<Item = u64>,
        len: usize,
        depth: usize,
    ) -> Result<Duration> {
        let data = Bytes::from(vec![0x5a; len]);
        let begun = Instant::now();
        self.runtime.block_on(async {
            each(offsets, depth, |offset| {
                let (client, open) = (Arc::clone(&self.client), Arc::clone(&self.open));
                let data = data.clone();
                async move {
                    let mut done = 0;
                    while done < data.len() {
                        let rest = [data.slice(done..)];
                        let written = client
                            .write(
                                &open,
                                open.fence(),
                                offset + done as u64,
                                Stable::Unstable,
                                &rest,
                            )
                            .await
                            .context("WRITE")?;
                        done += written.result.count as usize;
                    }
                    Ok(())
                }
            })
            .await?;
            self.client.commit(&self.open, 0, 0).await.context("COMMIT")
        })?;
        Ok(begun.elapsed())
    }

    /// The time of `size` bytes of READ, `depth` of them under way.
    pub(crate) fn read(&self, size: u64, depth: usize) -> Result<Duration> {
        self.read_at(offsets(size), BLOCK, depth)
    }

    /// The time of READs of `len` bytes at `offsets`.
    pub(crate) fn read_at(
        &self,
        offsets: impl Iterator<Item = u64>,
        len: usize,
        depth: usize,
    ) -> Result<Duration> {
        let begun = Instant::now();
        self.runtime.block_on(each(offsets, depth, |offset| {
            let (client, open) = (Arc::clone(&self.client), Arc::clone(&self.open));
            async move {
                let mut done = 0;
                while done < len {
                    let read = client
                        .read(&open, offset + done as u64, (len - done) as u32)
                        .await
                        .context("READ")?;
                    if read.data.is_empty() {
                        return Err("the file is shorter than expected".into());
                    }
                    done += read.data.len();
                }
                Ok(())
            }
        }))?;
        Ok(begun.elapsed())
    }

    /// The time of one round trip, the median of many GETATTRs.
    pub(crate) fn round_trip(&self) -> Result<Duration> {
        let cred = Credential::machine();
        let mut times = Vec::new();
        for _ in 0..200 {
            let begun = Instant::now();
            self.runtime
                .block_on(self.client.get_attrs(&cred, &self.open.handle))
                .context("GETATTR")?;
            times.push(begun.elapsed().as_secs_f64());
        }
        Ok(Duration::from_secs_f64(crate::host::median(times)))
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        self.runtime.block_on(async {
            let _ = self.client.close(&self.open).await;
            self.client.shut_down(Duration::from_secs(2)).await;
        });
    }
}

fn offsets(size: u64) -> impl Iterator<Item = u64> {
    (0..size).step_by(BLOCK)
}

async fn connect(server: SocketAddr, name: &str) -> Result<(Arc<Client>, Arc<OpenState>)> {
    let connector = Arc::new(TcpConnector::new(server.ip().to_string(), server.port()));
    let config = ClientConfig {
        identity: Identity {
            owner: format!("efs-fuse bench {} {name}", std::process::id()).into_bytes(),
            verifier: [1; 8],
            machine_name: "bench".to_owned(),
        },
        slots: 64,
        rsize: BLOCK as u32,
        wsize: BLOCK as u32,
        tolerance: Tolerance::default(),
        connections: Connections::ONE,
        suspended: efs_fuse::nfs::suspended,
        wal: efs_fuse::wal::Wal::off(),
    };
    let client = Client::connect(connector, config, Metrics::new())
        .await
        .context("connecting")?;
    let cred = Credential::of_process();
    client.find_root(&cred, b"/").await.context("the root")?;
    let root = client.fs().root.clone();
    let opened = client
        .create(
            &cred,
            &root,
            name.as_bytes(),
            ACCESS_READ | ACCESS_WRITE,
            0o644,
            HowToOpen::Existing,
        )
        .await
        .context("OPEN")?;
    Ok((client, opened.open))
}

/// Runs `job` for each offset, `depth` of them at the same time. One at a time
/// it is a plain loop: no task is made.
async fn each<F>(
    offsets: impl Iterator<Item = u64>,
    depth: usize,
    job: impl Fn(u64) -> F,
) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    if depth == 1 {
        for offset in offsets {
            job(offset).await?;
        }
        return Ok(());
    }
    let mut running = JoinSet::new();
    for offset in offsets {
        if running.len() == depth
            && let Some(done) = running.join_next().await
        {
            done.context("a task")??;
        }
        running.spawn(job(offset));
    }
    while let Some(done) = running.join_next().await {
        done.context("a task")??;
    }
    Ok(())
}
