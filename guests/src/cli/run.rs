//! `run` and the demo: a machine with the UART on standard input and output, run to the end or a limit; and why it ended.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use notdirty_tcg::{JitFlags, RunLimits};

use super::args::{Args, Command};
use super::{
    Code, complain, disas, emptied, migrate, open_for_the_end, plug, program, refuse, refuse_migration, repeat, say,
};
use super::{rate, signals, signature, snapshot, summary, trace};
use crate::devices::{Console, ExitBy};
use crate::load::Program;
use crate::machine::{Machine, MachineExit};
use crate::programs;

/// Runs a guest, or lists its code.
pub(super) fn run(args: Args) -> ExitCode {
    let (name, program, demo) = match &args.command {
        Command::Demo => ("the demo".to_owned(), Program::Image(programs::demo::demo()), true),
        Command::Run(file) => (file.display().to_string(), program(file.clone(), args.load_addr), false),
        Command::Replay(file, _) => (file.display().to_string(), program(file.clone(), args.load_addr), false),
        Command::Snapshot(file) => (file.display().to_string(), program(file.clone(), args.load_addr), false),
        // The program is in it; this one is not loaded.
        Command::Restore(file) | Command::Info(file) | Command::Squash(file) => {
            (file.display().to_string(), program(file.clone(), None), false)
        }
        Command::Incoming(uri) => (uri.to_string(), program(PathBuf::new(), None), false),
        Command::Disas(file, place) => return disas::list(file, place, &args),
    };
    let console = Console::new(Box::new(io::stdout()));
    if let Err(e) = console.write_behind() {
        return complain(Code::Host, &format!("no thread for the console: {e}"));
    }
    let mut builder = Machine::builder()
        .ram_size(args.ram_size)
        .harts(args.harts)
        .engine(args.engine)
        .clock(args.clock)
        .icache(args.icache)
        .isa(args.isa)
        .semihosting(args.semihosting)
        .lrsc(args.lrsc)
        .jit_flags(JitFlags { count: demo || args.stats, ..args.jit_flags })
        .console(console.clone())
        .snapshot_options(super::options(&args))
        .program(program);
    if let Some(seed) = args.turns {
        // The way to a checkpoint is the same for all seeds, which stand for the runs from there.
        builder = builder.turns(if args.checkpoint_at.is_some() { 0 } else { seed });
    }
    if let Some(max) = args.max_ram {
        builder = builder.max_ram(max);
    }
    if let Some(entry) = args.entry {
        builder = builder.entry(entry);
    }
    if let Some((width, height)) = args.framebuffer {
        builder = builder.framebuffer(width, height);
    }
    let cut = trace::Cut::default();
    match trace::sink(&args, &cut) {
        Ok(Some(sink)) => builder = builder.trace(sink),
        Ok(None) => {}
        Err(what) => return complain(Code::Input, &what),
    }
    let mut hears = None;
    let built = match &args.command {
        Command::Restore(file) => builder.restore(file).map_err(|e| refuse_migration(&name, &e)),
        Command::Incoming(uri) => migrate::receive(builder, uri, &args).map(|(machine, more)| {
            hears = more;
            machine
        }),
        _ => builder.build().map_err(|e| refuse(&name, &e)),
    };
    let mut machine = match built {
        Ok(machine) => machine,
        Err(code) => return code,
    };
    if let Some(file) = &args.symbols
        && let Err(why) = machine.load_symbols(file)
    {
        return refuse(&name, &why);
    }
    // What it had yet to read is there before.
    if let Err(e) = if demo { Ok(()) } else { console.feed_from(io::stdin()) } {
        return complain(Code::Host, &format!("no thread for the console: {e}"));
    }

    let signature = match args.signature.as_ref().map(|_| signature::range(&machine)).transpose() {
        Ok(range) => range,
        Err(what) => return complain(Code::Input, &format!("{name}: {what}")),
    };

    if let Err(what) = plug::check(&machine, &args.plugs) {
        return complain(Code::Input, &what);
    }
    let open = |option, path: &Option<PathBuf>| path.as_ref().map(|path| open_for_the_end(option, path)).transpose();
    let (screenshot, signed) = match (open("--screenshot", &args.screenshot), open("--signature", &args.signature)) {
        (Ok(screenshot), Ok(signed)) => (screenshot, signed),
        (Err(what), _) | (_, Err(what)) => return complain(Code::Input, &what),
    };
    // Nobody hears the guest any more: it need not go on.
    let stop = machine.stop_handle().downgrade();
    let interrupted = match signals::watch(stop.clone(), &console) {
        Ok(interrupted) => interrupted,
        Err(e) => return complain(Code::Host, &format!("no signal handler: {e}")),
    };
    console.on_failure(move || stop.stop());

    let start = Instant::now();
    // A deadline that no clock can show is none.
    let deadline = args.timeout.and_then(|t| start.checked_add(t));
    if let Some(deadline) = deadline {
        console.give_up_at(deadline);
    }
    let _watchdog = match deadline.map(Watchdog::start).transpose() {
        Ok(watchdog) => watchdog,
        Err(e) => return complain(Code::Host, &format!("no thread for --timeout: {e}")),
    };
    let own = RunLimits { max_insns: args.max_insns, deadline };
    let mut files = snapshot::Files::new(&args, &name, start);
    let limits = files.limits(own);
    let mut moved = None;
    let (mut exit, plugged) = match &args.checkpoint_at {
        None if args.migrate.is_some() => {
            moved = match args.migrate.as_ref().map(|go| migrate::run(&mut machine, &args, go, &limits)).transpose() {
                Ok(outcome) => outcome,
                Err(code) => return code,
            };
            let ended = (MachineExit::Hung, plug::Plugged::default());
            moved.as_mut().map_or(ended, |moved| (moved.exit, std::mem::take(&mut moved.plugged)))
        }
        None => match &args.dirty_rate {
            Some(rate) => (rate::run(&mut machine, rate, &limits), plug::Plugged::default()),
            None => plug::run(&mut machine, &args.plugs, &limits),
        },
        Some(at) => match repeat::run(&mut machine, &args, at, &limits) {
            Ok(exit) => (exit, plug::Plugged::default()),
            Err(what) => return complain(Code::Input, &format!("{name}: {what}")),
        },
    };
    let elapsed = start.elapsed();
    if let Some(hears) = hears {
        hears.finish();
    }
    while files.is_time(&machine, exit) {
        if let Some(code) = files.write(&mut machine) {
            return code;
        }
        exit = machine.run(&files.limits(own));
    }

    let mut not_moved = false;
    if let (Some(go), Some(moved)) = (&args.migrate, &moved) {
        match (&moved.status, &moved.failed) {
            (Some(status), None) => return migrate::report(&name, go, status, args.json),
            (status, why) => {
                let why = why.as_deref().unwrap_or(migrate::RUN_ENDED);
                not_moved = migrate::not_moved(&name, go, status.as_ref(), why, args.json);
                if let Some(file) = args.take_back.as_ref().filter(|_| machine.is_gone()) {
                    return migrate::keep(&name, &mut machine, file);
                }
            }
        }
    }

    let place = || machine.place(machine.cpu().pc) + machine.cpu().privilege.beside_pc();
    // One hart's place is on the line that says why.
    let places = || if machine.harts() > 1 { format!("\n{}", machine.places().trim_end()) } else { String::new() };
    // A hart that is stuck in a trap while others go on.
    let crash = || {
        let report = machine.crashed().and_then(|crash| machine.crash_report(crash.hart));
        report.map_or_else(places, |report| format!("\n{}", report.trim_end()))
    };
    let broken = console.take_error();
    let ended = matches!(exit, MachineExit::Guest(_));
    let mut code = match exit {
        MachineExit::Guest(exit) => {
            if exit.by == ExitBy::Reset {
                say(&format!("{name}: the guest asked for a reset, which ends the run"));
            } else if exit.code > 255 {
                say(&format!("{name}: the guest's exit code {} does not fit a process, 255 stands for it", exit.code));
            }
            ExitCode::from(exit.process_code())
        }
        MachineExit::InsnLimit => complain(
            Code::InsnLimit,
            &format!(
                "{name}: stopped by --max-insns after {} instructions, {}{}",
                machine.stats().retired,
                place(),
                crash()
            ),
        ),
        MachineExit::Deadline => complain(
            Code::Timeout,
            &format!("{name}: stopped by --timeout after {:.3} s, {}{}", elapsed.as_secs_f64(), place(), crash()),
        ),
        MachineExit::Hung => complain(
            Code::Hung,
            &format!("{name}: hung: it waits (wfi) for an interrupt that cannot come, {}{}", place(), places()),
        ),
        MachineExit::Unhandled(crash) => {
            let report = machine.crash_report(crash.hart).unwrap_or_default();
            complain(Code::Hung, &format!("{name}: {}", report.trim_end()))
        }
        MachineExit::Stopped if broken.is_some() => Code::Host.into(),
        MachineExit::Pc { hart, .. } if matches!(args.command, Command::Replay(..)) => {
            let result = machine.vcpu(hart).map_or(0, |vcpu| vcpu.cpu().x[10]);
            say(&format!("{name}: it came back, a0 = {result:#x}, after {} instructions", machine.stats().retired));
            ExitCode::SUCCESS
        }
        // The command line asks for no other.
        MachineExit::Pc { pc, .. }
        | MachineExit::Trap { pc, .. }
        | MachineExit::Hook { pc, .. }
        | MachineExit::Code { pc, .. }
        | MachineExit::Watch { pc, .. } => complain(Code::Host, &format!("{name}: stopped at {pc:#x}, {}", place())),
        // Nobody here has logs with rings.
        // Why was said.
        MachineExit::MissingPage => {
            complain(Code::Host, &format!("{name}: a page of RAM does not come any more, {}", place()))
        }
        // It may run there, and does not here; why was said.
        MachineExit::Migrated => Code::Host.into(),
        MachineExit::RingFull => complain(Code::Host, &format!("{name}: a dirty ring is full, {}", place())),
        MachineExit::Stopped if interrupted.signal() != 0 => {
            let (name_of, elapsed) = (interrupted.name(), elapsed.as_secs_f64());
            say(&format!("{name}: stopped by {name_of} after {elapsed:.3} s, {}{}", place(), crash()));
            ExitCode::from(128 + interrupted.signal())
        }
        MachineExit::Stopped => complain(Code::Host, &format!("{name}: stopped from outside, {}", place())),
    };
    if let Some(e) = broken {
        code = complain(Code::Host, &format!("{name}: standard output: {e}"));
    }
    let well = matches!(exit, MachineExit::Guest(exit) if exit.process_code() == 0);
    if plugged.failed || well && not_moved {
        code = Code::Host.into();
    }
    let failed = |option: &str, path: &Option<PathBuf>, e: io::Error| {
        let path = path.as_deref().unwrap_or(Path::new(""));
        complain(Code::Host, &format!("{option} {}: {e}", path.display()))
    };
    if let (Some(file), Some(screen)) = (screenshot, machine.framebuffer()) {
        // No hart runs any more, so none keeps us waiting.
        let written = screen.redraw(None).map_err(io::Error::other).and_then(|_| {
            let mut file = emptied(file)?;
            screen.write_ppm(&mut file)?;
            file.flush()
        });
        if let Err(e) = written {
            code = failed("--screenshot", &args.screenshot, e);
        }
    }
    if let (Some(file), Some(range)) = (signed, signature) {
        let granularity = args.granularity.unwrap_or(signature::GRANULARITY);
        if let Err(e) = signature::write(&machine, range, granularity, file) {
            code = failed("--signature", &args.signature, e);
        }
    }
    // The last lines of a trace are written when its machine is gone.
    let summary = (demo || args.stats).then(|| summary_of(&machine, elapsed, &args, &plugged.done, ended));
    drop(machine);
    if let Some(what) = cut.get() {
        code = complain(Code::Host, what);
    }
    match summary {
        Some(text) if demo => {
            console.put(text.as_bytes());
            console.flush();
        }
        Some(text) => {
            let _ = io::stderr().write_all(text.as_bytes());
        }
        None => {}
    }
    code
}

