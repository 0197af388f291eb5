//! Snapshots that build on each other: what a restore of any of them gives, and what is refused.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use notdirty::{
    ClockKind, EngineKind, Machine, MachineBuilder, MigrationError, PlugSpec, Program, RunLimits, SnapshotChain,
    snapshot_info, squash,
};

const RAM: u64 = 0x8000_0000;
const SIZE: u64 = 32 << 20;

/// A directory that goes with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("notdirty-chain-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn builder() -> MachineBuilder {
    Machine::builder().ram_size(SIZE).clock(ClockKind::Insns)
}

/// Two instructions that go round, and RAM for the tests to write.
fn idle() -> Machine {
    builder().program(Program::Image(notdirty::programs::basic::spin())).build().unwrap()
}

fn ram(machine: &Machine) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    machine.read(RAM, &mut bytes).unwrap();
    bytes
}

fn up_to(machine: &mut Machine, count: u64) {
    machine.run(&RunLimits { max_insns: Some(count), deadline: None });
}

/// A chain of three files, and the machine behind the last: pages 1 to 3, 2 to 4, and zeros in page 3.
fn three(dir: &Dir) -> (Machine, SnapshotChain) {
    let mut machine = idle();
    machine.write(RAM + 0x10_0000, &[1; 3 * 4096]).unwrap();
    let (mut chain, first) = machine.snapshot_chain(dir.file("a")).unwrap();
    assert!(first.whole);
    machine.write(RAM + 0x10_1000, &[2; 3 * 4096]).unwrap();
    let second = machine.snapshot_next(&mut chain, dir.file("b")).unwrap();
    assert_eq!((second.whole, second.pages, second.zero_pages), (false, 3, 0));
    machine.write(RAM + 0x10_2000, &[0; 4096]).unwrap();
    let third = machine.snapshot_next(&mut chain, dir.file("c")).unwrap();
    assert_eq!((third.whole, third.pages, third.zero_pages), (false, 0, 1));
    (machine, chain)
}

fn refusal(file: &Path) -> String {
    match builder().restore(file) {
        Ok(_) => panic!("{} was restored", file.display()),
        Err(why) => why.to_string(),
    }
}

#[test]
fn any_file_of_a_chain_restores_the_machine_of_its_moment_which_goes_on_to_the_same_end() {
    let dir = Dir::new("moments");
    let program = notdirty::programs::sums::sums(1, 20, 300_000);
    let make = |engine| builder().engine(engine).program(Program::Image(program.clone())).build().unwrap();
    let mut whole = make(EngineKind::Jit);
    let end = whole.run_to_end();
    let total = whole.cpu().retired;
    let mut machine = make(EngineKind::Jit);
    up_to(&mut machine, total / 8);
    let (mut chain, _) = machine.snapshot_chain(dir.file("0")).unwrap();
    let mut moments = vec![(ram(&machine), machine.cpu().clone())];
    for n in 1..6 {
        up_to(&mut machine, total * (n + 1) / 8);
        let file = dir.file(&n.to_string());
        let written = machine.snapshot_next(&mut chain, &file).unwrap();
        assert!(!written.whole && written.pages + written.zero_pages < SIZE / 4096 / 4, "{written:?}");
        moments.push((ram(&machine), machine.cpu().clone()));
    }
    assert_eq!(chain.files().len(), 6);
    for (n, (bytes, cpu)) in moments.iter().enumerate() {
        let engine = [EngineKind::Jit, EngineKind::Interp][n % 2];
        let mut came = builder().engine(engine).restore(dir.file(&n.to_string())).unwrap();
        assert!(ram(&came) == *bytes && came.cpu() == cpu, "file {n}");
        assert_eq!(came.run_to_end(), end, "file {n}");
        assert_eq!(came.cpu(), whole.cpu(), "file {n}");
    }
    let one = dir.file("one");
    let squashed = squash(dir.file("5"), &one).unwrap();
    assert!(squashed.whole && snapshot_info(&one).unwrap().sections.iter().all(|section| section.name != "chain"));
    (0..6).for_each(|n| fs::remove_file(dir.file(&n.to_string())).unwrap());
    assert!(ram(&builder().restore(&one).unwrap()) == moments[5].0);
}

#[test]
fn a_page_that_became_zero_hides_the_one_before_it_and_takes_no_room() {
    let dir = Dir::new("zero");
    let (machine, _) = three(&dir);
    let came = builder().restore(dir.file("c")).unwrap();
    assert!(ram(&came) == ram(&machine));
    let blocks = |name: &str| fs::metadata(dir.file(name)).unwrap().blocks() * 512;
    assert!(blocks("c") < 128 << 10, "{}", blocks("c"));
}

#[test]
fn a_file_is_refused_if_what_it_builds_on_is_gone_or_another_file_or_no_file_at_all() {
    let dir = Dir::new("parents");
    three(&dir);
    let [a, b, c] = ["a", "b", "c"].map(|name| dir.file(name));
    let kept = fs::read(&b).unwrap();
    fs::remove_file(&b).unwrap();
    assert!(refusal(&c).contains("it is no file"));
    // Another of the same names.
    fs::copy(&a, &b).unwrap();
    assert!(refusal(&c).contains("it is another file than the one that was built on"));
    fs::copy(&c, &b).unwrap();
    assert!(refusal(&c).contains("another file"));
    // A pipe that nothing writes to.
    fs::remove_file(&b).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&b).status().unwrap().success());
    assert!(refusal(&c).contains("it is no file"));
    fs::remove_file(&b).unwrap();
    // A bit of a page.
    let mut spoiled = kept.clone();
    let at = spoiled.windows(4096).position(|page| page.iter().all(|&byte| byte == 2)).unwrap();
    spoiled[at] ^= 4;
    fs::write(&b, &spoiled).unwrap();
    assert!(refusal(&c).contains("mach-virt.ram") || refusal(&c).contains("checksum"), "{}", refusal(&c));
    fs::write(&b, &kept).unwrap();
    assert!(builder().restore(&c).is_ok());
}

