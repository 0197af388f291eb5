//! Guests that store: machines in this process, run on the thread that is timed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notdirty::{GuestExit, Machine, MachineExit, Program, RAM_BASE, RunLimits};
use notdirty_core::{DirtyLog, PageRange, RamAddr};
use notdirty_softmmu::AddressSpace;

use super::clock::{thread_nanos, wall_nanos};
use super::row::Sample;
use crate::stats::median;

/// 128 MiB: what the guest programs of the first table need.
const RAM: u64 = 128 << 20;

/// `again: sd t1, (t0); addi t1, t1, 1; j again`, behind `auipc t0, 0x100`.
const SPIN: [u32; 4] = [0x0010_0297, 0x0062_b023, 0x0013_0313, 0xff9f_f06f];

/// The file of a guest program.
pub fn program(name: &str) -> Result<PathBuf, String> {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guests/programs/build/full");
    let file = programs.join(name).with_extension("elf");
    match file.is_file() {
        true => Ok(file),
        false => Err(format!("{name}.elf is not there: make guests, which needs a cross compiler")),
    }
}

/// A machine with a guest program of the first table.
pub struct Stores {
    machine: Machine,
    program: Program,
}

impl Stores {
    /// Built, and run once, so that its RAM is there.
    pub fn new(name: &str) -> Result<Stores, String> {
        let file = program(name)?;
        let machine = Machine::builder().ram_size(RAM).build().map_err(|e| e.to_string())?;
        let mut guest = Stores { machine, program: Program::Elf(file) };
        guest.run(None)?;
        Ok(guest)
    }

    /// Where its RAM and its vCPU are.
    pub fn space(&self) -> Arc<AddressSpace> {
        self.machine.space().clone()
    }

    /// What moves it elsewhere.
    pub fn migrator(&self) -> notdirty::Migrator {
        self.machine.migrator()
    }

    /// Runs the program from its start to its end, syncing `log` when a ring is full; the CPU time of that.
    pub fn run(&mut self, log: Option<&DirtyLog>) -> Result<Sample, String> {
        let entry = self.machine.load(&self.program).map_err(|e| e.to_string())?;
        self.machine.start_at(entry).map_err(|e| e.to_string())?;
        let start = thread_nanos();
        loop {
            match (self.machine.run(&RunLimits { max_insns: None, deadline: None }), log) {
                (MachineExit::Guest(GuestExit { code: 0, .. }), _) => break,
                (MachineExit::RingFull, Some(log)) => drop(log.sync(None).map_err(|e| e.to_string())?.commit()),
                (exit, _) => return Err(format!("the guest ended with {exit:?}")),
            }
        }
        Ok(Sample { total: (thread_nanos() - start) as f64, units: 1.0, check: 0 })
    }

    /// Posts a re-arm of what `pages` makes of all RAM, and times how the vCPU serves it: just after the guest has stored to
    /// pages all over RAM, or for a `second` time at once, when the caches have what it takes.
    pub fn rearm(&mut self, pages: fn(PageRange) -> Vec<PageRange>, second: bool) -> Result<Sample, String> {
        self.run(None)?;
        let space = self.space();
        let pages = pages(PageRange::of_bytes(RamAddr::new(0), RAM));
        let mut spent = 0;
        for _ in 0..1 + u32::from(second) {
            space.ram().rearm(&pages, Some(Duration::from_secs(10))).map_err(|e| e.to_string())?;
            let vcpu = self.machine.vcpu_mut(0).ok_or("no vCPU")?;
            let start = thread_nanos();
            vcpu.serve();
            spent = thread_nanos() - start;
        }
        Ok(Sample { total: spent as f64, units: 1.0, check: 0 })
    }
}

/// A machine whose guest stores for ever.
pub struct Spinning {
    machine: Machine,
}

impl Spinning {
    /// Not running yet.
    pub fn new() -> Result<Spinning, String> {
        let mut machine = Machine::builder().ram_size(RAM).build().map_err(|e| e.to_string())?;
        let code: Vec<u8> = SPIN.iter().flat_map(|word| word.to_le_bytes()).collect();
        machine.write(RAM_BASE, &code).map_err(|e| e.to_string())?;
        machine.start_at(RAM_BASE).map_err(|e| e.to_string())?;
        Ok(Spinning { machine })
    }

    /// Does `work` while the guest runs.
    fn while_it_runs<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let stop = self.machine.stop_handle();
        std::thread::scope(|scope| {
            scope.spawn(|| self.machine.run(&RunLimits { max_insns: None, deadline: None }));
            let result = work();
            stop.stop();
            result
        })
    }

    /// Re-arms the page that the guest stores to, 64 times; the median of how long the answer takes.
    pub fn answers(&mut self) -> Result<Sample, String> {
        let (space, memory) = (self.machine.space().clone(), self.machine.memory());
        let count = move || {
            let mut bytes = [0; 8];
            memory.read(RAM_BASE + (1 << 20), &mut bytes).ok();
            u64::from_le_bytes(bytes)
        };
        let page = PageRange::of_bytes(RamAddr::new(1 << 20), 1);
        let answers = self.while_it_runs(|| {
            let one = || {
                // A vCPU that is not running has answered already. This one is, and stores.
                let before = count();
                while count() == before {
                    std::thread::yield_now();
                }
                let start = wall_nanos();
                let answered = space.ram().rearm(&[page], Some(Duration::from_secs(10)));
                answered.is_ok().then(|| (wall_nanos() - start) as f64)
            };
            (0..64).map(|_| one()).collect::<Option<Vec<f64>>>()
        });
        let total = answers.as_deref().and_then(median).ok_or("the vCPU did not answer")?;
        Ok(Sample { total, units: 1.0, check: 0 })
    }
}
