//! Connections to one server.
//!
//! Every connection resolves the name anew and tries its addresses ([`super::tcp`]).
//!
//! [`ServerConnector`] does what a mount needs, with TLS and an identity where
//! they are wanted. It may be asked for any number of connections, also at the
//! same time; each is complete, with nothing sent on it but the TLS handshake,
//! so that a first call of its own may be sent before any other: where several
//! connections to EFS are wanted ([`ServerConnector::several`]), the bind call of
//! [`super::partition`]. Further connections go to the address of the first.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};

use super::bind::{Ask, BindReply, NoReply};
use super::certificate::{Claims, SOURCE};
use super::clock::Utc;
use super::credentials::{self, Source};
use super::device::{Device, DeviceKind};
use super::identity::{Identity, Shown};
use super::imds::{Imds, Instance};
use super::mount_targets::Api;
use super::partition::{self, First, Further, Partitions};
use super::problem::Problem;
use super::settings::Settings;
use super::source_port::{NotReserved, SourcePort};
use super::target::{Found, Target};
use super::tcp::{peer_of, race, tune};
use super::tls::{Agreed, Tls};
use crate::rpc::preface;
use crate::rpc::transport::{BoxStream, Connecting, Connector, Joining, NoFurther};

/// Connects to the server of a mount.
///
/// What it has to find out first (region, zone, key) it finds out when
/// the first connection is asked for, and again if that failed: a machine that
/// boots gets there in the end.
#[derive(Debug)]
pub struct ServerConnector {
    device: Device,
    settings: Settings,
    imds: Imds,
    api: Api,
    target: OnceCell<Target>,
    tls: OnceCell<Secure>,
    /// Of EFS, if there may be several connections.
    partitions: Option<Mutex<Partitions>>,
    /// That of the last connection.
    address: Mutex<Option<SocketAddr>>,
    /// The port here of the last connection.
    port: Mutex<Option<u16>>,
    /// Of the last handshake.
    agreed: Mutex<Option<Agreed>>,
    /// What the user should know; each once.
    warnings: Mutex<Warnings>,
}

#[derive(Debug)]
struct Secure {
    tls: Tls,
    identity: Option<Arc<Identity>>,
}

#[derive(Debug, Default)]
struct Warnings {
    said: Vec<String>,
    fresh: Vec<String>,
}

/// More are not kept apart: they would only differ by zones.
const MAX_WARNINGS: usize = 16;

impl ServerConnector {
    /// For `device` with `settings` that fit it. Nothing is asked or connected
    /// yet.
    pub fn new(device: Device, settings: Settings) -> Self {
        let connector = Self {
            imds: Imds::from_env(env),
            api: Api::new(&settings),
            target: OnceCell::new(),
            tls: OnceCell::new(),
            partitions: None,
            address: Mutex::default(),
            port: Mutex::default(),
            agreed: Mutex::default(),
            warnings: Mutex::default(),
            device,
            settings,
        };
        if connector.uses_tls() && !connector.settings.verify {
            connector.warn("verify=0: anybody may be the server".to_owned());
        }
        connector
    }

    /// There may be several connections at a time: what EFS must be asked for that
    /// is asked.
    ///
    /// # Errors
    /// There are no random numbers.
    pub fn several(mut self) -> io::Result<Self> {
        if self.device.is_efs() {
            let mut identifier = [0; 16];
            getrandom::fill(&mut identifier).map_err(io::Error::other)?;
            self.partitions = Some(Mutex::new(Partitions::new(identifier)));
        }
        Ok(self)
    }

    /// Whether connections are by TLS.
    pub fn uses_tls(&self) -> bool {
        self.settings.uses_tls(&self.device)
    }

    /// The device and the options of this connector.
    pub fn asked(&self) -> (&Device, &Settings) {
        (&self.device, &self.settings)
    }

    /// What is connected to.
    ///
    /// # Errors
    /// It cannot be found out (now).
    pub async fn target(&self) -> Result<&Target, Problem> {
        let find = || Target::find(&self.device, &self.settings, &self.imds, env);
        self.target.get_or_try_init(find).await
    }

    /// The profile of `awsprofile=`, for people; `None` without one. It is looked for in files
    /// alone.
    ///
    /// # Errors
    /// There is no such profile.
    pub async fn profile(&self) -> Result<Option<String>, Problem> {
        credentials::named_profile(&self.settings).await
    }

    /// The addresses of the server as they are now.
    ///
    /// # Errors
    /// It has none.
    pub async fn addresses(&self) -> Result<Found, Problem> {
        let found = self
            .target()
            .await?
            .addresses(&self.api, &self.imds)
            .await?;
        if let Some(warning) = &found.warning {
            self.warn(warning.clone());
        }
        Ok(found)
    }

