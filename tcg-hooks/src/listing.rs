//! A region as the guest wrote it, as IR, and as host code: what `notdirty disas` and `-d` print.
//!
//! ```text
//!   region(space, pc, flags) ── translated as a vCPU would, into no code cache: nothing can run it ──▶ Listing
//!   b0: 80000010 <main+0x4>, 3 instructions, polls        one section a block: guest, IR, host
//! ```
//!
//! Addresses of host code are offsets in the TB, so that a listing is the same from run to run.
use crate::engine::JitFlags;
use crate::exec::flat_of;
use crate::guest::{flow, line};
use crate::ir::{Block, Region};
use crate::jit::context::PREFIX;
use crate::jit::helpers::execute_site;
use crate::jit::{Backend, Flat, Host, HostCode};
use crate::tier2::{self, Ahead, Learned};
use crate::translate::{Limits, MAX_INSNS, Source, Translator, WARM_INSNS};
use notdirty_core::RamAddr;
use notdirty_softmmu::{AccessKind, AddressSpace, CodeInvalidator, GuestVirt, Hooks, MemFault, MmuIdx, SoftMmu};
use std::fmt;
use std::io;
use std::sync::Arc;

/// Names for guest addresses: `name+0x12`.
pub type Symbols<'a> = &'a dyn Fn(u64) -> Option<String>;

/// Why there is no listing.
#[derive(Debug)]
pub enum ListError {
    /// The host has no memory for a TLB.
    Host(io::Error),
    /// No instruction can be fetched there.
    Fetch(MemFault),
}

impl fmt::Display for ListError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListError::Host(e) => write!(f, "the host has no memory for a TLB: {e}"),
            ListError::Fetch(fault) => write!(f, "no instruction can be fetched at {:#x}", fault.addr.get()),
        }
    }
}

impl std::error::Error for ListError {}

/// One region, translated but not run.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// Where it is entered, and its name.
    pub title: String,
    /// Which guest register lives in which host register.
    pub registers: String,
    /// Host code before the blocks, if any.
    pub entry: Vec<String>,
    /// Its blocks, in order of address.
    pub blocks: Vec<ListedBlock>,
    /// Host code behind the blocks: slow paths and exits.
    pub cold: Vec<String>,
}

/// One block of a [`Listing`].
#[derive(Debug, Clone, Default)]
pub struct ListedBlock {
    /// Its number, address, name and size.
    pub title: String,
    /// Guest instructions.
    pub guest: Vec<String>,
    /// What they became.
    pub ir: Vec<String>,
    /// What that became.
    pub host: Vec<String>,
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}", self.title, self.registers)?;
        if !self.entry.is_empty() {
            f.write_str("\n")?;
            section(f, "entry", &self.entry)?;
        }
        for block in &self.blocks {
            writeln!(f, "\n{}", block.title)?;
            for (name, lines) in [("guest", &block.guest), ("ir", &block.ir), ("host", &block.host)] {
                section(f, name, lines)?;
            }
        }
        f.write_str("\n")?;
        section(f, "slow paths and exits", &self.cold)
    }
}

fn section(f: &mut fmt::Formatter<'_>, name: &str, lines: &[String]) -> fmt::Result {
    writeln!(f, "  {name}")?;
    lines.iter().try_for_each(|line| writeln!(f, "    {line}"))
}

/// Nothing runs, so nothing is written into code.
struct Idle;

impl CodeInvalidator for Idle {
    fn code_written(&mut self, _: RamAddr, _: u64) -> usize {
        0
    }
}

impl Hooks for Idle {}

