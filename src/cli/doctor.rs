//! `efs-fuse doctor`: walks the way of a mount step by step, without mounting,
//! and says where it ends and what to change.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::arguments::Doctor;
use super::defaults;
use super::exit::{self, Failure};
use super::mount::{find_device, read_lists};
use super::probe;
use crate::efs::{Device, Problem, ServerConnector};
use crate::mount::connecting::{self, Unwelcome};
use crate::mount::{MountError, MountOptions, checks, launch};
use crate::nfs::session::establish::Identity;
use crate::nfs::{Client, ClientConfig};
use crate::quoting;
use crate::rpc::{Connections, Tolerance};
use crate::telemetry::Metrics;

/// How long the server may take over each step.
const PATIENCE: Duration = Duration::from_secs(20);
const FAREWELL: Duration = Duration::from_secs(2);
/// A clock that is off by so much is worth a warning.
const SKEW: i64 = 60;

/// One step and how it went.
#[derive(Debug)]
struct ReportStep {
    name: &'static str,
    outcome: Outcome,
}

#[derive(Debug)]
enum Outcome {
    Good(String),
    /// Not well, and no obstacle.
    Note(String),
    Bad(MountError),
}

/// All steps so far.
#[derive(Debug, Default)]
struct Report {
    steps: Vec<ReportStep>,
    /// What `--probe` found.
    probe: Option<Value>,
}

impl Report {
    fn good(&mut self, name: &'static str, detail: impl Into<String>) {
        let outcome = Outcome::Good(detail.into());
        self.steps.push(ReportStep { name, outcome });
    }

    fn note(&mut self, name: &'static str, detail: impl Into<String>) {
        let outcome = Outcome::Note(detail.into());
        self.steps.push(ReportStep { name, outcome });
    }

    /// The step's value, or its failure, which ends the way.
    fn step<T>(&mut self, name: &'static str, result: Result<T, MountError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let outcome = Outcome::Bad(error);
                self.steps.push(ReportStep { name, outcome });
                None
            }
        }
    }

    fn failure(&self) -> Option<&MountError> {
        self.steps.iter().find_map(|step| match &step.outcome {
            Outcome::Bad(error) => Some(error),
            _ => None,
        })
    }
}

pub(super) fn run(asked: &Doctor) -> Result<(), Failure> {
    let lists = defaults::before(&asked.options)?;
    let added = lists[..lists.len() - asked.options.len()].join(",");
    let (options, _) = read_lists(&lists, false)?;
    let device = find_device(&asked.device, &options)?;
    let failed = |what: &str, why: std::io::Error| Failure::system(what, why);
    launch::confine(&device, &options.server)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|why| failed("starting the runtime", why))?;
    let report = runtime.block_on(examine(&device, &options, &added, asked.probe));
    // A resolver may hang in it.
    runtime.shutdown_background();
    exit::print(&match asked.json {
        true => format!("{}\n", as_json(&device, &report)),
        false => as_text(&report),
    })?;
    match report.failure() {
        Some(error) => Err(error.clone().into()),
        None => Ok(()),
    }
}

/// `added`: the options that come from the file of defaults.
async fn examine(device: &Device, options: &MountOptions, added: &str, probed: bool) -> Report {
    let connector = Arc::new(ServerConnector::new(device.clone(), options.server.clone()));
    let mut report = Report::default();
    if !added.is_empty() {
        report.good("defaults", format!("{added} (of {})", defaults::PATH));
    }
    // Its end is in the report.
    let _ = walk(&mut report, device, options, &connector, probed).await;
    for warning in connector.take_warnings() {
        report.note("warning", warning);
    }
    report
}

/// `None` where the way ends.
async fn walk(
    report: &mut Report,
    device: &Device,
    options: &MountOptions,
    connector: &Arc<ServerConnector>,
    probed: bool,
) -> Option<()> {
    let by = match (connector.uses_tls(), options.server.tls) {
        (true, None) => "by TLS, as always with EFS",
        (true, Some(_)) => "by TLS",
        (false, _) => "without TLS",
    };
    report.good(
        "device",
        format!("{}, directory {}, {by}", device.host, device.path),
    );
    kernel(report);
    // Of this machine alone, before anybody is asked.
    if let Some(profile) = report.step("profile", problem(connector.profile().await))? {
        report.good("profile", profile);
    }
    let target = report.step("region", problem(connector.target().await))?;
    if let Some(file_system) = &target.file_system {
        let detail = format!(
            "{} in {}: {}",
            file_system.id, file_system.region, target.host
        );
        report.good("region", detail);
        surroundings(report, connector).await;
    }
    let stream = reach(report, connector).await?;
    if report.step("identity", problem(connector.prepare_tls().await))? {
        if target.file_system.is_some() {
            report.good("identity", who(options, connector));
        }
        let begun = Instant::now();
        let secured = connector.secured(stream).await;
        let (_, agreed) = report.step("tls", problem(secured))?;
        let took = millis(begun.elapsed());
        let detail = format!(
            "{} {} in {took}, for {}",
            agreed.version, agreed.cipher, target.tls_name
        );
        report.good("tls", detail);
    }
    serve(report, device, options, connector, probed).await
}

