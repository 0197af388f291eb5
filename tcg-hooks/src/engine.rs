//! Which engine runs the guest, and the switches of the JIT.

/// Who executes guest instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineKind {
    /// Translation to host code; the oracle runs what is left of an exact instruction limit.
    #[default]
    Jit,
    /// The oracle: one instruction at a time, slow and exact.
    Interp,
}

/// When the instruction stream sees what the guest wrote to it. Writers other than the hart itself (the host, DMA) are
/// seen at the next safe point in both models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ICache {
    /// By the very next instruction, as x86 promises.
    #[default]
    Coherent,
    /// By the next `fence.i`, as RISC-V promises; until then old or new bytes may run.
    FenceI,
}

/// One switch for each optimisation of the JIT, so that each can be measured by turning it off.
/// Every combination gives the same results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JitFlags {
    /// Translate regions with several blocks and inner loops; off: one basic block a TB.
    pub regions: bool,
    /// Keep the ten busiest guest registers in host registers; off: all in memory.
    pub pinned: bool,
    /// Let a region with loops choose which guest registers those are.
    pub remap: bool,
    /// Jump from TB to TB without asking the exec loop.
    pub chaining: bool,
    /// Probe the jump cache inline for indirect jumps.
    pub jump_cache: bool,
    /// Speculate that host = guest + constant, so that the TLB check is off the address chain.
    pub flat_addend: bool,
    /// Speculate right: the constant is that of the RAM the vCPU starts in. Off, no RAM has it, and every access is done
    /// as in RAM that was plugged or is seen twice.
    pub flat_ram: bool,
    /// Load from that RAM if the address is in it, while nothing but RAM is there; off: each load looks for an entry in the TLB.
    pub whole: bool,
    /// Let a probe compare the alignment, which costs nothing, but where a site is misaligned often; off: an addition
    /// for each access of more than a byte.
    pub aligned: bool,
    /// Test a store's line in emitted code only where it often lies beside code; off: at every store.
    pub beside: bool,
    /// Guess the addend of a load that often finds RAM with another than assumed: that of the load before it at this site, so that
    /// the address does not wait for the TLB entry; off: take the entry's own.
    pub guess: bool,
    /// Let several accesses off one base register share one TLB check.
    pub elide: bool,
    /// Check in front of a loop of one block what its accesses share; in tier 2.
    pub hoist: bool,
    /// And count its turns there.
    pub turns: bool,
    /// Make values where they are used, in copies of loops without checks.
    pub sink: bool,
    /// Give turns that are counted values of their own, which nothing outside may ask for.
    pub apart: bool,
    /// Check at a hot region's entry what its accesses share off bases that it leaves alone, and off constants.
    pub share: bool,
    /// Let a hot region end at the heads of loops that it has no room for, where regions of their own have them whole.
    pub heads: bool,
    /// Use all 16 Ki entries of the TLB; off: 256, as QEMU starts with.
    pub big_tlb: bool,
    /// Index the TLB by bits of the address as they are; off: by a hash that mixes the upper ones in.
    pub plain_index: bool,
    /// Reach the TLB from the register that also reaches the vCPU's state; off: load its place each time.
    pub base_register: bool,
    /// Keep the budget in a host register.
    pub budget_register: bool,
    /// Constant propagation and removal of dead writes.
    pub optimise: bool,
    /// Use BMI2 shifts where the host has them.
    pub bmi2: bool,
    /// Use fused multiplication and addition where the host has it; off: done in Rust.
    pub fma: bool,
    /// Count bits by an instruction where the host has it.
    pub popcnt: bool,
    /// While one thread stores, do AMOs and SCs without a locked instruction, and fences by nothing.
    pub one_writer: bool,
    /// Not an optimisation: count loads and stores, an addition a block, for `VcpuStats::accesses`.
    pub count: bool,
    /// Give the values of hot regions host registers.
    pub tier2: bool,
    /// Do so where samples say that a region is hot, not at once.
    pub samples: bool,
    /// Interpret cold code, and code that is patched again and again, instead of translating it.
    pub tier0: bool,
}

impl Default for JitFlags {
    fn default() -> Self {
        JitFlags {
            regions: true,
            pinned: true,
            remap: true,
            chaining: true,
            jump_cache: true,
            flat_addend: true,
            flat_ram: true,
            whole: true,
            aligned: true,
            beside: true,
            guess: true,
            elide: true,
            hoist: true,
            turns: true,
            sink: true,
            apart: true,
            share: true,
            heads: true,
            big_tlb: true,
            plain_index: true,
            base_register: true,
            budget_register: true,
            optimise: true,
            bmi2: true,
            fma: true,
            popcnt: true,
            one_writer: true,
            count: false,
            tier2: true,
            samples: true,
            tier0: true,
        }
    }
}

impl JitFlags {
    /// Names of the switches, in the order of [`JitFlags::set`]'s bits.
    pub const NAMES: [&str; 30] = [
        "regions",
        "pinned",
        "remap",
        "chaining",
        "jump_cache",
        "flat_addend",
        "flat_ram",
        "whole",
        "aligned",
        "beside",
        "guess",
        "elide",
        "hoist",
        "turns",
        "sink",
        "apart",
        "share",
        "heads",
        "big_tlb",
        "plain_index",
        "base_register",
        "budget_register",
        "optimise",
        "bmi2",
        "fma",
        "popcnt",
        "one_writer",
        "tier2",
        "samples",
        "tier0",
    ];

    /// Does tier 2 have a part? Its borders are the pinned registers.
    pub(crate) fn optimises_hot(&self) -> bool {
        self.tier2 && self.pinned
    }

    /// Turns one switch on or off by its name; `false` if there is no such switch.
    pub fn set(&mut self, name: &str, on: bool) -> bool {
        let place = match name {
            "regions" => &mut self.regions,
            "pinned" => &mut self.pinned,
            "remap" => &mut self.remap,
            "chaining" => &mut self.chaining,
            "jump_cache" => &mut self.jump_cache,
            "flat_addend" => &mut self.flat_addend,
            "flat_ram" => &mut self.flat_ram,
            "whole" => &mut self.whole,
            "aligned" => &mut self.aligned,
            "beside" => &mut self.beside,
            "guess" => &mut self.guess,
            "elide" => &mut self.elide,
            "hoist" => &mut self.hoist,
            "turns" => &mut self.turns,
            "sink" => &mut self.sink,
            "apart" => &mut self.apart,
            "share" => &mut self.share,
            "heads" => &mut self.heads,
            "big_tlb" => &mut self.big_tlb,
            "plain_index" => &mut self.plain_index,
            "base_register" => &mut self.base_register,
            "budget_register" => &mut self.budget_register,
            "optimise" => &mut self.optimise,
            "bmi2" => &mut self.bmi2,
            "fma" => &mut self.fma,
            "popcnt" => &mut self.popcnt,
            "one_writer" => &mut self.one_writer,
            "tier2" => &mut self.tier2,
            "samples" => &mut self.samples,
            "tier0" => &mut self.tier0,
            _ => return false,
        };
        *place = on;
        true
    }
}