    /// A plain TCP connection to the first of `addresses` that accepts.
    ///
    /// # Errors
    /// None accepts.
    pub async fn tcp(&self, addresses: Vec<SocketAddr>) -> Result<TcpStream, Problem> {
        let connected = async {
            let connected = race(addresses, self.source_port()).await?;
            if let Some(why) = connected.not_reserved {
                let line = format!(
                    "no source port below 1024, which servers may demand: {}",
                    why.words()
                );
                // In a container that may not, that is so for every mount, and matters to
                // few: who is refused is told.
                match why == NotReserved::Taken || self.settings.reserved_port == Some(true) {
                    true => self.warn(line),
                    false => tracing::info!("{line}"),
                }
            }
            let stream = connected.stream;
            *self.port.lock() = stream.local_addr().ok().map(|here| here.port());
            tune(&stream)?;
            Ok(stream)
        };
        connected.await.map_err(|why| {
            let given = self.settings.mount_target.is_some();
            Problem::connecting(&self.peer(), &why, self.device.is_efs(), given)
        })
    }

    /// Who is not root cannot have a port of root's, and is not told so unless it was
    /// asked for.
    fn source_port(&self) -> SourcePort {
        // SAFETY: geteuid has no preconditions.
        let root = unsafe { libc::geteuid() == 0 };
        let asked = self.settings.reserved_port == Some(true);
        match self.settings.from_reserved_port(&self.device) && (root || asked) {
            true => SourcePort::Reserved,
            false => SourcePort::Any,
        }
    }

    /// The port here of the last connection.
    pub fn port(&self) -> Option<u16> {
        *self.port.lock()
    }

    /// Prepares TLS: whom to believe, and a certificate of ours that is young.
    /// `false` if there is no TLS.
    ///
    /// # Errors
    /// The CA file or the credentials cannot be had.
    pub async fn prepare_tls(&self) -> Result<bool, Problem> {
        if !self.uses_tls() {
            return Ok(false);
        }
        if let Some(identity) = &self.secure().await?.identity {
            identity.refresh().await?;
        }
        Ok(true)
    }

    /// Shakes hands on a fresh connection, after [`Self::prepare_tls`].
    ///
    /// # Errors
    /// TLS fails.
    pub async fn secured(&self, stream: TcpStream) -> Result<(BoxStream, Agreed), Problem> {
        let secure = self.secure().await?;
        let (stream, agreed) = secure.tls.handshake(stream, &self.peer()).await?;
        *self.agreed.lock() = Some(agreed.clone());
        Ok((Box::new(stream), agreed))
    }

    async fn secure(&self) -> Result<&Secure, Problem> {
        let prepare = || async {
            let target = self.target().await?;
            let identity = match &target.file_system {
                Some(file_system) => {
                    let source = match self.settings.iam {
                        true => Some(Source::of(&self.settings, &file_system.region)?),
                        false => None,
                    };
                    let claims = Claims {
                        fs_id: file_system.id.clone(),
                        region: file_system.region.clone(),
                        access_point: self.settings.access_point.clone(),
                        host: host_name(),
                        client: self
                            .settings
                            .client_source
                            .clone()
                            .unwrap_or_else(|| SOURCE.to_owned()),
                    };
                    let renew = self.settings.renew;
                    Some(Arc::new(Identity::new(claims, source, renew)))
                }
                None => None,
            };
            let tls = Tls::new(target, &self.settings, identity.clone())?;
            Ok(Secure { tls, identity })
        };
        self.tls.get_or_try_init(prepare).await
    }

