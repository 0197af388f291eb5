//! What a vCPU counts, and sums of it over harts.
use crate::tb::TbStats;
use notdirty_softmmu::SlowStats;
use std::ops::AddAssign;
use std::time::Duration;

/// Counters since the vCPU was made.
#[derive(Debug, Clone, Copy, Default)]
pub struct VcpuStats {
    /// Instructions retired in all runs. [`CpuState::retired`](crate::cpu::CpuState::retired) is since reset.
    pub retired: u64,
    /// TBs translated.
    pub tbs_translated: u64,
    /// TBs that died because their bytes were written.
    pub tbs_invalidated: u64,
    /// TBs that died for other reasons.
    pub tbs_evicted: u64,
    /// Everything about TBs.
    pub tb: TbStats,
    /// Time spent translating; where there were many translations, as some of them say.
    pub translate_time: Duration,
    /// Times that emitted code was entered.
    pub entries: u64,
    /// Traps and interrupts taken.
    pub traps: u64,
    /// Instructions executed by the oracle.
    pub interpreted: u64,
    /// Instructions executed by tier 0: cold code, and code that is patched again and again.
    pub tier0: u64,
    /// Loads, stores and atomics, with `JitFlags::count`; all but the slow path's were TLB hits. A block that is left by
    /// a trap is counted whole.
    pub accesses: Option<u64>,
    /// The slow path, by cause.
    pub tlb: SlowStats,
}

impl AddAssign for VcpuStats {
    /// Sums; of times that are maxima, the larger.
    fn add_assign(&mut self, other: VcpuStats) {
        let VcpuStats {
            retired,
            tbs_translated,
            tbs_invalidated,
            tbs_evicted,
            tb,
            translate_time,
            entries,
            traps,
            interpreted,
            tier0,
            accesses,
            tlb,
        } = other;
        self.retired += retired;
        self.tbs_translated += tbs_translated;
        self.tbs_invalidated += tbs_invalidated;
        self.tbs_evicted += tbs_evicted;
        self.tb += tb;
        self.translate_time += translate_time;
        self.entries += entries;
        self.traps += traps;
        self.interpreted += interpreted;
        self.tier0 += tier0;
        self.accesses = self.accesses.zip(accesses).map(|(a, b)| a + b);
        self.tlb += tlb;
    }
}
