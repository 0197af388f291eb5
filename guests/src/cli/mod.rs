//! The `notdirty` command: arguments → a machine → an exit code.
//!
//! ```text
//!   args.rs     what was asked for, or one line that says what is wrong with it
//!   run.rs      runs it: stdin and stdout on the UART, limits, the reason of the end
//!   signals.rs  Ctrl-C stops the run
//!   logging.rs  what the crates say through `log`, on standard error
//!   disas.rs    `disas`: a listing instead of a run
//!   migrate.rs  `--migrate`, `--incoming`: a machine goes to another process
//!   postcopy.rs `--postcopy`: it runs there before its pages do
//!   progress.rs  how that goes: a bar on a terminal
//!   plug.rs     `--plug`: RAM that comes while the guest runs
//!   signature.rs  `--signature`: what a test left, as the tools of architecture tests want it
//!   snapshot.rs `snapshot`, `squash`, `info`: a machine in files
//!   smc_test.rs `smc-test`: the self-modifying suite, with arguments of its own
//!   summary.rs  the counters, in words
//!   trace.rs    where `-d`, `--perf-map` and `--jitdump` go
//! ```
//!
//! Exit codes: the guest's own, where it gives one (codes above 255 become 255), or one of [`Code`].

mod args;
mod disas;
mod logging;
mod migrate;
mod plug;
mod postcopy;
mod progress;
mod rate;
mod repeat;
mod run;
mod signals;
mod signature;
mod smc_test;
mod snapshot;
mod summary;
mod trace;

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::load::Program;
use crate::machine::{BuildError, MigrationError, SnapshotOptions};
use args::Request;
use notdirty_core::migration::{Fault, StreamError};

/// Exit codes of our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// All was well, or the guest says so.
    Success = 0,
    /// Bad usage or a bad input file.
    Input = 2,
    /// The guest can never go on: `wfi` and nothing can wake it, or a trap handler that traps itself.
    Hung = 3,
    /// `--timeout` passed.
    Timeout = 124,
    /// `--max-insns` was reached.
    InsnLimit = 125,
    /// The host failed us: no memory, no console.
    Host = 126,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> ExitCode {
        ExitCode::from(code as u8)
    }
}

/// The whole command: `args` are those after the program's name.
pub fn main(args: impl IntoIterator<Item = std::ffi::OsString>) -> ExitCode {
    let mut args = args.into_iter().peekable();
    if args.next_if(|first| first == "smc-test").is_some() {
        return smc_test::main(args);
    }
    let args = match args::parse(args) {
        Ok(Request::Run(args)) => *args,
        Ok(Request::Print(text)) => {
            return print(&text);
        }
        Err(what) => return complain(Code::Input, &format!("{what} (see notdirty --help)")),
    };
    logging::start(args.log.as_deref());
    if let args::Command::Info(file) = &args.command {
        return snapshot::info(file, args.json);
    }
    if let (args::Command::Squash(last), Some(to)) = (&args.command, &args.output) {
        return snapshot::squash_to(last, to, options(&args), args.json);
    }
    run::run(args)
}

/// How files of a machine are written and read.
fn options(args: &args::Args) -> SnapshotOptions {
    let mut options = SnapshotOptions::default();
    (options.direct_io, options.sync) = (args.direct_io, args.sync);
    options
}

/// Writes on standard output what was asked for. A reader that has seen enough (`| head`) is no failure of ours.
fn print(text: &str) -> ExitCode {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => complain(Code::Host, &format!("standard output: {e}")),
        _ => Code::Success.into(),
    }
}

/// A file that is written at the end of the run, while there is still time to give another name. What is in it stays until then.
fn open_for_the_end(option: &str, path: &Path) -> Result<File, String> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    file.map_err(|e| format!("{option} {}: {e}", path.display()))
}

/// Drops what was in such a file. A pipe or a terminal has no length.
fn emptied(file: File) -> io::Result<BufWriter<File>> {
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    Ok(BufWriter::new(file))
}

fn complain(code: Code, what: &str) -> ExitCode {
    say(what);
    code.into()
}

/// A line on standard error. If its reader has gone (`2>&1 | head`), the exit code says it alone.
fn say(what: &str) {
    let _ = io::stderr().write_all(format!("notdirty: {what}\n").as_bytes());
}

/// What a file is to be loaded as.
fn program(file: PathBuf, load_addr: Option<u64>) -> Program {
    match load_addr {
        Some(load_addr) => Program::Raw { file, load_addr },
        None => Program::File(file),
    }
}

/// Why a machine did not leave or come.
fn refuse_migration(name: &str, why: &MigrationError) -> ExitCode {
    match why {
        MigrationError::Build(why) => refuse(name, why),
        MigrationError::Input { .. } => complain(Code::Input, &why.to_string()),
        MigrationError::File { .. } => complain(Code::Host, &why.to_string()),
        MigrationError::Stream(StreamError { fault: Fault::Io(_), .. }) => {
            complain(Code::Host, &format!("{name}: {why}"))
        }
        _ => complain(Code::Input, &format!("{name}: {why}")),
    }
}

/// Why there is no machine.
fn refuse(name: &str, why: &BuildError) -> ExitCode {
    match why {
        BuildError::Load(_)
        | BuildError::RamSize { .. }
        | BuildError::MaxRam { .. }
        | BuildError::Harts { .. }
        | BuildError::ClockOfHarts { .. }
        | BuildError::Framebuffer(_) => complain(Code::Input, &why.to_string()),
        BuildError::Entry { .. } => complain(Code::Input, &format!("{name}: {why}")),
        _ => {
            // Here the host's own reason is not part of the text yet.
            let reason = std::error::Error::source(why).map_or_else(String::new, |source| format!(": {source}"));
            complain(Code::Host, &format!("{why}{reason}"))
        }
    }
}
