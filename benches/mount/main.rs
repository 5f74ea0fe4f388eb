//! The measurements of a mount, beside what limits it, all in one run on one
//! machine. `scripts/bench` installs what this needs and starts it.
//!
//! | file | what |
//! |---|---|
//! | [`startup`] | time from command to ready and to gone |
//! | [`memory`] | RSS idle, and with the write window full |
//! | [`streams`] | sequential and random I/O beside its ceilings |
//! | [`tls`] | the same with TLS against without, and over several connections |
//! | [`workloads`] | round trips and wall time of what people do |
//! | [`kernel`] | the same beside what the kernel's client needs |
//! | [`options`] | what people wait for, with `nocto` and `writeback` |
//! | [`direct`] | the ceiling: our own client without FUSE |
//! | [`null`] | the ceiling: FUSE without a client |
//! | [`proxy`] | a network with a round-trip time |
//! | [`server`], [`mount`] | what is measured |
//! | [`report`] | the table and the JSON |
//! | [`host`] | the machine, signals, errors |

mod direct;
mod host;
mod kernel;
mod locks;
#[path = "../../tests/it/lookalike/mod.rs"]
mod lookalike;
mod memory;
mod mount;
mod null;
mod options;
mod proxy;
mod report;
mod server;
mod startup;
mod streams;
mod tls;
mod workloads;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use host::Result;
use report::Report;

/// Measures efs-fuse on a server of its own; prints a table, writes JSON.
#[derive(Debug, Parser)]
struct Arguments {
    /// Small sizes: a minute instead of ten
    #[arg(long)]
    quick: bool,
    /// Where the JSON goes
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
    /// Where the server keeps its files; a disk or a memory file system
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Do the work of the part "options" there, and count what the kernel's NFS client asks
    #[arg(long, value_name = "DIR", conflicts_with = "only")]
    on: Option<PathBuf>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
    /// Be the null file system, at this place (for this program's own use)
    #[arg(long, hide = true)]
    null: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Startup,
    Memory,
    Streams,
    Tls,
    Locks,
    Workloads,
    Kernel,
    Options,
}

/// Where the server's files go, and whether sizes are small.
type Measure = fn(&mut Report, &Path, bool) -> Result<()>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(mountpoint) = &arguments.null {
        return finish(null::serve(mountpoint));
    }
    finish(measure(&arguments))
}

fn finish(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("bench: {why}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<()> {
    host::heed_signals();
    host::sharpen_timers();
    let parent = arguments.dir.clone().unwrap_or_else(std::env::temp_dir);
    let mut report = Report::new(arguments.quick, &parent);
    if let Some(dir) = &arguments.on {
        return options::measure_on(&mut report, dir, arguments.quick);
    }
    let wanted = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let parts: [(Part, Measure); 8] = [
        (Part::Startup, startup::measure),
        (Part::Memory, memory::measure),
        (Part::Streams, streams::measure),
        (Part::Tls, tls::measure),
        (Part::Locks, locks::measure),
        (Part::Workloads, workloads::measure),
        (Part::Kernel, kernel::measure),
        (Part::Options, options::measure),
    ];
    for (part, measure) in parts {
        if wanted(part) {
            measure(&mut report, &parent, arguments.quick)?;
        }
    }
    report.write(&arguments.json)?;
    println!("\nwritten to {}", arguments.json.display());
    Ok(())
}
