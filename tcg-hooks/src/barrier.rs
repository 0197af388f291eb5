//! The full barrier that Rust does for the guest: `fence`, `lr.rl`, and what stands for an atomic that emitted code has
//! in line.
//!
//! Interpreted code is too slow for a litmus test to notice that one is missing: the store buffer is empty long before the load.
//! So tests count them.

/// Stores before it are visible before loads behind it are done.
#[inline]
pub(crate) fn full() {
    #[cfg(test)]
    tests::DONE.set(tests::DONE.get() + 1);
    notdirty_core::fence_after_store();
}

#[cfg(test)]
mod tests {
    use crate::riscv::Op;
    use crate::testkit::board::{Board, Make};
    use crate::testkit::{Program, encode};
    use crate::{EngineKind, ICache, JitFlags, VcpuExit};
    use std::cell::Cell;

    thread_local!(pub(super) static DONE: Cell<u64> = const { Cell::new(0) });

    const RAM: u64 = 0x8000_0000;
    const LEN: u64 = 0x2000;

    /// The barriers of a run of `code`, and the instructions that tier 0 and the oracle did.
    fn barriers(engine: EngineKind, code: &[u32]) -> (u64, u64, u64) {
        let flags = JitFlags::default();
        let mut board = Board::new(Make { engine, flags, icache: ICache::Coherent, cache: 0, ram: (RAM, LEN) });
        let bytes: Vec<u8> = code.iter().chain(&[0]).flat_map(|word| word.to_le_bytes()).collect();
        let stop = RAM + 4 * code.len() as u64;
        board.load(&Program { seed: 0, base: RAM, bytes, entry: RAM, stop, max_insns: 1000 }, LEN);
        let before = DONE.get();
        assert_eq!(board.run(1 << 20), VcpuExit::Stopped);
        let stats = board.vcpu.stats();
        (DONE.get() - before, stats.tier0, stats.interpreted)
    }

    #[test]
    fn what_interprets_does_each_fence_that_orders_stores_before_loads() {
        let lr = |imm| [encode(Op::Auipc, 10, 0, 0, 0x1000), encode(Op::LrD, 11, 10, 0, imm)];
        let full: [&[u32]; 8] = [
            &[0x0330_000f], // rw, rw
            &[0x0120_000f], // w, r
            &[0x0ff0_000f], // iorw, iorw
            &[0x8120_000f], // fm 8, w, r
            &[0x1330_000f], // fm 1, rw, rw
            &[0xfff0_000f], // fm 15, iorw, iorw
            &lr(1),         // lr.d.rl
            &lr(3),
        ];
        let none: [&[u32]; 5] = [&[0x8330_000f], &[0x0110_000f], &[0x0230_000f], &[0x0310_000f], &lr(0)];
        for (codes, wanted) in [(&full[..], 1), (&none, 0)] {
            for code in codes {
                let (done, tier0, interpreted) = barriers(EngineKind::Jit, code);
                assert_eq!((done, interpreted), (wanted, 0), "tier 0, {code:x?}");
                assert!(tier0 > code.len() as u64);
                // It asks for more than it has to, with any fence.
                let (done, tier0, interpreted) = barriers(EngineKind::Interp, code);
                assert!(done >= wanted && tier0 == 0 && interpreted > code.len() as u64, "oracle, {code:x?}: {done}");
            }
        }
        // Two are two.
        assert_eq!(barriers(EngineKind::Jit, &[0x0330_000f, 0x8120_000f, 0x0110_000f]).0, 2);
    }
}
