//! A guest with memory to move: it fills its pages, then sleeps, or stores to random words of them for ever.

use dynasmrt::riscv::RiscvRelocation;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm};
use notdirty::programs::GuestImage;
use notdirty::smc_test::elf;

use super::rows::{Does, Move};

/// Where its pages are.
const WORK: i64 = 0x8400_0000;
const BASE: u64 = 0x8000_0000;
const WFI: u32 = 0x1050_0073;
/// The clock, of 10 MHz.
const MTIME: i64 = 0x0200_bff8;
/// Stores between two looks at it.
const BURST: u64 = 40;

/// An ELF file of it. Its MiB are a power of two.
///
/// # Errors
/// A sentence, if the assembler refuses it.
pub(super) fn guest(what: &Move) -> Result<Vec<u8>, String> {
    let mut ops = VecAssembler::<RiscvRelocation>::new(0);
    let bytes = what.mib << 20;
    let mask = (bytes - 8) as i64;
    // A hart that sleeps with all interrupts off would have hung.
    dynasm!(ops; .arch riscv64; .feature imzicsr
        ; li.12 t0, 8
        ; csrw mie, t0
        ; li.43 s0, WORK
        ; li.43 s1, bytes as i64
        ; mv t0, s0
        ; add t1, s0, s1
        ; li.32 t2, 0x1000
        ; page:
    );
    if what.zeros {
        dynasm!(ops; .arch riscv64; sd zero, [t0]);
    } else {
        dynasm!(ops; .arch riscv64; .feature im ; sd t0, [t0] ; addi t3, t0, 2040 ; sd t0, [t3]);
    }
    dynasm!(ops; .arch riscv64; .feature im
        ; add t0, t0, t2
        ; bltu t0, t1, <page
        ; li.43 s2, 0x1234_5678_9
        ; li.43 s3, mask
        ; li.43 s5, MTIME
        ; ld s6, [s5]
    );
    match what.does {
        Does::Sleeps => dynasm!(ops; .arch riscv64; .feature im ; sleep: ; .u32 WFI ; j <sleep),
        Does::Stores => dynasm!(ops; .arch riscv64; .feature im
            ; store:
            ; slli t0, s2, 13 ; xor s2, s2, t0 ; srli t0, s2, 7 ; xor s2, s2, t0 ; slli t0, s2, 17 ; xor s2, s2, t0
            ; and t0, s2, s3 ; add t0, t0, s0
            ; sd s4, [t0]
            ; addi s4, s4, 1
            ; j <store
        ),
        // A burst, then the clock is waited for: so the pace is the same whatever runs it.
        Does::Paces(stores) => dynasm!(ops; .arch riscv64; .feature im
            ; li.32 s7, (10_000_000 * BURST / stores.max(1)) as i32
            ; burst:
            ; li.12 t2, BURST as i32
            ; store:
            ; slli t0, s2, 13 ; xor s2, s2, t0 ; srli t0, s2, 7 ; xor s2, s2, t0 ; slli t0, s2, 17 ; xor s2, s2, t0
            ; and t0, s2, s3 ; add t0, t0, s0
            ; sd s4, [t0]
            ; addi s4, s4, 1
            ; addi t2, t2, -1
            ; bnez t2, <store
            ; add s6, s6, s7
            ; wait:
            ; ld t1, [s5]
            ; bltu t1, s6, <wait
            ; j <burst
        ),
    }
    let bytes = ops.finalize().map_err(|error| format!("the guest to move: {error}"))?;
    Ok(elf(&GuestImage { name: "migrate", load_addr: BASE, entry: BASE, bytes }))
}
