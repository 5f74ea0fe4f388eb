//! Where `tracing` events go, and which of them.
//!
//! In the foreground they go to stderr, each line with the `efs-fuse:` prefix
//! that every line of ours has there; or to the journal, with their levels and
//! fields, if that is where stderr leads. A daemon has no stderr: it logs to the
//! file of `-o log=FILE`, else to the journal where there is one, else nowhere.
//!
//! `RUST_LOG` chooses what is logged (`tracing-subscriber` filter syntax);
//! without it warnings go to stderr and everything from `info` up elsewhere;
//! `-o debug` means `debug` for this program and `info` for its libraries.
//! [`set_filter`] changes the choice of a running daemon.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{EnvFilter, FilterFn};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use super::harmless::Harmless;
use super::logfile;
use crate::quoting;

/// The socket that is there if and only if journald listens.
const JOURNAL: &str = "/run/systemd/journal/socket";

/// Where log lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// stderr, one `efs-fuse:` line per event.
    Stderr,
    /// Appended to a file, with a time stamp.
    File(PathBuf),
    /// journald's native protocol, fields kept.
    Journal,
    /// Nothing is logged.
    Nowhere,
}

impl Destination {
    /// The rule of the module: `file` wins, then stderr if there is one, then
    /// the journal if it listens.
    pub fn choose(foreground: bool, file: Option<&Path>) -> Self {
        match file {
            Some(path) => Self::File(path.to_owned()),
            None if foreground && !stderr_is_journal() => Self::Stderr,
            None if Path::new(JOURNAL).exists() => Self::Journal,
            None => Self::Nowhere,
        }
    }
}

/// Whether systemd has connected stderr with the journal, as it tells services
/// by `JOURNAL_STREAM=device:inode` (systemd.exec(5)).
fn stderr_is_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else {
        return false;
    };
    let stderr = File::from(match io::stderr().as_fd().try_clone_to_owned() {
        Ok(stderr) => stderr,
        Err(_) => return false,
    });
    stderr
        .metadata()
        .is_ok_and(|about| stream.to_str() == Some(&format!("{}:{}", about.dev(), about.ino())))
}

/// The filter of the one subscriber that the process has.
static FILTER: OnceLock<reload::Handle<EnvFilter, tracing_subscriber::Registry>> = OnceLock::new();

/// Installs the subscriber of the process. To be called once, after the fork.
///
/// # Errors
/// The log file cannot be opened, the journal cannot be reached, or
/// `RUST_LOG` is malformed.
pub fn init(destination: &Destination, debug: bool) -> io::Result<()> {
    let filter = filter(
        std::env::var("RUST_LOG").ok().as_deref(),
        debug,
        destination,
    )?;
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry()
        .with(filter)
        .with(discreet())
        .with(Unwanted);
    let installed = match destination {
        Destination::Nowhere => return Ok(()),
        Destination::Journal => {
            let journal = tracing_journald::layer()?.with_syslog_identifier("efs-fuse".to_owned());
            registry.with(Harmless).with(journal).try_init()
        }
        Destination::Stderr => registry.with(lines(PrefixedLine, io::stderr)).try_init(),
        Destination::File(path) => {
            let file = logfile::open(path)?;
            registry
                .with(lines(StampedLine, Mutex::new(file)))
                .try_init()
        }
    };
    installed.map_err(io::Error::other)?;
    // A second subscriber was refused above.
    let _ = FILTER.set(handle);
    Ok(())
}