#[test]
fn ram_that_comes_or_goes_begins_a_chain_anew() {
    let dir = Dir::new("plug");
    let mut machine =
        builder().max_ram(SIZE + (4 << 20)).program(Program::Image(notdirty::programs::basic::spin())).build().unwrap();
    let (mut chain, _) = machine.snapshot_chain(dir.file("a")).unwrap();
    let dimm = machine.memory().plug("dimm0", 0x1_0000_0000, 1 << 20, PlugSpec::default()).unwrap();
    machine.write(0x1_0000_0000, b"plugged").unwrap();
    let next = machine.snapshot_next(&mut chain, dir.file("b")).unwrap();
    assert!(next.whole && chain.files() == [dir.file("b")]);
    machine.write(0x1_0000_1000, b"later").unwrap();
    assert!(!machine.snapshot_next(&mut chain, dir.file("c")).unwrap().whole);
    fs::remove_file(dir.file("a")).unwrap();
    let came = builder().restore(dir.file("c")).unwrap();
    let mut bytes = [0; 7];
    came.read(0x1_0000_0000, &mut bytes).unwrap();
    assert_eq!(&bytes, b"plugged");
    drop(dimm);
}

#[test]
fn a_file_that_could_not_be_written_leaves_its_pages_to_the_next_one() {
    let dir = Dir::new("fails");
    let (mut machine, mut chain) = three(&dir);
    machine.write(RAM + 0x20_0000, b"not lost").unwrap();
    assert!(machine.snapshot_next(&mut chain, dir.file("nowhere/d")).is_err());
    // A file of the chain is not overwritten.
    let why = machine.snapshot_next(&mut chain, dir.file("b")).unwrap_err();
    assert!(why.to_string().contains("builds on this file"), "{why}");
    assert_eq!(machine.snapshot_next(&mut chain, dir.file("d")).unwrap().pages, 1);
    assert!(ram(&builder().restore(dir.file("d")).unwrap()) == ram(&machine));
    assert!(matches!(idle().snapshot_next(&mut chain, dir.file("e")), Err(MigrationError::OtherMachine)));
}

#[test]
fn a_checkpoint_is_written_and_the_machine_goes_on_where_it_was() {
    let dir = Dir::new("checkpoint");
    let mut machine = builder().program(Program::Image(notdirty::programs::sums::sums(1, 20, 50_000))).build().unwrap();
    up_to(&mut machine, 100_000);
    let checkpoint = machine.checkpoint().unwrap();
    let then = (ram(&machine), machine.cpu().clone());
    up_to(&mut machine, 200_000);
    let now = (ram(&machine), machine.cpu().clone());
    machine.snapshot_of(&checkpoint, dir.file("then")).unwrap();
    assert!((ram(&machine), machine.cpu().clone()) == now);
    let mut came = builder().restore(dir.file("then")).unwrap();
    assert!((ram(&came), came.cpu().clone()) == then);
    assert_eq!(came.run_to_end(), machine.run_to_end());
}

#[test]
fn the_command_line_writes_a_chain_and_squashes_it() {
    let dir = Dir::new("cli");
    let program = notdirty::programs::sums::sums(1, 20, 100_000);
    fs::write(dir.file("guest"), notdirty::smc_test::elf(&program)).unwrap();
    let run = |words: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_notdirty"));
        let out = command.current_dir(&dir.0).args(words).stdin(std::process::Stdio::null()).output().unwrap();
        let text = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        (out.status.code(), text)
    };
    let whole = run(&["run", "guest"]);
    let at = ["--at", "insns:100000", "--at", "insns:200000", "--at", "insns:300000"];
    let (code, text) = run(&[&["snapshot", "guest", "-o", "s"], &at[..]].concat());
    assert!(code == Some(0) && text.contains("s.2: after 300000 instructions, "), "{text}");
    assert_eq!(text.matches("written since the last file").count(), 2, "{text}");
    assert_eq!(run(&["restore", "s.1"]), whole);
    let (code, text) = run(&["squash", "s.2", "-o", "one", "--json"]);
    assert!(code == Some(0) && text.contains("\"whole\":true"), "{text}");
    fs::remove_file(dir.file("s")).unwrap();
    let (code, text) = run(&["restore", "s.2"]);
    assert!(code == Some(2) && text.contains("s, on which the snapshot builds: it is no file"), "{text}");
    assert_eq!(run(&["restore", "one"]), whole);
    assert!(run(&["info", "s.2"]).1.contains("parent_file"), "the file says on what it builds");
    // The guest ends before the last: its end is the command's.
    let (code, text) = run(&["snapshot", "guest", "-o", "t", "--at", "insns:1000", "--at", "insns:900000000"]);
    assert!(code == whole.0 && text.contains("t: after 1000 instructions"), "{text}");
}
