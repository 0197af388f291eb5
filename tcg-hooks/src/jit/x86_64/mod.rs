//! IR to x86-64: `dynasm!` into a buffer of our own (`asm`).
//!
//! ```text
//!   block: sub r15, n ; (jl poll) │ ops … │ end            cold, behind all blocks:
//!          load: lea, and, cmp ──ne──────────────────────▶  slow: lea rdx ; test eax, site ; call again ; jmp back
//!          store: the same ─────────────────────────────▶  slow: as above, if it was learned beside code: a clean line? jmp store
//!          exit: jmp rel32 ──unlinked────────────────────▶  stub: mov eax, exit ; jmp leave
//!                └─linked─▶ the entry of another TB
//! ```
//!
//! The code is position dependent only in its jumps to the thunks, which are given as offsets in the code cache.
//! Which register is where was decided before: `regs.rs`, `tier2`. Deliberately absent: instruction selection over more
//! than one op.
// dynasm! converts every immediate to the width of its field, also where it has that width.
#![allow(clippy::useless_conversion, reason = "what dynasm! expands to")]

mod again;
mod ahead;
mod alu;
mod asm;
mod atomic;
mod bits;
mod cold;
pub(crate) mod context;
pub(crate) mod disasm;
mod elide;
mod encode;
mod float;
mod flow;
mod frames;
mod guess;
pub(crate) mod helpers;
pub(crate) mod mem;
#[cfg(test)]
mod placed;
mod rare;
mod regs;
mod remap;
pub(crate) mod thunks;
mod whole;

use crate::engine::JitFlags;
use crate::ir::{Check, Does, FIRST_FLOAT, Ir, Kind, Region, Site};
use crate::jit::code_cache::CodeOffset;
use crate::riscv::Privilege;
use crate::tb::SiteSet;
use crate::tier2::{DISPLACEMENT, Frames};
use asm::{Assembler, Flag, Label};
use cold::Cold;
use context::float_off;
use dynasmrt::dynasm;
use encode::{MOV, MOV_TO, NARROW, WIDE, XOR};
use regs::{RAX, RCX, RDX, RegMap};
use thunks::Thunks;

/// Bits of a site's or an exit's number that count within its TB.
pub(crate) const LOCAL_BITS: u32 = 11;

/// A way out of a TB, as emitted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EmittedExit {
    /// Where the 32-bit displacement of its jump is, from the code's start; 0 if it is never linked (a poll).
    pub(crate) field: u32,
    /// The stub that the jump goes to while unlinked.
    pub(crate) stub: u32,
    /// Where it leads.
    pub(crate) pc: u64,
    /// A poll: instructions to give back.
    pub(crate) refund: u16,
    /// The way through the jump cache; 0 if the jump may always be linked.
    pub(crate) via: u32,
    /// Is the guard of its link in front of the jump, instead of behind it? See `tb/chain.rs`.
    pub(crate) guarded: bool,
}

/// The RAM that code is emitted for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Flat {
    /// host - guest, wrapping.
    pub(crate) addend: u64,
    /// Its first address.
    pub(crate) start: u64,
}

/// host - guest, of RAM, as accesses find it once they were checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Addend {
    /// A constant.
    Flat(i32),
    /// That of the regime's set, which the context knows.
    Set,
    /// Each entry's own.
    Entry,
}

