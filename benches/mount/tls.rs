//! What TLS takes of the throughput: the streams of one mount with it and without,
//! and over several connections, through the mount target of the look-alike, so that
//! every contestant has the same process in between. That process deciphers on the
//! same processors, which a real server would not.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::host::{Context, Result, go_on, median};
use crate::lookalike::pki::Authority;
use crate::lookalike::{Shared, World, front};
use crate::mount::Mount;
use crate::report::Report;
use crate::server::Server;
use crate::streams::{read_file, write_file};

const ROUNDS: usize = 3;
/// Throughput with TLS against without.
const FLOOR: f64 = 0.6;
/// Name, options; the first is what the others are compared with.
const CONTESTANTS: [(&str, &[&str]); 4] = [
    ("without", &["notls"]),
    ("TLS", &["tls"]),
    ("without, nconnect=4", &["notls", "nconnect=4"]),
    ("TLS, nconnect=4", &["tls", "nconnect=4"]),
];

/// A mount target in this process.
struct Front {
    address: SocketAddr,
    // Its connections end with it.
    _runtime: Runtime,
}

impl Front {
    fn to(server: SocketAddr, ca: &Path) -> Result<Self> {
        let authority = Authority::new();
        fs::write(ca, authority.pem()).context("the issuer's certificate")?;
        let leaf = authority.issue(&[&Ipv4Addr::LOCALHOST.to_string()]);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("a runtime")?;
        let listener = runtime
            .block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .context("the mount target")?;
        let address = listener.local_addr().context("the mount target")?;
        let shared = Shared::new(World::new("fs-00000000", "eu-west-1", server));
        let cut = Arc::new(front::Cut::new(0));
        runtime.spawn(front::serve(listener, leaf, shared, cut));
        Ok(Self {
            address,
            _runtime: runtime,
        })
    }
}

pub(crate) fn measure(report: &mut Report, parent: &Path, quick: bool) -> Result<()> {
    let server = Server::start(parent)?;
    let export = server.export();
    let size: u64 = if quick { 128 << 20 } else { 1 << 30 };
    let mib = size as f64 / f64::from(1 << 20);
    write_file(&export.join("read"), size)?;
    let dir = tempfile::tempdir().context("a directory")?;
    let ca = dir.path().join("ca.pem");
    let front = Front::to(server.address(), &ca)?;
    let believe = format!("cafile={}", ca.display());

    let mut rates = CONTESTANTS.map(|_| [Vec::new(), Vec::new()]);
    for round in 0..ROUNDS {
        for ((_, options), rates) in CONTESTANTS.iter().zip(&mut rates) {
            go_on()?;
            let mut options = options.to_vec();
            if options.contains(&"tls") {
                options.push(&believe);
            }
            let mount = Mount::with(front.address, &options)?;
            let name = format!("written{round}-{}", options.join("-").replace('/', "_"));
            let written = write_file(&mount.join(&name), size)?;
            let read = read_file(&mount.join("read"), size)?;
            mount.end()?;
            rates[0].push(mib / written.as_secs_f64());
            rates[1].push(mib / read.as_secs_f64());
            fs::remove_file(export.join(&name)).context(name)?;
        }
    }

    let mut shown = Map::new();
    for (what, index) in [("write and fsync", 0), ("read, cold", 1)] {
        report.heading(
            &format!("TLS: sequential {what}, {mib:.0} MiB, through a mount target"),
            &["", "MiB/s", "of without"],
        );
        let medians = rates.each_ref().map(|rates| median(rates[index].clone()));
        let mut json = Map::new();
        for ((name, options), rate) in CONTESTANTS.iter().zip(medians) {
            let share = rate / medians[0];
            let verdict = match *options {
                ["tls"] => Report::verdict(share >= FLOOR),
                _ => "",
            };
            report.row(&[
                (*name).to_owned(),
                format!("{rate:.0}"),
                format!("{:.0} % {verdict}", 100.0 * share)
                    .trim()
                    .to_owned(),
            ]);
            json.insert((*name).to_owned(), json!(rate));
        }
        shown.insert(what.to_owned(), Value::Object(json));
    }
    report.put("tls_mib_s", Value::Object(shown));
    Ok(())
}