/// Changes what is logged from now on: a level (`error`, `warn`, `info`,
/// `debug`, `trace`), which is for this program, or directives in the syntax of
/// `RUST_LOG`. Returns the filter in force.
///
/// # Errors
/// Malformed, or this process logs nowhere.
pub fn set_filter(wanted: &str) -> io::Result<String> {
    let handle = FILTER.get().ok_or_else(nowhere)?;
    let directives = match wanted {
        "debug" | "trace" => format!("info,efs_fuse={wanted}"),
        other => other.to_owned(),
    };
    let malformed = |why: String| {
        let why = format!("{wanted:?} is no level and no filter: {why}");
        io::Error::new(io::ErrorKind::InvalidInput, why)
    };
    let filter = EnvFilter::try_new(&directives).map_err(|why| malformed(why.to_string()))?;
    // A word that is no level would be taken for the name of a module.
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if wanted.chars().all(word)
        && wanted
            .parse::<tracing::level_filters::LevelFilter>()
            .is_err()
    {
        return Err(malformed(
            "expected error, warn, info, debug or trace".to_owned(),
        ));
    }
    handle.reload(filter).map_err(io::Error::other)?;
    current_filter()
}

/// What is logged now, in the syntax of `RUST_LOG`.
///
/// # Errors
/// This process logs nowhere.
pub fn current_filter() -> io::Result<String> {
    let handle = FILTER.get().ok_or_else(nowhere)?;
    handle
        .with_current(ToString::to_string)
        .map_err(io::Error::other)
}

fn nowhere() -> io::Error {
    io::Error::other(
        "this mount has no log: it was mounted without -o log=FILE, and no journal listens",
    )
}

/// Libraries that see secrets (requests and answers with credentials, headers,
/// handshakes) and would write them into a debug log. However loud `RUST_LOG`
/// makes everything, of these only warnings are heard, and none that shows an error:
/// those of the SDK show the answer that could not be read, with the secret in it. What
/// has failed is said by who asked.
const SEE_SECRETS: [&str; 9] = [
    "aws_",
    "hyper",
    "h2",
    "rustls",
    "tokio_rustls",
    "tower",
    "http",
    "credentials",
    "sts",
];

fn discreet() -> FilterFn<impl Fn(&tracing::Metadata<'_>) -> bool> {
    FilterFn::new(is_discreet)
        // Nothing is cached that it says: it depends on nothing else.
        .with_max_level_hint(Level::TRACE)
}

/// Whether an event may be heard, whatever is in it.
pub fn is_discreet(event: &tracing::Metadata<'_>) -> bool {
    let sees_secrets = SEE_SECRETS
        .iter()
        .any(|start| event.target().starts_with(start));
    let shows_an_error = || {
        let mut names = event.fields().iter().map(|field| field.name());
        names.any(|name| ["err", "error"].contains(&name))
    };
    !sees_secrets || (*event.level() <= Level::WARN && !shows_an_error())
}

/// Leaves out what is no news: the answers to requests that the kernel does not have any
/// more.
///
/// The kernel tells of a signal to a caller by FUSE_INTERRUPT; fuser answers that it knows
/// no such thing, which comes too late if the request was answered meanwhile, or was read
/// by another thread's descriptor. The kernel says ENOENT then, and fuser an error, for
/// each process that is killed. ENOENT of a reply means nothing else, and nobody waits.
struct Unwanted;

impl<S: Subscriber> tracing_subscriber::Layer<S> for Unwanted {
    fn event_enabled(
        &self,
        event: &Event<'_>,
        _: tracing_subscriber::layer::Context<'_, S>,
    ) -> bool {
        let mut said = LateReply::default();
        // Its events come by the `log` crate, of which the target is a field.
        let meta = event.metadata();
        said.of_fuser = meta.target().starts_with("fuser");
        if said.of_fuser || meta.target() == "log" {
            event.record(&mut said);
        }
        !(said.of_fuser && said.late)
    }
}

#[derive(Default)]
struct LateReply {
    of_fuser: bool,
    late: bool,
}

impl tracing::field::Visit for LateReply {
    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        if field.name() == "log.target" {
            self.of_fuser = value.starts_with("fuser");
        }
    }

    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let text = format!("{value:?}");
            let code = format!("(os error {})", libc::ENOENT);
            self.late = text.starts_with("Failed to send FUSE reply") && text.ends_with(&code);
        }
    }
}