/// Emits TBs; keeps its memory from one to the next.
pub(crate) struct Emitter {
    ops: Assembler,
    flags: JitFlags,
    /// The map of the region being emitted.
    map: RegMap,
    remap: remap::Remap,
    /// Of a region that names host registers; else empty.
    frames: Frames,
    /// What is checked in front of loops, of the region being emitted; and whether trips are counted already, of the block.
    checks: Vec<Check>,
    counts_trips: bool,
    bmi2: bool,
    popcnt: bool,
    fma: bool,
    probes: mem::Probes,
    thunks: Thunks,
    /// That of physical addresses, and of the TB being emitted.
    physical: Addend,
    addend: Addend,
    /// What is added to the address of a load to find how far in flat RAM it is, where that is enough.
    whole: Option<i32>,
    /// May loads of translated addresses go by the run of pages?
    runs: bool,
    /// Loads need entries, as something may be asked about bytes.
    pub(crate) asked: bool,
    cold: Vec<Cold>,
    /// Behind failed probes: the commonest of what is cold, apart.
    slow: Vec<mem::Slow>,
    /// Behind wrong guesses of addends.
    wrong: Vec<guess::Wrong>,
    elide: elide::Elide,
    externals: Vec<(u32, CodeOffset)>,
    /// Of the sites of a region with hooks; and those of them that jumps ask only if a light hook says so.
    site_pcs: Vec<u64>,
    lights: Vec<u16>,
    /// The exits of the TB emitted last.
    pub(crate) exits: Vec<EmittedExit>,
    /// For listings: the offset of what is behind its blocks.
    behind: u32,
    tb: u32,
    region_pc: u64,
    /// Instructions of the block being emitted, and one.
    block_insns: u16,
    /// Does one thread store (WRITER-1)? Of the TB being emitted.
    pub(crate) alone: bool,
    /// Any other store to its set breaks a reservation: LR and SC are Rust's.
    pub(crate) strict: bool,
    /// The mode that the code is for, and whether its addresses are translated.
    mode: Privilege,
    translated: bool,
    /// Pages that the code is on, from that of its entry on.
    pages: u64,
    /// Of the block being emitted: where it jumps back to behind the fence that stands before it.
    behind_fence: Option<Label>,
    /// Was anything learned of the sites of the TB being emitted? Otherwise none is in the three sets.
    learned: bool,
    /// The sites whose probes let misaligned accesses through. Of the TB being emitted.
    pub(crate) odd: SiteSet,
    /// Sites of the region with stores that often lie beside code.
    pub(crate) beside: SiteSet,
    /// Sites of the region that often find RAM with another addend.
    pub(crate) elsewhere: SiteSet,
    /// Those that load from pages outside the run.
    pub(crate) beside_run: SiteSet,
    /// Of those, the ones that do not guess it; and the loads that do.
    pub(crate) varied: SiteSet,
    guessing: SiteSet,
}

/// Displacement of a guest register in the context.
const fn off(guest: u8) -> i8 {
    (8 * (guest as i32 & 31) - context::BASE) as i8
}

impl Emitter {
    /// One that takes little memory before it is used.
    pub(crate) fn boxed(flags: JitFlags, thunks: Thunks, flat: Flat) -> Box<Emitter> {
        let mut emitter = Box::new(Emitter::new(flags, thunks, flat));
        emitter.ops.give_back();
        emitter
    }

    pub(crate) fn new(flags: JitFlags, thunks: Thunks, flat: Flat) -> Emitter {
        // What an access adds to it must fit, too.
        const FARTHEST: i64 = i32::MAX as i64 - DISPLACEMENT;
        let start = i32::try_from((flat.start as i64).wrapping_neg()).ok();
        let flat = Some(flat.addend as i64).filter(|k| (-FARTHEST..=FARTHEST).contains(k)).map(|k| k as i32);
        let physical = match flat {
            _ if !flags.flat_addend => Addend::Entry,
            Some(k) => Addend::Flat(k),
            None => Addend::Set,
        };
        let bmi2 = flags.bmi2 && std::arch::is_x86_feature_detected!("bmi2");
        Emitter {
            ops: Assembler::new(),
            flags,
            map: RegMap::new(flags.pinned),
            remap: remap::Remap::default(),
            frames: Frames::default(),
            checks: Vec::new(),
            counts_trips: false,
            bmi2,
            fma: flags.fma && std::arch::is_x86_feature_detected!("fma"),
            popcnt: flags.popcnt && std::arch::is_x86_feature_detected!("popcnt"),
            probes: mem::Probes::new(flags, bmi2),
            thunks,
            physical,
            addend: physical,
            asked: false,
            whole: start.filter(|_| flags.whole && flags.flat_ram && matches!(physical, Addend::Flat(_))),
            runs: flags.whole && flags.flat_ram,
            cold: Vec::new(),
            slow: Vec::new(),
            wrong: Vec::new(),
            elide: elide::Elide::default(),
            externals: Vec::new(),
            site_pcs: Vec::new(),
            lights: Vec::new(),
            exits: Vec::new(),
            behind: 0,
            tb: 0,
            region_pc: 0,
            block_insns: 0,
            alone: false,
            strict: false,
            mode: Privilege::M,
            translated: false,
            pages: 1,
            behind_fence: None,
            learned: true,
            odd: if flags.aligned { SiteSet::NONE } else { SiteSet::ALL },
            beside: if flags.beside { SiteSet::NONE } else { SiteSet::ALL },
            elsewhere: SiteSet::NONE,
            beside_run: SiteSet::NONE,
            varied: SiteSet::NONE,
            guessing: SiteSet::NONE,
        }
    }

