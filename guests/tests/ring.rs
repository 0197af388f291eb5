//! Dirty rings of a machine: a full one is an exit of the machine, and a sync lets it go on.

mod common;

use common::Elf;
use notdirty::{EngineKind, ExitBy, GuestExit, Machine, MachineExit, Program, RunLimits};
use notdirty_core::{DirtyClient, RamAddr, pin};
use notdirty_tcg::riscv::Op;
use notdirty_tcg::testkit::encode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const RAM: u64 = 0x8000_0000;
const PAGES: i32 = 500;

/// Stores to as many pages, from 1 MiB on, and ends well.
fn program() -> Program {
    let code = [
        encode(Op::Auipc, 5, 0, 0, 0x10_0000),
        encode(Op::Addi, 6, 0, 0, PAGES),
        encode(Op::Lui, 7, 0, 0, 0x1000),
        encode(Op::Sd, 0, 5, 6, 0),
        encode(Op::Add, 5, 5, 7, 0),
        encode(Op::Addi, 6, 6, 0, -1),
        encode(Op::Bne, 0, 6, 0, -12),
        encode(Op::Lui, 5, 0, 0, 0x10_0000),
        encode(Op::Lui, 6, 0, 0, 0x5000),
        encode(Op::Addi, 6, 6, 0, 0x555),
        encode(Op::Sw, 0, 5, 6, 0),
        encode(Op::Jal, 0, 0, 0, 0),
    ];
    let bytes = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    Program::ElfBytes("ring.elf".into(), Elf::new(RAM, bytes).bytes())
}

#[test]
fn a_full_ring_ends_the_run_until_the_log_is_synced() {
    for engine in [EngineKind::Jit, EngineKind::Interp] {
        let mut machine = Machine::builder().ram_size(8 << 20).engine(engine).program(program()).build().unwrap();
        let list = machine.space().ram().clone();
        let log = list.log(DirtyClient::MIGRATION).rings(128).start().unwrap();
        let limits = RunLimits { max_insns: Some(1 << 20), deadline: None };
        let mut found = 0;
        let ended = loop {
            match machine.run(&limits) {
                MachineExit::RingFull => {
                    let retired = machine.cpu().retired;
                    assert_eq!(machine.run(&limits), MachineExit::RingFull);
                    assert_eq!(machine.cpu().retired, retired, "{engine:?}: it ran on");
                    let pages = log.sync(None).unwrap().commit();
                    assert_eq!(pages.count(), 64);
                    found += pages.count();
                }
                exit => break exit,
            }
        };
        assert_eq!(ended, MachineExit::Guest(GuestExit { code: 0, by: ExitBy::Finisher }));
        found += log.sync(None).unwrap().commit().count();
        assert_eq!(found, PAGES as u64, "{engine:?}");
    }
}

/// Each hart stores to as many pages, 4 MiB apart from the other's, three times over; the last one to be done ends well.
fn program_of_two() -> Program {
    let code = [
        encode(Op::Addi, 29, 0, 0, 3),
        encode(Op::Slli, 28, 10, 0, 22),
        // Again:
        encode(Op::Auipc, 5, 0, 0, 0x10_0000),
        encode(Op::Add, 5, 5, 28, 0),
        encode(Op::Addi, 6, 0, 0, PAGES),
        encode(Op::Lui, 7, 0, 0, 0x1000),
        encode(Op::Sd, 0, 5, 29, 0),
        encode(Op::Sd, 0, 5, 6, 8),
        encode(Op::Add, 5, 5, 7, 0),
        encode(Op::Addi, 6, 6, 0, -1),
        encode(Op::Bne, 0, 6, 0, -16),
        encode(Op::Addi, 29, 29, 0, -1),
        encode(Op::Bne, 0, 29, 0, -40),
        // The first one to come here spins.
        encode(Op::Auipc, 5, 0, 0, 0x8000),
        encode(Op::Addi, 6, 0, 0, 1),
        encode(Op::AmoaddW, 7, 5, 6, 0),
        encode(Op::Beq, 0, 7, 0, 0),
        encode(Op::Lui, 5, 0, 0, 0x10_0000),
        encode(Op::Lui, 6, 0, 0, 0x5000),
        encode(Op::Addi, 6, 6, 0, 0x555),
        encode(Op::Sw, 0, 5, 6, 0),
        encode(Op::Jal, 0, 0, 0, 0),
    ];
    let bytes = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    Program::ElfBytes("rings.elf".into(), Elf::new(RAM, bytes).bytes())
}

/// Two harts, two rings; a thread syncs all the time and keeps a copy, so that the harts seldom have to leave.
#[test]
fn two_harts_lose_no_store_to_a_harvester_on_a_third_thread() {
    const SIZE: u64 = 16 << 20;
    let mut machine = Machine::builder().ram_size(SIZE).harts(2).program(program_of_two()).build().unwrap();
    let list = machine.space().ram().clone();
    let block = list.find(RamAddr::new(0), &pin()).unwrap().clone();
    let log = list.log(DirtyClient::MIGRATION).rings(128).start().unwrap();
    let mut copy = vec![0; SIZE as usize];
    block.read_bytes(0, &mut copy).unwrap();
    let ended = AtomicBool::new(false);
    std::thread::scope(|s| {
        let harvester = s.spawn(|| {
            let mut pages = 0;
            loop {
                let last = ended.load(Ordering::Acquire);
                let harvest = log.sync(Some(Duration::from_secs(60))).unwrap();
                for page in harvest.ranges().flat_map(|range| range.iter()) {
                    let off = page.base().get();
                    block.read_bytes(off, &mut copy[off as usize..][..4096]).unwrap();
                    pages += 1;
                }
                drop(harvest.commit());
                if last {
                    return pages;
                }
            }
        });
        let limits = RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_secs(60)) };
        let exit = loop {
            match machine.run(&limits) {
                MachineExit::RingFull => {
                    assert!(!harvester.is_finished(), "the harvester gave up");
                    std::thread::yield_now();
                }
                exit => break exit,
            }
        };
        ended.store(true, Ordering::Release);
        assert!(harvester.join().unwrap() >= 2 * PAGES);
        assert_eq!(exit, MachineExit::Guest(GuestExit { code: 0, by: ExitBy::Finisher }));
    });
    let mut now = vec![0; SIZE as usize];
    block.read_bytes(0, &mut now).unwrap();
    assert_eq!(copy.iter().zip(&now).position(|(a, b)| a != b), None, "a store was neither reported nor read");
}