/// What this kernel can do for a mount, and what not.
fn kernel(report: &mut Report) {
    match launch::takeover() {
        Ok(can) => report.good("kernel", can),
        Err(why) => report.note("kernel", why),
    }
    // Without it nothing is mounted here; whether the server can be reached is to be known all the same.
    if report.step("fuse", checks::fuse_device()).is_some() {
        report.good("fuse", "/dev/fuse can be opened");
    }
}

/// Where this machine is, and how well its clock goes.
async fn surroundings(report: &mut Report, connector: &ServerConnector) {
    match connector.instance().await {
        Ok(instance) => report.good(
            "zone",
            format!(
                "this machine is in {} ({})",
                instance.zone.as_deref().unwrap_or("?"),
                instance.zone_id.as_deref().unwrap_or("?")
            ),
        ),
        Err(why) => report.note("zone", format!("not known: {why}")),
    }
    match connector.clock_skew().await {
        Some(skew) if skew.abs() >= SKEW => report.note(
            "clock",
            format!(
                "{} s {} AWS's",
                skew.abs(),
                if skew > 0 { "ahead of" } else { "behind" }
            ),
        ),
        Some(skew) => report.good("clock", format!("within {} s of AWS's", skew.abs().max(1))),
        None => {}
    }
}

/// The addresses of the server, and a connection to one of them.
async fn reach(report: &mut Report, connector: &ServerConnector) -> Option<TcpStream> {
    let found = report.step("addresses", problem(connector.addresses().await))?;
    let shown: Vec<_> = found
        .addresses
        .iter()
        .map(|address| address.ip().to_string())
        .collect();
    report.good("addresses", shown.join(", "));
    let begun = Instant::now();
    let stream = report.step("connection", problem(connector.tcp(found.addresses).await))?;
    let peer = stream
        .peer_addr()
        .map_or_else(|_| "?".to_owned(), |peer| peer.to_string());
    let took = millis(begun.elapsed());
    let from = stream
        .local_addr()
        .map_or_else(|_| "?".to_owned(), |here| here.port().to_string());
    report.good("connection", format!("{peer} from port {from} in {took}"));
    Some(stream)
}

/// Who we are to EFS.
fn who(options: &MountOptions, connector: &ServerConnector) -> String {
    let point = options.server.access_point.as_deref();
    let point = point.map_or_else(String::new, |point| format!(", access point {point}"));
    let principal = connector.identity().and_then(|shown| shown.access_key_id);
    match &principal {
        Some(key_id) => format!("IAM principal of access key {key_id}{point}"),
        None => format!("no IAM identity{point}"),
    }
}

/// The NFS session, the directory to mount, and what `--probe` asks beyond.
async fn serve(
    report: &mut Report,
    device: &Device,
    options: &MountOptions,
    connector: &Arc<ServerConnector>,
    probed: bool,
) -> Option<()> {
    let client = report.step("session", session(options, connector, &device.path).await)?;
    let info = client.session_info();
    report.good(
        "session",
        format!(
            "NFSv4.1, {} slots, {} operations a compound, lease {} s",
            info.slots, info.max_ops, info.lease
        ),
    );
    let root = match connecting::find_root(&device.path, &client).await {
        Ok(()) => Ok(()),
        Err(error) => Err(connecting::explain(error, &device.path, connector).await),
    };
    let root = report.step("root", root);
    if root.is_some() {
        let info = client.session_info();
        let detail = format!(
            "{} is readable; rsize {}, wsize {}",
            device.path, info.rsize, info.wsize
        );
        report.good("root", detail);
        if probed {
            report.probe = Some(probe::probe(&client, connector).await);
        }
    }
    client.shut_down(FAREWELL).await;
    root
}