/// Translates the region at `pc` in M-mode, and runs nothing.
///
/// # Errors
/// [`ListError`]: no instruction can be fetched at `pc`, or the host has no memory for a TLB.
pub fn region(space: &Arc<AddressSpace>, pc: u64, flags: JitFlags, symbols: Symbols<'_>) -> Result<Listing, ListError> {
    if pc & 1 != 0 {
        return Err(ListError::Fetch(MemFault::access(AccessKind::Fetch, GuestVirt::new(pc))));
    }
    let mut mmu = SoftMmu::new(space, PREFIX).map_err(ListError::Host)?;
    let mut mmu = mmu.run(&mut Idle);
    let page = mmu.fetch(&mut Idle, MmuIdx::M, GuestVirt::new(pc)).map_err(ListError::Fetch)?;
    let addend = (page.host as u64).wrapping_sub(pc & !(notdirty_core::PAGE_SIZE - 1));
    let flat = Flat { addend, start: flat_of(space, pc).start };
    let hot = flags.optimises_hot() && !flags.samples;
    let insns = if hot { MAX_INSNS } else { WARM_INSNS };
    let limits = Limits { insns, regions: flags.regions, optimise: flags.optimise, heads: hot && flags.heads };
    let mut translator = Translator::default();
    translator.translate(&mut mmu, &mut Idle, pc, limits).map_err(ListError::Fetch)?;
    let (shared_code, shared) = Host::assemble(flags, execute_site);
    let mut emitter = Host::boxed(flags, shared, flat);
    if hot {
        let learned = &|_| Learned::default();
        let JitFlags { turns, sink, apart, share, .. } = flags;
        let ahead = Ahead { learned, turns, sink, apart, share };
        tier2::optimise(&mut translator.region, true, emitter.checks_ahead().then_some(ahead));
    }
    emitter.emit(&translator.region, 0);
    let at = shared_code.len().next_multiple_of(4096) as u32;
    emitter.place(at);
    Ok(describe(&translator, &emitter.newest(at, &translator.region), symbols))
}

fn describe(translator: &Translator, code: &impl HostCode, symbols: Symbols<'_>) -> Listing {
    let region = &translator.region;
    let source = translator.source();
    let (insns, bytes) = (region.insns, code.bytes().len());
    let each = bytes as f64 / f64::from(insns.max(1));
    let title = format!(
        "region {}: {insns} guest instructions, {} blocks, {bytes} bytes of host code ({each:.1} an instruction)",
        place(region.pc, symbols),
        region.blocks.len()
    );
    let mut out = Listing { title, registers: code.registers(), ..Listing::default() };
    let ir = |block: &Block| {
        let ops = region.ops[block.first as usize..block.end as usize].iter().map(|op| op.to_string());
        ops.chain([block.term.to_string()]).collect()
    };
    for (n, block) in region.blocks.iter().enumerate() {
        let title = block_title(n, block, symbols);
        let guest = guest(&source, block, symbols);
        out.blocks.push(ListedBlock { title, guest, ir: ir(block), host: Vec::new() });
    }
    for (part, line) in split(code, symbols) {
        match part {
            Part::Entry => out.entry.push(line),
            Part::Block(n) => out.blocks[n].host.push(line),
            Part::Cold => out.cold.push(line),
        }
    }
    out
}

/// Where a line of host code belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Entry,
    Block(usize),
    Cold,
}

/// The lines of a TB's host code, each with the part it belongs to.
fn split(code: &impl HostCode, symbols: Symbols<'_>) -> Vec<(Part, String)> {
    let part = |offset: u32| match code.blocks().partition_point(|b| b.1 <= offset) {
        _ if offset >= code.cold() => Part::Cold,
        0 => Part::Entry,
        n => Part::Block(n - 1),
    };
    code.lines(&|pc| place(pc, symbols)).into_iter().map(|line| (part(line.offset), line.text)).collect()
}

fn block_title(n: usize, block: &Block, symbols: Symbols<'_>) -> String {
    let poll = if block.poll { ", polls" } else { "" };
    format!("b{n} {}: {} instructions{poll}", place(block.pc, symbols), block.insns)
}

fn place(pc: u64, symbols: Symbols<'_>) -> String {
    symbols(pc).map_or_else(|| format!("{pc:x}"), |name| format!("{pc:x} <{name}>"))
}

/// The guest's instructions of one block.
fn guest(source: &[Source], block: &Block, symbols: Symbols<'_>) -> Vec<String> {
    let mut pc = block.pc;
    let mut out = Vec::new();
    for _ in 0..block.insns {
        let Ok(at) = source.binary_search_by_key(&pc, |s| s.pc) else { break };
        let Source { bits, insn, .. } = source[at];
        let mut text = line(pc, bits, &insn);
        if let Some(name) = flow::names(&insn, pc).and_then(symbols) {
            text.push_str(&format!(" <{name}>"));
        }
        out.push(text);
        pc = pc.wrapping_add(insn.len.into());
    }
    out
}

/// `-d in_asm`: the guest's instructions, block by block.
pub(crate) fn in_asm(translator: &Translator, symbols: Symbols<'_>) -> String {
    let source = translator.source();
    let region: &Region = &translator.region;
    let mut out = format!("guest code of {}:", place(region.pc, symbols));
    for (n, block) in region.blocks.iter().enumerate() {
        out.push_str(&format!("\n  {}", block_title(n, block, symbols)));
        for line in guest(&source, block, symbols) {
            out.push_str("\n    ");
            out.push_str(&line);
        }
    }
    out
}

