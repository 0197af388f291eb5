//! IR to host code, and the memory that runs from. What is here does not know the host; a folder for each kind of host does.
//!
//! ```text
//!   exec, tb, tier0, listing ──▶ Context (context.rs) │ helpers.rs │ CodeCache (code_cache.rs) ◀── emitted code
//!             │                                                                                        ▲
//!             └──▶ Backend: emit a region, place it, link its exits ──▶ x86_64/ ───────────────────────┘
//! ```
//!
//! A back end for another host is a folder beside `x86_64`, a line at [`Host`], and what it says of the host's memory order: the probes
//! and the checks of lines in front of stores take it for granted that loads and stores stay in order (`mem.rs`, `again.rs` there).
pub mod code_cache;
pub(crate) mod context;
pub(crate) mod helpers;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;

use crate::engine::JitFlags;
use crate::guest::Mode;
use crate::ir::Region;
use crate::tb::SiteSet;
use code_cache::{CodeCache, CodeOffset};
use context::Context;

/// The back end of this host.
#[cfg(target_arch = "x86_64")]
pub(crate) type Host = x86_64::Emitter;

/// Bits of a site's or an exit's number that count within its TB.
pub(crate) const LOCAL_BITS: u32 = 11;

/// Entries of a TLB without `JitFlags::big_tlb`, as a logarithm.
pub(crate) const SMALL_BITS: u32 = 8;

/// Why emitted code was left; anything else is the number of an exit.
pub(crate) mod reason {
    /// Look up `cpu.pc`.
    pub(crate) const LOOKUP: u32 = 0xffff_fff0;
    /// A site asked to leave; `cpu.pc` is set.
    pub(crate) const SITE: u32 = 0xffff_fff1;
}

/// Emitted code's answers from [`SiteFn`].
pub(crate) mod answer {
    /// Go on behind the instruction.
    pub(crate) const CONTINUE: u64 = 0;
    /// Back to the exec loop; `cpu.pc` is set.
    pub(crate) const LEAVE: u64 = 1;
    /// On at `cpu.pc`, wherever that is: by the jump cache, or a look-up.
    pub(crate) const GO: u64 = 2;
}

/// Executes the instruction of a site in Rust.
pub(crate) type SiteFn = unsafe extern "C" fn(*mut Context, u32) -> u64;
/// Enters emitted code: context, address.
pub(crate) type EnterFn = unsafe extern "C" fn(*mut Context, *const u8) -> u32;

/// The RAM that code is emitted for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Flat {
    /// host - guest, wrapping.
    pub(crate) addend: u64,
    /// Its first address.
    pub(crate) start: u64,
}

/// The places of a way out of a TB: from the code's start on, or in the code cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way {
    /// What of its jump is patched; 0 if it is never linked (a poll, a refusal).
    pub(crate) field: CodeOffset,
    /// Where the jump goes while unlinked.
    pub(crate) stub: CodeOffset,
    /// The way through the jump cache; 0 if the jump may always be linked.
    pub(crate) via: CodeOffset,
    /// Is the guard of its link in front of the jump, instead of behind it? See `tb/chain.rs`.
    pub(crate) guarded: bool,
    /// Where it leads.
    pub(crate) pc: u64,
}

impl Way {
    /// The same of code that lies there.
    pub(crate) fn at(self, at: CodeOffset) -> Way {
        let there = |place: CodeOffset| if place == 0 { 0 } else { at + place };
        Way { field: there(self.field), stub: at + self.stub, via: there(self.via), ..self }
    }
}

/// Where a way out of a TB leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// To its stub, which leaves.
    Stub,
    /// By the jump cache, for good.
    Jump,
    /// To the entry of a TB.
    To(CodeOffset),
    /// The same, as long as the mappings have this number; else by the jump cache.
    While(CodeOffset, u32),
}

/// A way out of a TB, as emitted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EmittedExit {
    pub(crate) way: Way,
    /// A poll: instructions to give back.
    pub(crate) refund: u16,
}

/// What is known of a TB's vCPU and sites when it is emitted.
#[derive(Debug)]
pub(crate) struct Known {
    /// Loads need entries, as something may be asked about bytes.
    pub(crate) asked: bool,
    /// Does one thread store (WRITER-1)?
    pub(crate) alone: bool,
    /// Any other store to its set breaks a reservation: LR and SC are Rust's.
    pub(crate) strict: bool,
    /// The sites whose probes let misaligned accesses through.
    pub(crate) odd: SiteSet,
    /// Those with stores that often lie beside code.
    pub(crate) beside: SiteSet,
    /// Those that often find RAM with another addend.
    pub(crate) elsewhere: SiteSet,
    /// Those that load from pages outside the run.
    pub(crate) beside_run: SiteSet,
    /// Of those elsewhere, the ones that do not guess the addend.
    pub(crate) varied: SiteSet,
}