async fn session(
    options: &MountOptions,
    connector: &Arc<ServerConnector>,
    path: &str,
) -> Result<Arc<Client>, MountError> {
    let mut verifier = [0; 8];
    getrandom::fill(&mut verifier)
        .map_err(|why| MountError::system("making a client identity", why))?;
    // Not that of a mount: the server would let go of what that has open.
    let owner = format!("efs-fuse doctor {} {verifier:?}", std::process::id()).into_bytes();
    let config = ClientConfig {
        identity: Identity {
            owner,
            verifier,
            machine_name: "efs-fuse-doctor".to_owned(),
        },
        slots: options.max_requests,
        rsize: options.rsize,
        wsize: options.wsize,
        tolerance: Tolerance::of(options.timeo, options.retrans),
        connections: Connections::ONE,
        suspended: crate::nfs::suspended,
        wal: crate::wal::Wal::off(),
    };
    let client = Client::connect(Arc::clone(connector) as _, config, Metrics::new());
    match tokio::time::timeout(PATIENCE, client).await {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(error)) => Err(connecting::explain(Unwelcome::Client(error), path, connector).await),
        Err(_) => {
            let peer = crate::rpc::transport::Connector::peer(&**connector);
            Err(MountError::silent(&peer, PATIENCE))
        }
    }
}

fn problem<T>(result: Result<T, Problem>) -> Result<T, MountError> {
    result.map_err(Into::into)
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn as_text(report: &Report) -> String {
    let mut text = String::new();
    // The way out of the first failure ends the command, on stderr.
    let mut failed_before = false;
    for ReportStep { name, outcome } in &report.steps {
        let (mark, detail) = match outcome {
            Outcome::Good(detail) => ("ok", detail.clone()),
            Outcome::Note(detail) => ("note", detail.clone()),
            Outcome::Bad(error) if failed_before => ("FAILED", error.to_string()),
            Outcome::Bad(error) => {
                failed_before = true;
                ("FAILED", error.message.clone())
            }
        };
        // Names in it are the server's.
        let detail = quoting::plain(&detail);
        text.push_str(&format!("{mark:<7} {name:<11} {detail}\n"));
    }
    if let Some(Value::Object(found)) = &report.probe {
        for (name, value) in found {
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            let value = quoting::plain(&value);
            text.push_str(&format!("probe   {name:<32} {value}\n"));
        }
    }
    text
}

fn as_json(device: &Device, report: &Report) -> Value {
    let steps: Vec<_> = report
        .steps
        .iter()
        .map(|ReportStep { name, outcome }| match outcome {
            Outcome::Good(detail) => json!({"step": name, "ok": true, "detail": detail}),
            Outcome::Note(detail) => json!({"step": name, "ok": true, "note": detail}),
            Outcome::Bad(error) => json!({
                "step": name, "ok": false, "error": error.message, "remedy": error.remedy,
            }),
        })
        .collect();
    json!({
        "device": device.spec,
        "ok": report.failure().is_none(),
        "steps": steps,
        "probe": report.probe,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::default();
        report.good("device", "fs-1");
        report.note("zone", "not known");
        let error = MountError::mount("resolving x", "no such name").remedy("another");
        assert!(report.step::<()>("addresses", Err(error)).is_none());
        report
    }

    #[test]
    fn the_report_says_where_the_way_ends() {
        let text = as_text(&report());
        for line in [
            "ok      device",
            "note    zone",
            "FAILED  addresses   resolving x failed: no such name",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert_eq!(report().failure().map(|error| error.status), Some(32));
        // The first way out is said on stderr, any other here.
        let mut twice = report();
        let error = MountError::mount("asking x", "nobody").remedy("again");
        assert!(twice.step::<()>("session", Err(error)).is_none());
        let text = as_text(&twice);
        assert!(!text.contains("another"), "{text}");
        assert!(
            text.contains("asking x failed: nobody. Try: again\n"),
            "{text}"
        );
    }

    #[test]
    fn scripts_get_the_same_as_json() -> Result<(), crate::efs::device::DeviceError> {
        let json = as_json(&Device::parse("h:/d")?, &report());
        assert_eq!(json["ok"], false);
        assert_eq!(json["device"], "h:/d");
        assert_eq!(json["steps"][2]["remedy"], "another");
        assert_eq!(json["steps"][0]["ok"], true);
        Ok(())
    }
}