/// `-d out_asm`: host code, with the guest pc at the head of each block.
pub(crate) fn out_asm(pc: u64, code: &impl HostCode, address: u64, symbols: Symbols<'_>) -> String {
    let mut out = format!("host code of {} at {address:#x}, {} bytes:", place(pc, symbols), code.bytes().len());
    let mut last = None;
    for (part, line) in split(code, symbols) {
        if last != Some(part) {
            let title = match part {
                Part::Entry => "entry".into(),
                Part::Block(n) => format!("b{n} {}", place(code.blocks()[n].0, symbols)),
                Part::Cold => "slow paths and exits".into(),
            };
            out.push_str(&format!("\n  {title}"));
            last = Some(part);
        }
        out.push_str("\n    ");
        out.push_str(&line);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{Options, Program, ram_only};
    use notdirty_core::{RamBlockSpec, RamList};
    use notdirty_softmmu::GuestPhys;

    const RAM: u64 = 0x8000_0000;

    fn space(code: &[u8]) -> Arc<AddressSpace> {
        let list = Arc::new(RamList::new());
        let ram = list.add(RamBlockSpec::new("ram", 0x4000).near(0x1000_0000..0xf000_0000)).expect("RAM");
        let space = AddressSpace::new(list);
        space.map_ram(GuestPhys::new(RAM), &ram, 0, 0x4000, 0).expect("a place for it");
        space.write(GuestPhys::new(RAM), code).expect("inside");
        space
    }

    fn names(addr: u64) -> Option<String> {
        (addr == RAM).then(|| "main".into())
    }

    #[test]
    fn a_loop_is_listed_block_by_block_with_names() {
        // addi a0,a0,-1 ; sd a0,0(sp) ; bnez a0,main ; ret
        let code: Vec<u8> = [0xfff5_0513u32, 0x00a1_3023, 0xfe05_1ce3, 0x0000_8067].map(u32::to_le_bytes).concat();
        let listing = region(&space(&code), RAM, JitFlags::default(), &names).unwrap();
        assert_eq!(listing.blocks.len(), 2);
        let first = &listing.blocks[0];
        assert_eq!(first.title, "b0 80000000 <main>: 3 instructions, polls");
        assert_eq!(first.guest[0], "80000000:   fff50513   addi        a0,a0,-1");
        assert_eq!(first.guest[2], "80000008:   fe051ce3   bnez        a0,80000000 <main>");
        assert_eq!(first.ir, ["a0 = Add a0, -0x1", "store.64 [sp + 0x0] = a0  #0", "if Ne a0, zero goto b0 else b1"]);
        assert!(first.host.last().is_some_and(|line| line.ends_with("jne    b0")), "{:?}", first.host);
        let host = first.host.concat();
        assert!(host.contains("[rbp+rcx+tlb.write]") && host.contains("[rbx+ram],rdi"), "{host}");
        assert!(listing.cold.iter().any(|line| line.ends_with("; 80000004: sd a0,0(sp)")), "{:?}", listing.cold);
        assert!(listing.cold.iter().any(|line| line.ends_with("; poll at 80000000 <main>")), "{:?}", listing.cold);
    }

    #[test]
    fn whatever_is_emitted_can_be_disassembled() {
        let options = Options::default();
        for seed in 0..40 {
            let program = Program::generate(seed, &options);
            let (space, _ram) = ram_only(options.base, options.ram_len);
            space.write(GuestPhys::new(options.base), &program.bytes).expect("it fits");
            let mut flags = JitFlags::default();
            for (bit, name) in JitFlags::NAMES.iter().enumerate() {
                flags.set(name, seed >> (bit % 5) & 1 == 0);
            }
            for n in 0..30 {
                let listing = region(&space, options.base + 0x1000 + 0x22 * n, flags, &names).unwrap();
                assert!(!listing.to_string().contains("(bad)"), "{listing}");
                for block in &listing.blocks {
                    let (title, n) = (&block.title, block.guest.len());
                    assert!(title.contains(&format!(": {n} instructions")), "{title}: {:?}", block.guest);
                    assert!(!block.host.is_empty(), "{title}");
                }
            }
        }
    }

    #[test]
    fn a_place_without_code_is_refused() {
        let space = space(&[]);
        for pc in [0, RAM + 1, RAM + 0x4000, u64::MAX - 1] {
            let error = region(&space, pc, JitFlags::default(), &names).expect_err("no code");
            assert!(matches!(error, ListError::Fetch(_)), "{pc:#x}: {error}");
        }
    }
}
