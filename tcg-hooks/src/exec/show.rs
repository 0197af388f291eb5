//! What a trace sink is told of: new TBs, traps, writes that are ignored.
use super::core::Core;
use crate::cpu::CpuState;
use crate::guest::{Insn, Mode, Trap, hart};
use crate::listing;
use crate::tb::Found;
use crate::trace::{NewCode, TraceMask};
use crate::translate::Translator;
use notdirty_softmmu::GuestPhys;

/// Traces a new TB, made from the translator's region.
pub(super) fn tb(core: &mut Core, translator: &Translator, found: Found) {
    let mask = core.mask;
    if mask == TraceMask::none() {
        return;
    }
    let region = &translator.region;
    let pc = region.pc;
    if mask.has(TraceMask::TB) {
        let (insns, blocks) = (region.insns, region.blocks.len());
        let (id, symbol, mode) = (found.id, core.symbol(pc), translator.mode.beside_pc());
        let text = format!("TB {id} at {pc:#x}{symbol}{mode}: {insns} instructions, {blocks} blocks");
        core.say(TraceMask::TB, &text);
    }
    let Core { tbs: Some(tbs), trace: Some(trace), .. } = core else { return };
    if mask.has(TraceMask::IN_ASM) {
        let text = listing::in_asm(translator, &|pc| trace.symbol(pc));
        trace.line(TraceMask::IN_ASM, &text);
    }
    if mask.has(TraceMask::IR) {
        trace.line(TraceMask::IR, region.to_string().trim_end());
    }
    let address = tbs.code_address(found.id);
    if mask.has(TraceMask::OUT_ASM) {
        let code = tbs.newest(found.id, region);
        let text = listing::out_asm(pc, &code, address, &|pc| trace.symbol(pc));
        trace.line(TraceMask::OUT_ASM, &text);
    }
    if mask.has(TraceMask::CODE) {
        if tbs.stats.translated == 1 {
            for (name, at, bytes) in tbs.thunk_code() {
                trace.code(&NewCode { name: &name, address: tbs.address(at) as u64, bytes: &bytes });
            }
        }
        let name = trace.symbol(pc).map_or_else(|| format!("tb:{pc:#x}"), |symbol| format!("tb:{symbol}"));
        let bytes = tbs.code_bytes(found.id);
        trace.code(&NewCode { name: &name, address, bytes: &bytes });
    }
}

impl Core {
    /// The lines of a trap that was taken.
    #[cold]
    #[inline(never)]
    pub(super) fn trace_trap(&mut self, cpu: &CpuState, trap: &Trap, epc: u64, from: Mode) {
        if self.mask.has(TraceMask::INT) {
            let (Trap { cause, tval }, name, to) = (trap, trap.name(), cpu.pc);
            let (at, by) = (self.symbol(epc) + from.beside_pc(), self.symbol(to) + cpu.privilege.beside_pc());
            let text = format!("trap: {name}, cause {cause:#x} tval {tval:#x} at {epc:#x}{at}, to {to:#x}{by}");
            self.say(TraceMask::INT, &text);
        }
        if let (Some(kind), true) = (hart::access(trap), self.mask.has(TraceMask::MMU)) {
            let (name, at) = (trap.name(), self.symbol(epc) + from.beside_pc());
            let space = self.live().0.space().clone();
            let word = |at: u64| {
                let mut bytes = [0; 8];
                space.read(GuestPhys::new(at), &mut bytes).ok().map(|()| u64::from_le_bytes(bytes))
            };
            let why = cpu.why_not(from, trap.tval, kind, word).map_or_else(String::new, |why| format!(" ({why})"));
            let text = format!("{name} at {:#x} by pc {epc:#x}{at}{why}", trap.tval);
            self.say(TraceMask::MMU, &text);
        }
    }

    /// What the next instruction would write to the register of page tables and does not, if that is traced.
    #[inline]
    pub(crate) fn refused(&self, cpu: &CpuState, insn: &Insn) -> Option<u64> {
        if self.mask.has(TraceMask::MMU) { hart::refused(cpu, insn) } else { None }
    }

    /// The line of such a write.
    #[cold]
    pub(crate) fn trace_refused(&mut self, cpu: &CpuState, pc: u64, value: u64) {
        let text = hart::refusal(cpu, (pc, &self.symbol(pc)), value);
        self.say(TraceMask::MMU, &text);
    }
}
