//! Dirty rings of a machine: a full one is an exit of the machine, and a sync lets it go on.

mod common;

use common::Elf;
use notdirty::{EngineKind, ExitBy, GuestExit, Machine, MachineExit, Program, RunLimits};
use notdirty_core::dirty::{Backend, DirtyLog, LogScope};
use notdirty_core::{DirtyClient, RingSource};
use notdirty_tcg::riscv::Op;
use notdirty_tcg::testkit::encode;

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
        let (space, list) = (machine.space().clone(), machine.space().ram().clone());
        let rings = Backend::Source(RingSource::new(&list, 128).unwrap());
        let log = DirtyLog::start(&list, DirtyClient::MIGRATION, LogScope::All, rings, space, None).unwrap();
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