fn summary_of(machine: &Machine, elapsed: Duration, args: &Args, plugged: &[String], ended: bool) -> String {
    let mut text = summary::text(&machine.stats(), elapsed, args.engine);
    // A guest that ended the run by a store has such a loop behind the store.
    for hart in (0..machine.harts()).filter(|&hart| !ended && machine.spins(hart)) {
        let Some(cpu) = machine.vcpu(hart).map(|vcpu| vcpu.cpu()) else { continue };
        let place = machine.place(cpu.pc) + cpu.privilege.beside_pc();
        let _ = writeln!(text, "  {:<20} hart {hart} jumps to itself with interrupts off, {place}", "for ever");
    }
    for line in plugged {
        let _ = writeln!(text, "  {:<20} {line}", "RAM plugged");
    }
    text
}

/// How much later than `--timeout` says the process ends at the latest, what it does behind the run included: a
/// vCPU may be held up by a trace that is not read, and so may a last message.
const PATIENCE: Duration = Duration::from_secs(5);

/// Ends the process, if it does not end by itself soon after the deadline.
struct Watchdog {
    _alive: Sender<()>,
}

impl Watchdog {
    fn start(deadline: Instant) -> io::Result<Watchdog> {
        let (alive, ended) = mpsc::channel::<()>();
        std::thread::Builder::new().name("timeout".into()).spawn(move || {
            let until = deadline.checked_add(PATIENCE).unwrap_or(deadline);
            let left = until.saturating_duration_since(Instant::now());
            if ended.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
                std::process::exit(Code::Timeout as i32);
            }
        })?;
        Ok(Watchdog { _alive: alive })
    }
}
