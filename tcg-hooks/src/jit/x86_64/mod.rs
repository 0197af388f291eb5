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
mod disasm;
mod elide;
mod encode;
mod float;
mod flow;
mod frames;
mod guess;
mod links;
mod mem;
mod offsets;
#[cfg(test)]
mod placed;
mod rare;
mod regs;
mod remap;
mod thunks;
mod whole;

use crate::engine::JitFlags;
use crate::guest::Mode;
use crate::ir::{Check, Does, FIRST_FLOAT, Ir, Kind, Region, Site};
use crate::jit::code_cache::{CodeCache, CodeOffset};
use crate::jit::{Backend, EmittedExit, Flat, Known, LOCAL_BITS, Link, Regime, SiteFn, Way};
use crate::tb::SiteSet;
use crate::tier2::{DISPLACEMENT, Frames};
use asm::{Assembler, Flag, Label};
use cold::Cold;
use disasm::TbCode;
use dynasmrt::dynasm;
use encode::{MOV, MOV_TO, NARROW, WIDE, XOR};
use offsets::float_off;
use regs::{RAX, RCX, RDX, RegMap};
use thunks::Thunks;

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
    known: Known,
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
    exits: Vec<EmittedExit>,
    /// For listings: the offset of what is behind its blocks.
    behind: u32,
    tb: u32,
    region_pc: u64,
    /// Instructions of the block being emitted, and one.
    block_insns: u16,
    /// The mode that the code is for, and whether its addresses are translated.
    mode: Mode,
    translated: bool,
    /// Pages that the code is on, from that of its entry on.
    pages: u64,
    /// Of the block being emitted: where it jumps back to behind the fence that stands before it.
    behind_fence: Option<Label>,
    /// Was anything learned of the sites of the TB being emitted? Otherwise none is in the four sets.
    learned: bool,
    /// Loads that guess the addend.
    guessing: SiteSet,
}

/// Displacement of a guest register in the context.
const fn off(guest: u8) -> i32 {
    8 * (guest as i32 & 31) - offsets::BASE
}

/// An instruction on the home of a guest register: with the shortest displacement, `$near`, or with four bytes.
macro_rules! at_home {
    ($guest:expr, |$home:ident| $near:expr, $far:expr) => {
        match i8::try_from(crate::jit::x86_64::off($guest)) {
            Ok($home) => $near,
            Err(_) => {
                let $home = crate::jit::x86_64::off($guest);
                $far
            }
        }
    };
}
pub(crate) use at_home;

impl Emitter {
    fn new(flags: JitFlags, thunks: Thunks, flat: Flat) -> Emitter {
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
            known: Known {
                asked: false,
                alone: false,
                strict: false,
                odd: if flags.aligned { SiteSet::NONE } else { SiteSet::ALL },
                beside: if flags.beside { SiteSet::NONE } else { SiteSet::ALL },
                elsewhere: SiteSet::NONE,
                beside_run: SiteSet::NONE,
                varied: SiteSet::NONE,
            },
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
            mode: Mode::FIRST,
            translated: false,
            pages: 1,
            behind_fence: None,
            learned: true,
            guessing: SiteSet::NONE,
        }
    }
}

impl Backend for Emitter {
    type Shared = Thunks;
    type Code<'a> = TbCode<'a>;

    const FLOAT_AT_REST: u32 = 0x1f80;

    fn raised(unit: u32) -> u8 {
        let raised = unit & 0x3d;
        let bit = |from: u32, to: u32| (raised >> from & 1) << to;
        if raised == 0 { 0 } else { (bit(0, 4) | bit(2, 3) | bit(3, 2) | bit(4, 1) | bit(5, 0)) as u8 }
    }

    fn assemble(flags: JitFlags, site: SiteFn) -> (Vec<u8>, Thunks) {
        thunks::assemble(flags, site)
    }

    fn enter(thunks: &Thunks) -> CodeOffset {
        thunks.enter
    }

    fn shared_names(thunks: &Thunks) -> (Vec<(&'static str, CodeOffset)>, CodeOffset) {
        thunks.names()
    }

    fn boxed(flags: JitFlags, thunks: Thunks, flat: Flat) -> Box<Emitter> {
        let mut emitter = Box::new(Emitter::new(flags, thunks, flat));
        emitter.ops.give_back();
        emitter
    }

    fn has_constant_addend(&self) -> bool {
        matches!(self.physical, Addend::Flat(_))
    }

    fn known(&mut self) -> &mut Known {
        &mut self.known
    }

    fn enter_regime(&mut self, Regime { mode, translated, flat, pages }: Regime) {
        (self.mode, self.translated, self.pages) = (mode, translated, pages);
        self.addend = if translated && !flat && self.physical != Addend::Entry { Addend::Set } else { self.physical };
    }

    fn exits(&self) -> &[EmittedExit] {
        &self.exits
    }

    fn newest<'a>(&'a self, at: CodeOffset, region: &'a Region) -> TbCode<'a> {
        TbCode::new(self, at, region)
    }

    fn link(code: &mut CodeCache, thunks: &Thunks, way: &Way, link: Link) {
        links::link(code, thunks, way, link);
    }

    #[cfg(any(test, feature = "testkit"))]
    fn linked(code: &CodeCache, way: &Way, number: u32) -> Result<Link, String> {
        links::linked(code, way, number)
    }

    fn emit(&mut self, region: &Region, tb: u32) -> (usize, u32) {
        self.tb = tb;
        self.region_pc = region.pc;
        self.learned = [&self.known.odd, &self.known.beside, &self.known.elsewhere, &self.known.beside_run]
            .into_iter()
            .any(|set| !set.is_empty());
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
                    dynasm!(self.ops; .arch x64; sub QWORD [rbp + offsets::BUDGET], DWORD i32::from(block.insns));
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
                    dynasm!(self.ops; .arch x64; add QWORD [rbp + offsets::ACCESSES], DWORD accesses as i32);
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

    fn place(&mut self, at: CodeOffset) -> &[u8] {
        let code = self.ops.code_mut();
        for &(field, target) in &self.externals {
            let rel = (i64::from(target) - i64::from(at) - i64::from(field) - 4) as i32;
            code[field as usize..field as usize + 4].copy_from_slice(&rel.to_le_bytes());
        }
        code
    }

    fn checks_ahead(&self) -> bool {
        self.flags.hoist && self.physical != Addend::Entry
    }
}

impl Emitter {
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
                dynasm!(self.ops; .arch x64; mov Rq(d), [rbp + (ir.imm as i32 - offsets::BASE)]);
                self.done(ir.rd, d);
            }
            Kind::SwapState => self.swap_state(ir),
            Kind::Float(what) => self.float(ir, what),
            Kind::FloatOn => self.float_on(ir),
            Kind::Box => dynasm!(self.ops; .arch x64; mov DWORD [rbp + (float_off(ir.rd) + 4)], -1),
            // With one writer, no load can tell; and one before the loop is enough.
            Kind::Fence if self.known.alone || self.behind_fence.is_some() => {}
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
        let at = offsets::OPERANDS + 16 * i32::from(ir.site);
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
        let at = offsets::COVERAGE + ir.imm as i32;
        match ir.b {
            1 => dynasm!(self.ops; .arch x64; inc BYTE [rbp + at]),
            _ => dynasm!(self.ops; .arch x64; dec BYTE [rbp + at]),
        }
    }

    fn swap_state(&mut self, ir: &Ir) {
        let at = ir.imm as i32 - offsets::BASE;
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
