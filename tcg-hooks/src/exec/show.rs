//! What `-d` prints of a new TB.
use super::core::Core;
use crate::ir::Region;
use crate::tb::Found;
use crate::trace::TraceMask;

/// Traces a new TB, made from this region.
pub(super) fn tb(core: &mut Core, region: &Region, found: Found) {
    let mask = core.mask;
    if mask.has(TraceMask::TB) {
        let (pc, insns, blocks) = (region.pc, region.insns, region.blocks.len());
        let text = format!("TB {} at {pc:#x}{}: {insns} instructions, {blocks} blocks", found.id, core.symbol(pc));
        core.say(TraceMask::TB, &text);
    }
    if mask.has(TraceMask::IN_ASM) {
        core.say(TraceMask::IN_ASM, &region.to_string());
    }
    if mask.has(TraceMask::IR) {
        core.say(TraceMask::IR, region.to_string().trim_end());
    }
    if mask.has(TraceMask::OUT_ASM)
        && let Some(tbs) = &core.tbs
    {
        let mut text = format!("host code of {:#x} at {:#x}:", region.pc, tbs.code_address(found.id));
        for line in tbs.code_bytes(found.id).chunks(16) {
            text.push_str("\n   ");
            for byte in line {
                text.push_str(&format!(" {byte:02x}"));
            }
        }
        core.say(TraceMask::OUT_ASM, &text);
    }
}
