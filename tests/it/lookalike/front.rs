//! The mount target: one port for TLS and plain NFS, told apart by the first
//! byte; certificates are checked, bind calls answered, and the rest of the bytes
//! goes to a real NFS server.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::bind;
use super::pki::Leaf;
use super::verify::{self, Claims};
use super::{Refusal, Seen, Shared};

/// Ends connections when told to.
pub(crate) type Cut = watch::Sender<u64>;

/// Serves a mount target on `listener` until the runtime ends. Every change of
/// `cut` ends the connections that are there.
pub(crate) async fn serve(listener: TcpListener, leaf: Leaf, shared: Shared, cut: Arc<Cut>) {
    let acceptor = TlsAcceptor::from(Arc::new(config(leaf, &shared)));
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, shared) = (acceptor.clone(), shared.clone());
        let mut cut = cut.subscribe();
        cut.mark_unchanged();
        tokio::spawn(async move {
            tokio::select! {
                // How it ends is the client's business.
                _ = connection(stream, acceptor, &shared) => {}
                _ = cut.changed() => {}
            }
        });
    }
}

fn config(leaf: Leaf, shared: &Shared) -> ServerConfig {
    let provider = Arc::new(default_provider());
    let verifier = Arc::new(Reads {
        shared: shared.clone(),
    });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier)
        .with_single_cert(leaf.chain, leaf.key)
        .expect("certificate");
    // Tickets are offered: the client must not use them.
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().expect("ticketer");
    config
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Ok(());
    }
    // A handshake record, or the last-fragment bit of an RPC record.
    if first[0] != 0x16 {
        shared.record().plain += 1;
        let (demanded, backend) = {
            let world = shared.world();
            (world.tls_required || world.iam_required, world.backend)
        };
        return match demanded {
            true => deny(stream, shared).await,
            false => relay(stream, backend, shared).await,
        };
    }
    let stream = acceptor.accept(stream).await?;
    let (_, session) = stream.get_ref();
    let sni = session.server_name().map(str::to_owned);
    let tls = format!(
        "{:?}",
        session.protocol_version().expect("after the handshake")
    );
    let resumed = session.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
    let shown = session.peer_certificates().and_then(|chain| chain.first());
    let is_efs = sni.as_deref().is_some_and(|name| name.contains(".efs."));
    let judged = match shown {
        Some(certificate) => judge(certificate, shared),
        // Another server than EFS asks for nothing.
        None if !is_efs => {
            let backend = shared.world().backend;
            return relay(stream, backend, shared).await;
        }
        None => Err("no client certificate".to_owned()),
    };
    match judged {
        Ok(claims) => {
            let backend = {
                let world = shared.world();
                match &claims.access_point {
                    Some(point) => world.access_points[point],
                    None => world.backend,
                }
            };
            shared.record().seen.push(Seen {
                serial: claims.serial,
                access_point: claims.access_point,
                key_id: claims.key_id,
                source: claims.source,
                tls,
                sni,
                resumed,
            });
            relay(stream, backend, shared).await
        }
        Err(why) => {
            shared.record().refused.push(why);
            let refusal = shared.world().refusal;
            match refusal {
                Refusal::Nfs => deny(stream, shared).await,
                Refusal::Alert | Refusal::HangUp => Ok(()),
            }
        }
    }
}

fn judge(certificate: &CertificateDer<'_>, shared: &Shared) -> Result<Claims, String> {
    let world = shared.world();
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    verify::check(certificate, &world, now.cast_signed() + world.clock)
}

async fn relay<S: AsyncRead + AsyncWrite + Unpin>(
    mut client: S,
    backend: SocketAddr,
    shared: &Shared,
) -> io::Result<()> {
    let entered = Entered::new(shared);
    let cut = Arc::clone(&shared.record().streams[entered.number].cut);
    let work = async {
        let begun = bind::greet(&mut client, shared, entered.number).await?;
        let mut server = TcpStream::connect(backend).await?;
        server.set_nodelay(true)?;
        server.write_all(&begun).await?;
        tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, 256 << 10, 256 << 10)
            .await
            .map(|_| ())
    };
    tokio::select! {
        ended = work => ended,
        () = cut.notified() => Ok(()),
    }
}

/// The place of a connection in the record, as long as it lives: it may be ended from
/// outside at any time.
struct Entered<'a> {
    shared: &'a Shared,
    number: usize,
}

impl<'a> Entered<'a> {
    fn new(shared: &'a Shared) -> Self {
        let mut record = shared.record();
        record.streams.push(bind::Stream::new());
        let number = record.streams.len() - 1;
        Self { shared, number }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.shared.record().streams[self.number].ended = true;
    }
}

/// Answers the first compound with NFS4ERR_ACCESS, whatever it is.
async fn deny<S: AsyncRead + AsyncWrite + Unpin>(mut client: S, shared: &Shared) -> io::Result<()> {
    const ACCESS: u32 = 13;
    let entered = Entered::new(shared);
    loop {
        let begun = bind::greet(&mut client, shared, entered.number).await?;
        let (mark, begun) = begun.split_at(4);
        let mark = u32::from_be_bytes(mark.try_into().expect("four bytes"));
        let mut record = begun.to_vec();
        record.resize((mark & 0x7fff_ffff) as usize, 0);
        client.read_exact(&mut record[begun.len()..]).await?;
        let word = |at: usize| -> u32 {
            let bytes = record
                .get(at..at + 4)
                .map(|bytes| [bytes[0], bytes[1], bytes[2], bytes[3]]);
            bytes.map_or(0, u32::from_be_bytes)
        };
        // xid, CALL, 2, program, version, procedure, credential, verifier, then
        // tag, minor version, count, the first operation.
        let past_opaque = |at: usize| at + 8 + (word(at + 4) as usize).next_multiple_of(4);
        let arguments = past_opaque(past_opaque(24));
        let operations = arguments + 4 + (word(arguments) as usize).next_multiple_of(4) + 8;
        // xid, REPLY, accepted, no verifier, success; status, no tag, one result.
        let mut answer = vec![
            word(0),
            1,
            0,
            0,
            0,
            0,
            ACCESS,
            0,
            1,
            word(operations),
            ACCESS,
        ];
        answer.insert(0, 0x8000_0000 | (answer.len() * 4) as u32);
        let bytes: Vec<u8> = answer.iter().flat_map(|word| word.to_be_bytes()).collect();
        client.write_all(&bytes).await?;
        client.flush().await?;
    }
}

/// Asks every client for a certificate, and takes any at this point unless
/// refusals are to be alerts.
struct Reads {
    shared: Shared,
}

impl fmt::Debug for Reads {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Reads")
    }
}

impl ClientCertVerifier for Reads {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let by_alert = self.shared.world().refusal == Refusal::Alert;
        if by_alert && let Err(why) = judge(end_entity, &self.shared) {
            self.shared.record().refused.push(why);
            return Err(Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            ));
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let provider = default_provider();
        verify_tls12_signature(
            message,
            cert,
            dss,
            &provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let provider = default_provider();
        verify_tls13_signature(
            message,
            cert,
            dss,
            &provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Ends all connections through a front.
pub(crate) fn cut(cut: &Cut) {
    cut.send_modify(|times| *times += 1);
}

/// How often a test looks.
pub(crate) const SOON: Duration = Duration::from_millis(50);