/// The regime that a TB is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Regime {
    pub(crate) mode: Mode,
    /// Are its addresses translated?
    pub(crate) translated: bool,
    /// Do they find RAM at the flat addend all the same?
    pub(crate) flat: bool,
    /// Pages that the code is on, from that of its entry on.
    pub(crate) pages: u64,
}

/// Emits TBs for one kind of host; keeps its memory from one to the next.
pub(crate) trait Backend: Sized {
    /// Where the pieces are that all TBs share.
    type Shared: Copy;
    /// The code of a TB, for a listing.
    type Code<'a>: HostCode
    where
        Self: 'a;

    /// The host's unit for floating point as Rust has it: all exceptions masked, to nearest even, no flags. The guest's after reset.
    const FLOAT_AT_REST: u32;

    /// `fflags` of what the unit noted.
    fn raised(unit: u32) -> u8;

    /// Assembles what all TBs share; it lies at the start of the code cache.
    fn assemble(flags: JitFlags, site: SiteFn) -> (Vec<u8>, Self::Shared);

    /// What enters emitted code, an [`EnterFn`].
    fn enter(shared: &Self::Shared) -> CodeOffset;

    /// Names and places of the shared pieces, by rising place, and their end.
    fn shared_names(shared: &Self::Shared) -> (Vec<(&'static str, CodeOffset)>, CodeOffset);

    /// One that takes little memory before it is used.
    fn boxed(flags: JitFlags, shared: Self::Shared, flat: Flat) -> Box<Self>;

    /// Is the addend of flat RAM a displacement?
    fn has_constant_addend(&self) -> bool;

    /// May accesses be checked ahead of a loop? Then all RAM at the flat addend needs no other.
    fn checks_ahead(&self) -> bool;

    /// What is emitted next goes by this.
    fn known(&mut self) -> &mut Known;

    /// What is emitted next is for this.
    fn enter_regime(&mut self, regime: Regime);

    /// Assembles a region as TB number `tb`; the code still lacks [`place`](Self::place). Its length, and the offset of its entry.
    fn emit(&mut self, region: &Region, tb: u32) -> (usize, u32);

    /// The code emitted last, for a place in the code cache.
    fn place(&mut self, at: CodeOffset) -> &[u8];

    /// Its ways out.
    fn exits(&self) -> &[EmittedExit];

    /// Its code for a listing; it was placed at `at`, and made from this region.
    fn newest<'a>(&'a self, at: CodeOffset, region: &'a Region) -> Self::Code<'a>;

    /// From here on a way that can be linked leads there.
    fn link(code: &mut CodeCache, shared: &Self::Shared, way: &Way, link: Link);

    /// Where it leads, for checks; `number` is what its stub says.
    ///
    /// # Errors
    /// What is wrong with it.
    #[cfg(any(test, feature = "testkit"))]
    fn linked(code: &CodeCache, way: &Way, number: u32) -> Result<Link, String>;
}

/// A line of a listing.
#[derive(Debug)]
pub(crate) struct HostLine {
    /// Offset in the TB.
    pub(crate) offset: u32,
    pub(crate) text: String,
}

/// The code of one TB as text.
pub(crate) trait HostCode {
    fn bytes(&self) -> &[u8];
    /// Guest address and offset of each block.
    fn blocks(&self) -> &[(u64, u32)];
    /// Offset of what is behind the blocks.
    fn cold(&self) -> u32;
    /// Which guest register lives in which host register.
    fn registers(&self) -> String;
    /// Its lines; `place` writes a guest address.
    fn lines(&self, place: &dyn Fn(u64) -> String) -> Vec<HostLine>;
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    pub(crate) fn files(folder: &Path, all: &mut Vec<(String, String)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files(&path, all);
            } else {
                all.push((path.to_string_lossy().into_owned(), std::fs::read_to_string(&path).unwrap()));
            }
        }
    }

    #[test]
    fn nothing_but_its_own_folder_knows_what_host_code_is_emitted_for() {
        let (mut all, src) = (Vec::new(), Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
        files(&src, &mut all);
        let knows = |text: &str| text.replace(concat!("arch::x86_64", "::"), "").contains(concat!("x86_64", "::"));
        let inside = |path: &str| path.contains("jit/x86_64/");
        assert!(all.iter().any(|(path, text)| inside(path) && text.contains("dynasm!")));
        let known: Vec<_> =
            all.iter().filter(|(path, text)| !inside(path) && knows(text)).map(|file| &file.0).collect();
        // The one line that chooses it.
        assert!(known.len() == 1 && known[0].ends_with("jit/mod.rs"), "{known:?}");
    }
}