fn filter(rust_log: Option<&str>, debug: bool, destination: &Destination) -> io::Result<EnvFilter> {
    let rust_log = rust_log.filter(|text| !text.is_empty());
    let directives = match (debug, rust_log) {
        (_, Some(text)) => text,
        (true, None) => "info,efs_fuse=debug",
        (false, None) if *destination == Destination::Stderr => "warn",
        (false, None) => "info",
    };
    EnvFilter::try_new(directives).map_err(|why| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("RUST_LOG={directives}: {why}"),
        )
    })
}

fn lines<S, E, W>(format: E, writer: W) -> impl tracing_subscriber::Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    E: FormatEvent<S, tracing_subscriber::fmt::format::DefaultFields> + 'static,
    W: for<'a> MakeWriter<'a> + 'static,
{
    tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .event_format(format)
        .with_writer(writer)
}

/// `efs-fuse: warning: text key=value`: the form of every line on stderr.
struct PrefixedLine;

impl<S, N> FormatEvent<S, N> for PrefixedLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        out.write_str("efs-fuse: ")?;
        match level {
            Level::ERROR | Level::INFO => {}
            Level::WARN => out.write_str("warning: ")?,
            _ => write!(
                out,
                "{}: {}: ",
                level.as_str().to_lowercase(),
                event.metadata().target()
            )?,
        }
        fields(ctx, out, event)
    }
}

/// `2026-11-23T10:00:00.123Z WARN efs_fuse::rpc text key=value`.
struct StampedLine;

impl<S, N> FormatEvent<S, N> for StampedLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let meta = event.metadata();
        let stamp = utc(now.as_secs());
        let seconds = stamp.trim_end_matches('Z');
        write!(
            out,
            "{seconds}.{:03}Z {} {} ",
            now.subsec_millis(),
            meta.level(),
            meta.target()
        )?;
        fields(ctx, out, event)
    }
}

/// The event's fields and those of the spans it is in, on one line and without control
/// characters: a line break inside a message would look like a line of somebody else.
fn fields<S, N>(ctx: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    let mut text = String::new();
    ctx.field_format()
        .format_fields(Writer::new(&mut text), event)?;
    if let Some(scope) = ctx.event_scope() {
        for span in scope.from_root() {
            let extensions = span.extensions();
            if let Some(of_span) = extensions.get::<tracing_subscriber::fmt::FormattedFields<N>>()
                && !of_span.is_empty()
            {
                text.push(' ');
                text.push_str(of_span);
            }
        }
    }
    writeln!(out, "{}", quoting::plain(&text))
}