    /// What is emitted next is for this mode, and for translated addresses or physical ones.
    pub(crate) fn enter_regime(&mut self, mode: Privilege, translated: bool, flat: bool, pages: u64) {
        (self.mode, self.translated, self.pages) = (mode, translated, pages);
        self.addend = if translated && !flat && self.physical != Addend::Entry { Addend::Set } else { self.physical };
    }

    /// Is the addend of flat RAM a displacement?
    pub(crate) fn has_constant_addend(&self) -> bool {
        matches!(self.physical, Addend::Flat(_))
    }

    /// Assembles a region as TB number `tb`; the code still lacks [`Emitter::place`]. Returns its length and the
    /// offset of its entry.
    pub(crate) fn emit(&mut self, region: &Region, tb: u32) -> (usize, u32) {
        self.tb = tb;
        self.region_pc = region.pc;
        self.learned =
            [&self.odd, &self.beside, &self.elsewhere, &self.beside_run].into_iter().any(|set| !set.is_empty());
        self.ops.clear();
        self.cold.clear();
        self.slow.clear();
        self.wrong.clear();
        self.externals.clear();
        self.elide.clear();
        self.exits.clear();
        // Block n has label n.
        self.ops.first_labels(region.blocks.len());
        self.frames.copy_from(&region.frames);
        self.checks.clone_from(&region.checks);
        self.note_hooks(region);
        let mut entry = 0;
        self.find_guessing(region);
        self.check_shared(&region.shared);
        let in_front = self.here() != 0;
        if self.is_named() {
            self.remap.forget();
            self.come_in();
        } else {
            self.remap(region);
            self.swap_at_entry();
        }
        let in_front = in_front || self.moves_at_borders();
        if in_front {
            let label = Label::first(region.entry);
            dynasm!(self.ops; .arch x64; jmp =>label);
        }
        let hot = !region.weights.is_empty();
        for (i, block) in region.blocks.iter().enumerate() {
            let label = Label::first(i as u16);
            if hot && block.term.leads_to(i as u16) {
                self.align();
            }
            if i == usize::from(region.entry) && !in_front {
                entry = self.here();
            }
            dynasm!(self.ops; .arch x64; =>label);
            self.fence_before(region, i as u16);
            self.counts_trips = false;
            match i8::try_from(block.insns) {
                // What is in front of a loop is no instruction.
                Ok(0) => {}
                _ if !self.flags.budget_register => {
                    dynasm!(self.ops; .arch x64; sub QWORD [rbp + context::BUDGET], DWORD i32::from(block.insns));
                }
                Ok(n) => dynasm!(self.ops; .arch x64; sub r15, BYTE n),
                Err(_) => dynasm!(self.ops; .arch x64; sub r15, DWORD i32::from(block.insns)),
            }
            if block.poll {
                let exit = self.exit(block.pc, block.insns);
                let from = self.ops.jump_if(Flag::Less);
                self.cold.push(Cold::Poll { from, exit, block: i as u16 });
            }
            if self.flags.count {
                let ops = &region.ops[block.first as usize..block.end as usize];
                let accesses = ops.iter().filter(|ir| ir.kind.accesses()).count();
                if accesses != 0 {
                    dynasm!(self.ops; .arch x64; add QWORD [rbp + context::ACCESSES], DWORD accesses as i32);
                }
            }
            self.block_insns = block.insns + 1;
            self.ops(&region.ops, block);
            self.terminator(&block.term, i as u16);
        }
        self.behind = self.here();
        let mut n = 0;
        while n < self.cold.len() {
            let cold = self.cold[n];
            self.cold_part(region, cold);
            n += 1;
        }
        for n in 0..self.slow.len() {
            self.slow_part(n);
        }
        for n in 0..self.wrong.len() {
            self.wrong_part(n);
        }
        self.swap_routines();
        self.ops.finish();
        (self.ops.code().len(), entry)
    }

