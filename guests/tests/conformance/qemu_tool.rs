//! QEMU's `scripts/analyze-migration.py` reads what we write: two ends of ours could agree on the same error.
//!
//! ```text
//!   a stream in a file, of a guest that ran on meanwhile ─┐
//!   a mapped-ram file, stopped, and live                  ├─▶ -x: RAM, byte for byte; registers and devices by name
//!                                                         └─▶ without: the same state, and the description
//! ```
//!
//! The tool is not ours: it is found in ../corpora/qemu (`$NOTDIRTY_CORPORA`). Mapped-ram is read from QEMU 10.1 on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use notdirty::programs::sums;
use notdirty::{Cancel, LeaveOptions, Machine, MachineExit, Program, Road, RunLimits, Uri};

const PATIENCE: Duration = Duration::from_secs(60);

/// A directory that goes with the test.
struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Where the tool is, and whether it reads mapped-ram.
fn tool() -> Option<(PathBuf, bool)> {
    let tool = crate::upstream::corpora().join("qemu/scripts/analyze-migration.py");
    let text = fs::read_to_string(&tool).ok();
    let python = Command::new("python3").arg("-V").output().is_ok();
    let Some(text) = text.filter(|_| python) else {
        println!("SKIPPED QEMU's analyze-migration.py: no {}, or no python3", tool.display());
        return None;
    };
    Some((tool, text.contains("mapped_ram")))
}

/// What the tool prints.
fn printed(tool: &Path, args: &[&str], file: &Path, dir: &Path) -> String {
    let output =
        Command::new("python3").arg(tool).args(args).arg("-f").arg(file).current_dir(dir).output().expect("it runs");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Each block's bytes, each hart's registers and each device, as the tool sees them in that file.
fn compare(tool: &Path, file: &Path, machine: &Machine, dir: &Path) {
    let extracted = dir.join("extracted");
    fs::create_dir_all(&extracted).expect("a directory");
    printed(tool, &["-x"], file, &extracted);
    let mut not_zero = 0;
    for block in machine.memory().blocks() {
        let mut bytes = vec![0; block.size as usize];
        machine.read(block.base.get(), &mut bytes).expect("it is there");
        let theirs = fs::read(extracted.join(&block.name)).expect("the tool writes each block");
        let differ = bytes.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs);
        assert_eq!((theirs.len(), differ), (bytes.len(), None), "{}", block.name);
        not_zero += bytes.iter().filter(|byte| **byte != 0).count();
    }
    assert!(not_zero > 100_000, "{not_zero} bytes are not zero");
    let state = fs::read_to_string(extracted.join("state.json")).expect("the tool writes it");
    // The same without extracting.
    assert_eq!(printed(tool, &[], file, dir).trim(), state.trim());
    assert!(printed(tool, &["-d", "desc"], file, dir).contains("\"complete\": true"));
    let harts: Vec<_> = state.split("\"cpu (").skip(1).collect();
    assert_eq!(harts.len(), machine.harts());
    for (n, hart) in harts.iter().enumerate() {
        let cpu = machine.vcpu(n).expect("a hart").cpu();
        for (name, value) in [("pc", cpu.pc), ("sp", cpu.x[2]), ("s0", cpu.x[8]), ("t6", cpu.x[31])] {
            let line = format!("\"{name}\": \"0x{value:016x}");
            assert!(hart.contains(&line), "hart {n}: {line}");
        }
    }
    for part in ["uart", "clint", "exit", "clock", "console", "integrity", "ram"] {
        assert!(state.contains(&format!("\"{part} (")), "{part}");
    }
    let _ = fs::remove_dir_all(&extracted);
}

fn machine() -> Machine {
    let program = Program::Image(sums::sums(2, 19, 0));
    let machine = Machine::builder().ram_size(32 << 20).harts(2).framebuffer(64, 32).program(program).build();
    let machine = machine.expect("a machine");
    machine.memory().plug("dimm", 0x1_0000_0000, 0x10_0000, Default::default()).expect("it fits");
    machine.memory().write(0x1_0000_8000, b"dimm").expect("it is there");
    machine
}

/// Leaves by that road while it runs.
fn leave(machine: &mut Machine, road: impl FnOnce(&Cancel) -> Road + Send) {
    let migrator = machine.migrator();
    std::thread::scope(|scope| {
        let moving = scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            let (cancel, mut options) = (Cancel::default(), LeaveOptions::default());
            options.limits.downtime = Duration::from_secs(5);
            let migration = migrator.start(road(&cancel), cancel, options).expect("it begins");
            migration.wait(PATIENCE).expect("it ends").expect("well");
        });
        let until = Instant::now() + 2 * PATIENCE;
        let exit = machine.run(&RunLimits { max_insns: None, deadline: Some(until) });
        moving.join().expect("it has left");
        assert_eq!(exit, MachineExit::Migrated);
    });
}

#[test]
fn the_tool_of_qemu_extracts_our_ram_and_prints_our_registers() {
    let Some((tool, mapped)) = tool() else { return };
    let dir = Dir(std::env::temp_dir().join(format!("notdirty-{}-qemu-tool", std::process::id())));
    fs::create_dir_all(&dir.0).expect("a directory");
    let file = dir.0.join("file");
    let mut source = machine();
    leave(&mut source, |cancel| Road::connect(&Uri::File(file.clone(), None), 0, PATIENCE, cancel).expect("a file"));
    compare(&tool, &file, &source, &dir.0);
    // It is no less a machine for us.
    let uri = Uri::File(file.clone(), None);
    let (channel, _end) = uri.listen().and_then(|l| l.accept(None, PATIENCE, &Cancel::default())).expect("it is there");
    let mut target = Machine::builder().receive(channel).expect("a machine");
    target.write(sums::STOP, &[1]).expect("RAM");
    assert!(matches!(target.run_to_end(), MachineExit::Guest(exit) if exit.code == 0));
    if !mapped {
        println!("SKIPPED mapped-ram: {} does not read it (before QEMU 10.1)", tool.display());
        return;
    }
    let mut source = machine();
    leave(&mut source, |_| Road::File(file.clone(), false));
    compare(&tool, &file, &source, &dir.0);
    let mut stopped = machine();
    let soon = Instant::now() + Duration::from_millis(20);
    stopped.run(&RunLimits { max_insns: None, deadline: Some(soon) });
    stopped.snapshot(&file).expect("a snapshot");
    compare(&tool, &file, &stopped, &dir.0);
    println!("QEMU's analyze-migration.py: a stream, a live and a stopped mapped-ram file, byte for byte");
}
