//! AMOs, LR and SC: what they return, when they write, when they mark.

mod common;

use common::{DEV, RAM, Vm, va};
use notdirty_core::DirtyClient;
use notdirty_softmmu::MemSize::{B4, B8};
use notdirty_softmmu::raw::Request;
use notdirty_softmmu::{AccessKind, AmoOp, FaultCause, MemFault, MmuIdx, NoHooks, StoreEffect};

fn fault(kind: AccessKind, cause: FaultCause, at: u64) -> MemFault {
    MemFault { kind, cause, addr: va(at) }
}

#[test]
fn amos_return_the_old_value_and_mark() {
    let mut vm = Vm::new();
    vm.put(RAM, B8, 0xffff_ffff_0000_0005);
    let idx = MmuIdx::M;
    assert_eq!(vm.mmu.amo(&mut vm.tbs, idx, va(RAM), B4, AmoOp::Add, 3), Ok((5, StoreEffect::NONE)));
    assert_eq!(vm.load(RAM, B8), Ok(0xffff_ffff_0000_0008));
    vm.track(vm.page(0), DirtyClient::VGA);
    let _ = vm.mmu.serve(&mut vm.tbs);
    let (old, _) = vm.mmu.amo(&mut vm.tbs, idx, va(RAM), B8, AmoOp::Max, 1).unwrap();
    assert_eq!(old, 0xffff_ffff_0000_0008);
    assert_eq!(vm.load(RAM, B8), Ok(1));
    assert!(vm.is_set(vm.page(0), DirtyClient::VGA));
    let at = vm.at(0);
    vm.tbs.translate(&mut vm.mmu, at, 4);
    let (_, effect) = vm.mmu.amo(&mut vm.tbs, idx, va(RAM), B4, AmoOp::Swap, 9).unwrap();
    assert_eq!(effect.killed, 1);
    let odd = fault(AccessKind::Store, FaultCause::Misaligned, RAM + 2);
    assert_eq!(vm.mmu.amo(&mut vm.tbs, idx, va(RAM + 2), B4, AmoOp::Add, 1).unwrap_err(), odd);
    let (old, effect) = vm.mmu.amo(&mut vm.tbs, idx, va(DEV), B4, AmoOp::Add, 4).unwrap();
    assert_eq!((old, effect.mmio, vm.dev.log()), (0, true, vec![(0, B4, 4)]));
}

#[test]
fn sc_writes_only_what_lr_reserved() {
    let mut vm = Vm::new();
    let (idx, at) = (MmuIdx::M, va(RAM + 0x10));
    macro_rules! lr {
        ($at:expr, $size:expr) => {
            vm.mmu.lr(&mut vm.tbs, idx, $at, $size)
        };
    }
    macro_rules! sc {
        ($at:expr, $size:expr) => {
            vm.mmu.sc(&mut vm.tbs, idx, $at, $size, 7).map(|(ok, _)| ok)
        };
    }
    assert_eq!(sc!(at, B8), Ok(false), "nothing is reserved");
    assert_eq!(lr!(at, B8), Ok(0));
    assert_eq!(sc!(at, B8), Ok(true));
    assert_eq!(sc!(at, B8), Ok(false), "used up");
    assert_eq!(lr!(at, B8), Ok(7));
    assert_eq!(sc!(at, B4), Ok(false), "another width");
    lr!(at, B8).unwrap();
    assert_eq!(sc!(va(RAM + 0x18), B8), Ok(false), "another cell");
    lr!(at, B8).unwrap();
    let _ = vm.mmu.store(&mut vm.tbs, idx, at, B8, 8).unwrap();
    assert_eq!(sc!(at, B8), Ok(false), "the value changed");
    lr!(at, B8).unwrap();
    vm.mmu.clear_reservation();
    assert_eq!(sc!(at, B8), Ok(false));
    lr!(at, B8).unwrap();
    common::post_all(&vm.space, Request::FlushAll);
    let _ = vm.mmu.serve(&mut vm.tbs);
    assert_eq!(vm.mmu.sc(&mut vm.tbs, idx, at, B8, 7).map(|r| r.0), Ok(false), "the map may have changed");
    assert_eq!(vm.load(at.get(), B8), Ok(8));
    assert_eq!(vm.mmu.lr(&mut NoHooks, idx, va(DEV), B4), Err(fault(AccessKind::Load, FaultCause::Access, DEV)));
    let odd = fault(AccessKind::Load, FaultCause::Misaligned, RAM + 1);
    assert_eq!(vm.mmu.lr(&mut NoHooks, idx, va(RAM + 1), B4), Err(odd));
}

#[test]
fn sc_marks_only_if_it_wrote() {
    let mut vm = Vm::new();
    let (idx, at, page) = (MmuIdx::M, va(RAM), vm.page(0));
    vm.track(page, DirtyClient::MIGRATION);
    let _ = vm.mmu.sc(&mut vm.tbs, idx, at, B4, 1).unwrap();
    assert!(!vm.is_set(page, DirtyClient::MIGRATION));
    vm.mmu.lr(&mut vm.tbs, idx, at, B4).unwrap();
    assert!(vm.mmu.sc(&mut vm.tbs, idx, at, B4, 1).unwrap().0);
    assert!(vm.is_set(page, DirtyClient::MIGRATION));
}