    /// The code emitted last, for a place in the code cache.
    pub(crate) fn place(&mut self, at: CodeOffset) -> &[u8] {
        let code = self.ops.code_mut();
        for &(field, target) in &self.externals {
            let rel = (i64::from(target) - i64::from(at) - i64::from(field) - 4) as i32;
            code[field as usize..field as usize + 4].copy_from_slice(&rel.to_le_bytes());
        }
        code
    }

    /// May accesses be checked ahead of a loop? Then all RAM at the flat addend needs no other.
    pub(crate) fn checks_ahead(&self) -> bool {
        self.flags.hoist && self.physical != Addend::Entry
    }

    /// The addend, if it is a constant.
    fn flat(&self) -> Option<i32> {
        match self.addend {
            Addend::Flat(k) => Some(k),
            _ => None,
        }
    }

    fn here(&self) -> u32 {
        self.ops.here()
    }

    /// One op. What is common is a jump to a function with a frame of its own; the rest has one together.
    fn op(&mut self, ir: &Ir) {
        match ir.kind {
            Kind::Li => self.li(ir.rd, ir.imm),
            Kind::Mov => self.copy(ir.rd, ir.a),
            Kind::Reg(op) => self.alu(op, ir.rd, ir.a, ir.b),
            Kind::Imm(op) => self.alu_imm(op, ir.rd, ir.a, ir.imm),
            Kind::Load(mem) => self.load(ir, mem),
            Kind::Store(mem) => self.store(ir, mem),
            _ => self.other_op(ir),
        }
    }

    #[inline(never)]
    fn other_op(&mut self, ir: &Ir) {
        match ir.kind {
            Kind::Li | Kind::Mov | Kind::Reg(_) | Kind::Imm(_) | Kind::Load(_) | Kind::Store(_) => {
                unreachable!("a common op")
            }
            Kind::NarrowRotate => self.narrow_rotate(ir),
            Kind::Bits(op) => self.bits(ir, op),
            Kind::Check => self.check_ahead(ir),
            Kind::LoadFast(mem, shift) => self.load_fast(ir, mem, shift),
            Kind::StoreFast(mem) => self.store_fast(ir, mem),
            Kind::Amo(op, mem) => self.amo(ir, op, mem),
            Kind::LoadReserved(mem) => self.load_reserved(ir, mem),
            Kind::StoreConditional(mem) => self.store_conditional(ir, mem),
            Kind::ReadCounter => self.read_counter(ir),
            Kind::FenceI => self.fence_i(ir.site),
            Kind::ReadState => {
                let d = self.target(ir.rd, RAX);
                dynasm!(self.ops; .arch x64; mov Rq(d), [rbp + (ir.imm as i32 - context::BASE)]);
                self.done(ir.rd, d);
            }
            Kind::SwapState => self.swap_state(ir),
            Kind::Float(what) => self.float(ir, what),
            Kind::FloatOn => self.float_on(ir),
            Kind::Box => dynasm!(self.ops; .arch x64; mov DWORD [rbp + (float_off(ir.rd) + 4)], -1),
            // With one writer, no load can tell; and one before the loop is enough.
            Kind::Fence if self.alone || self.behind_fence.is_some() => {}
            Kind::Fence => self.fence(),
            Kind::Rust => self.execute_site(ir.site),
            Kind::Cover => self.cover(ir),
            Kind::Hook => {
                self.swap_out();
                self.call_thunk(self.thunks.hook, ir.site);
                self.swap_in();
            }
            Kind::Tell => self.tell(ir),
            Kind::Operands => self.operands(ir),
        }
    }

    /// What hooks ask of the region's sites.
    fn note_hooks(&mut self, region: &Region) {
        self.site_pcs.clear();
        self.lights.clear();
        if region.hooked {
            self.site_pcs.extend(region.sites.iter().map(|site| site.pc));
            let light = |site: &Site| matches!(site.does, Does::ArriveAt { light: true });
            self.lights.extend((0u16..).zip(&region.sites).filter(|(_, site)| light(site)).map(|(n, _)| n));
        }
    }

