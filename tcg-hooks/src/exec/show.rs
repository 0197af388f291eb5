//! What a trace sink is told of a new TB.
use super::core::Core;
use crate::listing;
use crate::tb::Found;
use crate::trace::{NewCode, TraceMask};
use crate::translate::Translator;

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
