//! The `notdirty` command: arguments → a machine → an exit code.
//!
//! ```text
//!   args.rs     what was asked for, or one line that says what is wrong with it
//!   mod.rs      runs it: stdin and stdout on the UART, limits, the reason of the end
//!   disas.rs    `disas`: a listing instead of a run
//!   plug.rs     `--plug`: RAM that comes while the guest runs
//!   signature.rs  `--signature`: what a test left, as the tools of architecture tests want it
//!   smc_test.rs `smc-test`: the self-modifying suite, with arguments of its own
//!   summary.rs  the counters, in words
//!   trace.rs    where `-d`, `--perf-map` and `--jitdump` go
//! ```
//!
//! Exit codes: the guest's own, where it gives one (codes above 255 become 255), or one of [`Code`].

mod args;
mod disas;
mod plug;
mod signature;
mod smc_test;
mod summary;
mod trace;

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use notdirty_tcg::cpu::CpuState;
use notdirty_tcg::{JitFlags, RunLimits};

use crate::devices::{Console, ExitBy};
use crate::load::Program;
use crate::machine::{BuildError, Machine, MachineExit};
use crate::programs;
use args::{Args, Command, Request};

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
            // A reader that has seen enough (`| head`) is no failure of ours.
            let _ = io::stdout().write_all(text.as_bytes());
            return Code::Success.into();
        }
        Err(what) => return complain(Code::Input, &format!("{what} (see notdirty --help)")),
    };
    run(args)
}

fn complain(code: Code, what: &str) -> ExitCode {
    eprintln!("notdirty: {what}");
    code.into()
}

/// What a file is to be loaded as.
fn program(file: PathBuf, load_addr: Option<u64>) -> Program {
    match load_addr {
        Some(load_addr) => Program::Raw { file, load_addr },
        None => Program::Elf(file),
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

fn run(args: Args) -> ExitCode {
    let (name, program, demo) = match &args.command {
        Command::Demo => ("the demo".to_owned(), Program::Image(programs::demo::demo()), true),
        Command::Run(file) => (file.display().to_string(), program(file.clone(), args.load_addr), false),
        Command::Disas(file, place) => return disas::list(file, place, &args),
    };
    let console = Console::new(Box::new(io::stdout()));
    let threads = console.flush_when_idle().and_then(|()| match demo {
        true => Ok(()),
        false => console.feed_from(io::stdin()),
    });
    if let Err(e) = threads {
        return complain(Code::Host, &format!("no thread for the console: {e}"));
    }
    let mut builder = Machine::builder()
        .ram_size(args.ram_size)
        .harts(args.harts)
        .engine(args.engine)
        .clock(args.clock)
        .icache(args.icache)
        .jit_flags(JitFlags { count: demo || args.stats, ..args.jit_flags })
        .console(console.clone())
        .program(program);
    if let Some(max) = args.max_ram {
        builder = builder.max_ram(max);
    }
    if let Some(entry) = args.entry {
        builder = builder.entry(entry);
    }
    if let Some((width, height)) = args.framebuffer {
        builder = builder.framebuffer(width, height);
    }
    match trace::sink(&args) {
        Ok(Some(sink)) => builder = builder.trace(sink),
        Ok(None) => {}
        Err(what) => return complain(Code::Input, &what),
    }
    let mut machine = match builder.build() {
        Ok(machine) => machine,
        Err(e) => return refuse(&name, &e),
    };

    let signature = args.signature.as_ref().map(|file| signature::range(&machine).map(|range| (file, range)));
    let signature = match signature.transpose() {
        Ok(signature) => signature,
        Err(what) => return complain(Code::Input, &format!("{name}: {what}")),
    };

    let start = Instant::now();
    // A deadline that no clock can show is none.
    let deadline = args.timeout.and_then(|t| start.checked_add(t));
    let (exit, plugged) = plug::run(&mut machine, &args.plugs, &RunLimits { max_insns: args.max_insns, deadline });
    let elapsed = start.elapsed();

    let place = || {
        let pc = machine.cpu().pc;
        machine.symbol(pc).map_or_else(|| format!("pc {pc:#x}"), |symbol| format!("pc {pc:#x} <{symbol}>"))
    };
    let mut code = match exit {
        MachineExit::Guest(exit) => {
            if exit.by == ExitBy::Reset {
                eprintln!("notdirty: {name}: the guest asked for a reset, which ends the run");
            } else if exit.code > 255 {
                eprintln!(
                    "notdirty: {name}: the guest's exit code {} does not fit a process, 255 stands for it",
                    exit.code
                );
            }
            ExitCode::from(exit.process_code())
        }
        MachineExit::InsnLimit => complain(
            Code::InsnLimit,
            &format!("{name}: stopped by --max-insns after {} instructions, {}", machine.stats().retired, place()),
        ),
        MachineExit::Deadline => complain(
            Code::Timeout,
            &format!("{name}: stopped by --timeout after {:.3} s, {}", elapsed.as_secs_f64(), place()),
        ),
        MachineExit::Hung => complain(Code::Hung, &format!("{name}: hung: {}, {}", hang(machine.cpu()), place())),
        // Nobody here has a handle to stop it, or logs with rings.
        MachineExit::RingFull => complain(Code::Host, &format!("{name}: a dirty ring is full, {}", place())),
        MachineExit::Stopped => complain(Code::Host, &format!("{name}: stopped from outside, {}", place())),
    };
    if let Some(e) = console.take_error() {
        code = complain(Code::Host, &format!("standard output: {e}"));
    }
    if let (Some(file), Some(screen)) = (&args.screenshot, machine.framebuffer()) {
        // Nobody runs any more, so nobody keeps us waiting.
        let written = screen.redraw(None).map_err(io::Error::other).and_then(|_| {
            let mut file = io::BufWriter::new(File::create(file)?);
            screen.write_ppm(&mut file)?;
            file.flush()
        });
        if let Err(e) = written {
            code = complain(Code::Host, &format!("{}: {e}", file.display()));
        }
    }
    if let Some((file, range)) = signature {
        let granularity = args.granularity.unwrap_or(signature::GRANULARITY);
        if let Err(e) = signature::write(&machine, range, granularity, file) {
            code = complain(Code::Host, &format!("{}: {e}", file.display()));
        }
    }
    let summary = (demo || args.stats).then(|| {
        let mut text = summary::text(&machine.stats(), elapsed, args.engine);
        for line in plugged {
            let _ = writeln!(text, "  {:<20} {line}", "RAM plugged");
        }
        text
    });
    match summary {
        Some(text) if demo => drop(io::stdout().write_all(text.as_bytes())),
        Some(text) => eprint!("{text}"),
        None => {}
    }
    code
}

/// Why a hart can never go on.
fn hang(cpu: &CpuState) -> String {
    let csr = &cpu.csr;
    if cpu.pc == csr.mtvec & !3 && csr.mepc == cpu.pc {
        return format!(
            "the trap handler at {:#x} traps itself (mcause {}, mtval {:#x})",
            cpu.pc, csr.mcause, csr.mtval
        );
    }
    "it waits (wfi) for an interrupt that cannot come".into()
}
