//! What a machine costs before it runs, whatever its RAM.

use notdirty::programs::sieve;
use notdirty::{ExitBy, GuestExit, Machine, MachineExit, Program};

const MACHINES: u64 = 64;

/// KiB of this process that are in memory, of no file or of one that has no name.
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0 kB");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    kib("RssAnon:") + kib("RssShmem:")
}

#[test]
fn a_machine_that_does_not_run_yet_takes_less_than_300_kib_whatever_its_ram() {
    for ram in [16 << 20, 4 << 30] {
        let build = || {
            let program = Program::Image(sieve::sieve(1000, 168));
            Machine::builder().ram_size(ram).program(program).build().expect("the machine is built")
        };
        let mut machines = vec![build()];
        let before = memory();
        machines.extend((0..MACHINES).map(|_| build()));
        let each = (memory() - before) / MACHINES;
        println!("{} MiB of RAM: {each} KiB a machine", ram >> 20);
        assert!(each < 300, "{each} KiB");
        for machine in &mut machines {
            assert_eq!(machine.run_to_end(), MachineExit::Guest(GuestExit { code: 0, by: ExitBy::Finisher }));
        }
        println!("{} KiB a machine that has run", (memory() - before) / MACHINES);
    }
}
