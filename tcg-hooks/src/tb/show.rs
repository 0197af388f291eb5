//! What listings and profilers ask of the TB cache.
use super::{TbCache, TbId};
use crate::ir::Region;
use crate::jit::code_cache::CodeOffset;
use crate::jit::{Backend, Host};

impl TbCache {
    /// The TB that was added last, with all that its emitter knows; it was made from this region.
    pub(crate) fn newest<'a>(&'a self, id: TbId, region: &'a Region) -> <Host as Backend>::Code<'a> {
        self.emitter.newest(self.get(id).map_or(0, |tb| tb.code.0), region)
    }

    /// What all TBs share: name, place, bytes.
    pub(crate) fn thunk_code(&self) -> Vec<(String, CodeOffset, Vec<u8>)> {
        let (all, end) = Host::shared_names(&self.shared);
        // TBs start on the next page.
        let first = end.next_multiple_of(4096);
        let ends = all.iter().skip(1).map(|n| n.1).chain([first]).collect::<Vec<_>>();
        let code = |(&(name, at), end): (&(&'static str, CodeOffset), CodeOffset)| {
            (format!("notdirty:{name}"), at, self.code.bytes(at, end.saturating_sub(at) as usize))
        };
        all.iter().zip(ends).map(code).collect()
    }
}
