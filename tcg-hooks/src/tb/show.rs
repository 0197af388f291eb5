//! What listings and profilers ask of the TB cache.
use super::{TbCache, TbId};
use crate::ir::Region;
use crate::jit::code_cache::CodeOffset;
use crate::jit::x86_64::disasm::HostCode;

impl TbCache {
    /// The TB that was added last, with all that its emitter knows; it was made from this region.
    pub(crate) fn newest<'a>(&'a self, id: TbId, region: &'a Region) -> HostCode<'a> {
        self.emitter.newest(self.get(id).map_or(0, |tb| tb.code.0), region)
    }

    /// The thunks: name, place, bytes.
    pub(crate) fn thunk_code(&self) -> Vec<(&'static str, CodeOffset, Vec<u8>)> {
        let t = &self.thunks;
        let mut all = [
            ("notdirty:enter", t.enter),
            ("notdirty:miss", t.miss),
            ("notdirty:miss", t.miss_below),
            ("notdirty:leave", t.leave),
            ("notdirty:site", t.site),
            ("notdirty:jump", t.jump),
            ("notdirty:unlinked", t.unlinked),
            ("notdirty:via", t.via[0]),
            ("notdirty:again", t.again),
        ];
        all.sort_unstable_by_key(|a| a.1);
        // TBs start on the next page.
        let first = t.again_end.next_multiple_of(4096);
        let ends = all.iter().skip(1).map(|n| n.1).chain([first]).collect::<Vec<_>>();
        let code = |(&(name, at), end): (&(&'static str, CodeOffset), CodeOffset)| {
            (name, at, self.code.bytes(at, end.saturating_sub(at) as usize))
        };
        all.iter().zip(ends).map(code).collect()
    }
}
