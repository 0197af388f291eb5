//! `.eh_frame` and `.debug_frame`: how each function's frame is undone, as a compiler writes it for C++ and for `-g`.
//!
//! The bytes are kept as they are in the file; what reads them is `machine/unwind.rs`, for a crash report.

/// One of the sections.
#[derive(Clone, Default)]
pub(crate) struct FrameSection {
    /// Where it is in memory, which its own pointers are relative to; `.debug_frame` is nowhere, and has none.
    pub address: u64,
    /// What it holds; empty if there is no such section.
    pub bytes: Vec<u8>,
}

/// Both of them.
#[derive(Clone, Default)]
pub struct FrameTables {
    pub(crate) eh_frame: FrameSection,
    pub(crate) debug_frame: FrameSection,
}

impl core::fmt::Debug for FrameTables {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let len = |section: &FrameSection| section.bytes.len();
        f.debug_struct("FrameTables")
            .field("eh_frame", &len(&self.eh_frame))
            .field("debug_frame", &len(&self.debug_frame))
            .finish_non_exhaustive()
    }
}