/// A UNIX time (seconds) as `2026-11-23T10:00:00Z`.
pub fn utc(seconds: u64) -> String {
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Civil from days, with eras of 400 years that begin on 1 March.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0
                .lock()
                .map_err(|_| io::ErrorKind::Other)?
                .write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(act: impl FnOnce()) -> String {
        logged_by(tracing_subscriber::registry(), act)
    }

    fn logged_by<S>(subscriber: S, act: impl FnOnce()) -> String
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let captured = Captured::default();
        let writer = captured.clone();
        let layer = lines(PrefixedLine, move || writer.clone());
        tracing::subscriber::with_default(subscriber.with(layer), act);
        let bytes = captured
            .0
            .lock()
            .map(|bytes| bytes.clone())
            .unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[test]
    fn every_stderr_line_begins_with_the_name_of_the_program() {
        let text = logged(|| {
            tracing::error!("connecting failed");
            tracing::warn!(zone = "b", "another zone");
            tracing::debug!("first\nsecond");
        });
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "efs-fuse: connecting failed");
        assert_eq!(lines[1], "efs-fuse: warning: another zone zone=\"b\"");
        assert!(lines[2].starts_with("efs-fuse: debug: "), "{text}");
        assert_eq!(lines.len(), 3, "{text}");
    }

    #[test]
    fn of_libraries_that_see_secrets_neither_errors_nor_what_is_below_warnings_are_heard() {
        let text = logged_by(tracing_subscriber::registry().with(discreet()), || {
            tracing::warn!(target: "aws_config::meta", error = "s3cret", "failed");
            tracing::warn!(target: "aws_config::imds", err = %"s3cret", "failed");
            tracing::error!(target: "aws_smithy_runtime", error = ?"s3cret", "failed");
            tracing::info!(target: "hyper::proto", "s3cret");
            tracing::warn!(target: "aws_config::imds", "no role");
            tracing::warn!(error = "no route", "ours");
        });
        assert_eq!(
            text,
            "efs-fuse: warning: no role\nefs-fuse: warning: ours error=\"no route\"\n"
        );
    }

    #[test]
    fn no_control_character_of_a_name_reaches_a_line() {
        let name = "a\nefs-fuse: forged\r\u{1b}[2J\u{9b}2J\u{202e}";
        let text = logged(|| {
            tracing::warn!("the name {name}");
            tracing::warn!(%name, "a name");
            tracing::info_span!("of", %name).in_scope(|| tracing::info!("in it"));
        });
        assert_eq!(text.lines().count(), 3, "{text}");
        let harmless = |c: char| c == '\n' || !(c.is_control() || c == '\u{202e}');
        assert!(text.chars().all(harmless), "{text:?}");
    }

    #[test]
    fn fields_of_the_spans_are_on_the_line() {
        let text =
            logged(|| tracing::info_span!("request", id = 7).in_scope(|| tracing::info!("slow")));
        assert_eq!(text, "efs-fuse: slow id=7\n");
    }

    #[test]
    fn a_log_file_wins_over_stderr_and_a_daemon_never_logs_to_stderr() {
        let file = Path::new("/var/log/x");
        assert_eq!(
            Destination::choose(true, Some(file)),
            Destination::File(file.to_owned())
        );
        assert_eq!(Destination::choose(true, None), Destination::Stderr);
        assert_ne!(Destination::choose(false, None), Destination::Stderr);
    }

    #[test]
    fn an_empty_rust_log_counts_as_unset_and_a_malformed_one_is_named() {
        let chosen = |rust_log, debug| {
            filter(rust_log, debug, &Destination::Nowhere).map(|filter| filter.to_string())
        };
        assert_eq!(chosen(Some(""), false).ok().as_deref(), Some("info"));
        assert!(chosen(None, true).is_ok_and(|text| text.contains("efs_fuse=debug")));
        assert_eq!(chosen(Some("trace"), true).ok().as_deref(), Some("trace"));
        let why = chosen(Some("a=b=c=d"), false)
            .err()
            .map(|why| why.to_string());
        assert!(why.is_some_and(|why| why.starts_with("RUST_LOG=")));
    }

    #[test]
    fn a_reply_that_comes_too_late_is_no_error_and_one_that_fails_is() {
        let captured = Captured::default();
        let writer = captured.clone();
        let layer = lines(PrefixedLine, move || writer.clone());
        let registry = tracing_subscriber::registry().with(Unwanted).with(layer);
        tracing::subscriber::with_default(registry, || {
            let of = |errno| io::Error::from_raw_os_error(errno);
            for errno in [libc::ENOENT, libc::EINVAL] {
                let err = of(errno);
                tracing::error!(target: "fuser::reply", "Failed to send FUSE reply: {err}");
                tracing::error!("Failed to send FUSE reply: {err}");
                // As the log crate's events come.
                tracing::error!(target: "log", { "log.target" = "fuser::reply" }, "Failed to send FUSE reply: {err}");
            }
            tracing::error!(target: "fuser::session", "{}", of(libc::ENOENT));
        });
        let bytes = captured.0.lock().map(|bytes| bytes.clone());
        let text = String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
        assert_eq!(text.lines().count(), 5, "{text}");
        assert_eq!(text.matches("(os error 2)").count(), 2, "{text}");
    }

    #[test]
    fn utc_knows_leap_years_and_the_turn_of_centuries() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_709_164_800), "2024-02-29T00:00:00Z");
        assert_eq!(utc(4_107_542_400), "2100-03-01T00:00:00Z");
    }
}