    /// Tells hooks that get the pc alone; what they ask for is done at the site, which does not come back then.
    fn tell(&mut self, ir: &Ir) {
        let pc = self.site_pcs[usize::from(ir.site)];
        self.constant(RAX, pc as i64);
        self.constant(RCX, ir.imm);
        dynasm!(self.ops; .arch x64; .u8 0xe8);
        self.external(self.thunks.tell);
        let from = self.ops.jump_if(Flag::NotEqual);
        self.cold.push(Cold::Site { from, site: ir.site, back: self.here() });
    }

    fn operands(&mut self, ir: &Ir) {
        let at = context::OPERANDS + 16 * i32::from(ir.site);
        let a = self.source(ir.a, RAX);
        dynasm!(self.ops; .arch x64; mov [rbp + at], Rq(a));
        if ir.rd != 0 {
            dynasm!(self.ops; .arch x64; mov QWORD [rbp + (at + 8)], ir.imm as i32);
        } else {
            let b = self.source(ir.b, RAX);
            dynasm!(self.ops; .arch x64; mov [rbp + (at + 8)], Rq(b));
        }
    }

    fn cover(&mut self, ir: &Ir) {
        let at = context::COVERAGE + ir.imm as i32;
        match ir.b {
            1 => dynasm!(self.ops; .arch x64; inc BYTE [rbp + at]),
            _ => dynasm!(self.ops; .arch x64; dec BYTE [rbp + at]),
        }
    }

    fn swap_state(&mut self, ir: &Ir) {
        let at = ir.imm as i32 - context::BASE;
        let mut new = self.source(ir.a, RDX);
        if ir.b == 1 {
            dynasm!(self.ops; .arch x64; mov rdx, Rq(new); and rdx, -2);
            new = RDX;
        }
        if ir.rd != 0 {
            dynasm!(self.ops; .arch x64; mov rax, [rbp + at]);
        }
        dynasm!(self.ops; .arch x64; mov [rbp + at], Rq(new));
        if ir.rd != 0 {
            self.put(ir.rd, RAX);
        }
    }

    /// Moves a constant into a guest register.
    #[inline(never)]
    fn li(&mut self, rd: u8, imm: i64) {
        match (self.map.host(rd), i32::try_from(imm)) {
            (Some(host), _) => self.constant(host, imm),
            (None, Ok(imm)) => self.ops.slot_constant(off(rd), imm),
            (None, Err(_)) => {
                self.constant(RAX, imm);
                self.ops.slot(WIDE, MOV_TO, RAX, off(rd));
            }
        }
    }

    /// Moves a constant into a host register; flags are lost.
    fn constant(&mut self, host: u8, imm: i64) {
        if imm == 0 {
            self.ops.two(NARROW, XOR, host, host);
        } else {
            self.ops.constant(host, imm);
        }
    }

    /// The host register that holds a guest register now: its own, or `scratch` after a load.
    #[inline(always)]
    fn source(&mut self, guest: u8, scratch: u8) -> u8 {
        match self.map.host(guest) {
            Some(host) => host,
            None if guest >= FIRST_FLOAT => {
                dynasm!(self.ops; .arch x64; mov Rq(scratch), [rbp + float_off(guest)]);
                scratch
            }
            None => {
                self.ops.slot(WIDE, MOV, scratch, off(guest));
                scratch
            }
        }
    }

    /// The host register to compute a guest register in: its own, or `scratch`; then [`Emitter::done`].
    #[inline(always)]
    fn target(&self, guest: u8, scratch: u8) -> u8 {
        self.map.host(guest).unwrap_or(scratch)
    }

    /// Writes a computed value back, if its register lives in memory.
    #[inline(always)]
    fn done(&mut self, guest: u8, host: u8) {
        if self.map.host(guest).is_some() {
            return;
        }
        if guest >= FIRST_FLOAT {
            dynasm!(self.ops; .arch x64; mov [rbp + float_off(guest)], Rq(host));
        } else {
            self.ops.slot(WIDE, MOV_TO, host, off(guest));
        }
    }
}

#[cfg(test)]
mod tests;
