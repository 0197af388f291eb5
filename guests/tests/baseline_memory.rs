//! What machines that lie on one baseline take of the host's memory. One test, as it counts all of the process.

use notdirty::programs::sieve;
use notdirty::{Machine, Program, RunLimits};

const MACHINES: u64 = 24;
const RAM: u64 = 0x8000_0000;
const SIZE: u64 = 32 << 20;
/// Of this much each page has something.
const FULL: u64 = 16 << 20;

/// KiB of this process that are its own.
fn own() -> u64 {
    kib("Anonymous:")
}

fn kib(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn machines_on_one_baseline_take_what_they_write_and_not_what_they_read() {
    let program = Program::Image(sieve::sieve(1000, 168));
    let mut first = Machine::builder().ram_size(SIZE).program(program).build().unwrap();
    let bytes: Vec<u8> = (0..FULL).map(|n| (n >> 6) as u8 | 1).collect();
    first.write(RAM + (8 << 20), &bytes).unwrap();
    drop(bytes);
    let node = first.checkpoint().unwrap();
    let alone = own();
    let baseline = first.share(&node).unwrap();
    let shared = own();
    assert!(shared + 15_000 < alone, "the image of the first is no longer its own: {alone} KiB, {shared} KiB");
    assert!((FULL..FULL + (1 << 20)).contains(&baseline.bytes()));

    let mut machines: Vec<Machine> =
        (0..MACHINES).map(|_| Machine::builder().build_on(&baseline).expect("the machine is built")).collect();
    let idle = (own() - shared) / MACHINES;
    for (n, machine) in machines.iter_mut().enumerate() {
        // All of both copies is read, and 16 pages are written.
        machine.verify(&node).unwrap();
        for page in 0..16 {
            machine.write(RAM + (9 << 20) + page * 4096, &[n as u8]).unwrap();
        }
        machine.run(&RunLimits { max_insns: Some(20_000), deadline: None });
        machine.restore(&node).unwrap();
        machine.verify(&node).unwrap();
    }
    let each = (own() - shared) / MACHINES;
    println!("{idle} KiB a machine that has not run, {each} KiB one that has, of {} MiB", SIZE >> 20);
    let files = kib("Pss_Shmem:");
    println!("{files} KiB in files, for all");
    // Translations lie in files, too.
    assert!(files < 2 * (FULL >> 10) + 500 * (MACHINES + 1), "{files} KiB in files: what is zero fills no hole");
    assert!(idle < 400 && each < 1500, "{idle} KiB, {each} KiB");
}