    /// One connection, complete.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn open(&self) -> Result<BoxStream, Problem> {
        // The key and the credentials take their time, and so do DNS and TCP.
        let addresses = async { Ok(self.addresses().await?.addresses) };
        self.open_to(addresses).await
    }

    /// One more, to the same address.
    async fn open_beside(&self) -> Result<BoxStream, Problem> {
        let address = *self.address.lock();
        match address {
            Some(address) => self.open_to(async { Ok(vec![address]) }).await,
            None => self.open().await,
        }
    }

    async fn open_to(
        &self,
        addresses: impl Future<Output = Result<Vec<SocketAddr>, Problem>>,
    ) -> Result<BoxStream, Problem> {
        let tcp = async { self.tcp(addresses.await?).await };
        let (stream, secure) = tokio::try_join!(tcp, self.prepare_tls())?;
        if let Ok(address) = stream.peer_addr() {
            *self.address.lock() = Some(address);
        }
        match secure {
            true => Ok(self.secured(stream).await?.0),
            false => Ok(Box::new(stream)),
        }
    }

    /// A first connection; of EFS, its partition is found out where that can be.
    async fn first(&self) -> io::Result<BoxStream> {
        let Some(partitions) = &self.partitions else {
            return Ok(self.open().await?);
        };
        let mut ask = partitions.lock().first(Instant::now());
        while let Some(asked) = ask.take() {
            let mut stream = self.open().await?;
            let reply = bind(&mut stream, &asked).await?;
            let next = partitions
                .lock()
                .first_answered(asked, reply, Instant::now());
            match next {
                First::Use => return Ok(stream),
                First::Ask(next) => ask = Some(next),
                First::Plain => tracing::info!(
                    "{} tells no partitions: there will be one connection",
                    self.peer()
                ),
            }
        }
        Ok(self.open().await?)
    }

    /// One more that leads to the session.
    async fn more(&self) -> Result<BoxStream, NoFurther> {
        let Some(partitions) = &self.partitions else {
            return self.open_beside().await.map_err(NoFurther::now);
        };
        let search = async {
            let mut asked = partitions.lock().further()?;
            loop {
                let mut stream = self.open_beside().await.map_err(NoFurther::now)?;
                let reply = bind(&mut stream, &asked).await.map_err(NoFurther::now)?;
                let next = partitions.lock().further_answered(asked, reply);
                match next {
                    Further::Use => return Ok(stream),
                    Further::Ask(next) => asked = next,
                    Further::Stop(stopped) => return Err(stopped),
                }
            }
        };
        let found = timeout(partition::SEARCH, search).await;
        found.unwrap_or_else(|_| Err(Partitions::search_over()))
    }

    /// What the last TLS handshake came to.
    pub fn agreed(&self) -> Option<Agreed> {
        self.agreed.lock().clone()
    }

    /// The identity shown to EFS, if there is one.
    pub fn identity(&self) -> Option<Shown> {
        self.tls.get()?.identity.as_ref()?.shown()
    }

    /// Where this machine is.
    ///
    /// # Errors
    /// One line that says why it is not known.
    pub async fn instance(&self) -> Result<Instance, String> {
        self.imds.instance().await
    }

    /// Seconds that this machine's clock is ahead of AWS's, as far as instance
    /// metadata say.
    pub async fn clock_skew(&self) -> Option<i64> {
        let date = self.imds.instance().await.ok()?.date?;
        let theirs = Utc::from_http(&date)?;
        Some(Utc::now().0.cast_signed() - theirs.0.cast_signed())
    }

    /// Warnings that were not asked for yet.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.warnings.lock().fresh)
    }

    fn warn(&self, text: String) {
        let mut warnings = self.warnings.lock();
        if warnings.said.contains(&text) || warnings.said.len() >= MAX_WARNINGS {
            return;
        }
        tracing::warn!("{text}");
        warnings.said.push(text.clone());
        warnings.fresh.push(text);
    }
}

impl Connector for ServerConnector {
    fn connect(&self) -> Connecting<'_> {
        Box::pin(self.first())
    }

    fn further(&self) -> Joining<'_> {
        Box::pin(self.more())
    }

    fn allowed(&self) -> usize {
        let partitions = self.partitions.as_ref();
        partitions.map_or(usize::MAX, |partitions| partitions.lock().allowed())
    }

    fn vouches(&self) -> bool {
        let partitions = self.partitions.as_ref();
        partitions.is_some_and(|partitions| partitions.lock().known())
    }

    fn peer(&self) -> String {
        match self.target.get() {
            Some(target) => peer_of(&target.host, target.port),
            None if matches!(self.device.kind, DeviceKind::FileSystemId { .. }) => {
                self.device.host.clone()
            }
            None => peer_of(&self.device.host, self.settings.port),
        }
    }
}

/// Asks a fresh connection for its partition.
///
/// # Errors
/// Why the server does not want us at all; all else is a missing reply.
pub(super) async fn bind(
    stream: &mut BoxStream,
    asked: &Ask,
) -> io::Result<Result<BindReply, NoReply>> {
    let mut xid = [0; 4];
    getrandom::fill(&mut xid).map_err(io::Error::other)?;
    let xid = u32::from_ne_bytes(xid);
    match preface::ask(stream, asked.call(), xid, partition::PATIENCE).await {
        Ok(answer) => Ok(asked.read(answer)),
        Err(why) if Problem::of(&why).is_some() => Err(why),
        Err(why) => Ok(Err(NoReply::Failed(why.to_string()))),
    }
}

/// The variables of this process; one that is empty counts as unset.
pub(super) fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "localhost".to_owned(), |name| name.trim().to_owned())
}
