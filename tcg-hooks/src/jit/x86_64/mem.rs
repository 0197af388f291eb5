//! Loads and stores: the TLB probe in line, everything else behind the TB.
//!
//! ```text
//!   lea rax, [base + imm + BIAS]        the biased address
//!   rorx ecx, eax, 7 ; and ecx, …       32 bytes an entry: (address >> 12) << 5
//!   and rax, !(0xfff ^ (size-1))        its page, and what an aligned one has not
//!   cmp rax, [rbp + rcx + comparator] ; jne slow
//!   mov dst, [base + imm + K]           K = host - guest: the access does not wait for the entry
//! ```
//!
//! A misaligned access does not match. Where that happens often, the TB is emitted again (`tb/sites.rs`) with a probe that
//! lets it through: `add rax, size-1 ; and rax, !0xfff` is the page of the last byte. The entry is that of the first
//! byte's page, and no entry of one page lies where the next one's would be looked for, so an access over two never
//! matches. Cells of AMO, LR and SC must be aligned.
//!
//! An entry whose addend is not K carries OTHER and never matches, so the last line is right whenever it is reached. Where addresses
//! are translated, or K is no displacement, the last line is `mov rcx, [rbp + SET_ADDEND] ; mov dst, [base + rcx + imm]`, and
//! where they are translated, the index is one in the table of the regime: `add rcx, [rbp + TABLE_OFFSET]`. A site that often finds
//! OTHER is emitted again (`tb/sites.rs`), to let it through and to take the entry's own addend:
//! `xor rax, [rbp + rcx + comparator] ; test rax, !OTHER ; jne slow ; mov rcx, [rbp + rcx + addend] ; mov dst, [base + rcx + imm]`.
//!
//! There the access waits for the entry, so the way to it is short: the index is made from the base itself if nothing is added to it, and
//! `[rbp + TABLE_OFFSET]` is not added to it if rdx is free to hold that table (`mov rdx, [rbp + SET_TABLE]`).
//!
//! A load whose value is the next one's base does not even wait for that: see `guess.rs`.
//!
//! A check for several accesses keeps its entry's own addend in the context, if one of their sites was so learned, and they take it
//! from there: `mov rcx, [rbp + kept] ; mov dst, [base + rcx + imm]`. Where it is for two pages, both must have the same.
//!
//! Behind the TB a shared routine compares again: RAM with another addend, and stores beside code, need no Rust either
//! (`again.rs`). A store that often lies beside code is emitted again, and tests its line in front of the store, where no jump is
//! taken (behind the TB it would take two):
//!
//! ```text
//!          xor rax, comparator ; je store
//!          lea rdx, [base + imm] ; cmp rax, CODEPAGE ; jne other             that flag and no other: K is right, too
//!          mov rax, aux ; bt [rax], line ; jc code                           the `CodePage`'s mask
//!   store: …
//!
//!   other: xor rax, comparator ; jmp call
//!   code:  mov rax, comparator ; xor rax, CODEPAGE                           as the probe leaves it
//!   call:  test eax, site ; call routine
//! ```
use super::again::{Access, Look, routine};
use super::asm::{Assembler, Flag, Hole, Template};
use super::encode::{
    LEA, MOV, MOV_BYTE_TO, MOV_TO, MOVSX_BYTE, MOVSX_WORD, MOVSXD, MOVZX_BYTE, MOVZX_WORD, NARROW, Opcode, WIDE,
};
use super::offsets::{SET_ADDEND, SET_TABLE, TABLE, TABLE_OFFSET, float_off, kept_off};
use super::regs::{RAX, RCX, RDX};
use super::{Addend, Emitter};
use crate::engine::JitFlags;
use crate::ir::{FIRST_FLOAT, Ir, MemOp};
use crate::jit::SMALL_BITS;
use crate::tier2::HOST;
use dynasmrt::dynasm;
use notdirty_core::{LINE_BITS, PAGE_SIZE};
use notdirty_softmmu::MASK_OFFSET;
use notdirty_softmmu::tlb::entry::{
    ADDEND, AUX, BIAS, CODEPAGE, ENTRY_BITS, FLAGS, HASH_SHIFT, OTHER, READ, TLB_ENTRIES, WRITE,
};

/// In place of a base: the displacement is the whole address.
pub(super) const NOWHERE: u8 = u8::MAX;

/// A store whose check was done.
#[derive(Debug, Clone, Copy)]
struct Store {
    base: u8,
    imm: i32,
    bytes: u32,
    value: u8,
    addend: Taken,
}

/// The addend that an access takes behind its check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// That which is assumed of all.
    Assumed,
    /// The same; nothing was looked for.
    Whole,
    /// Its entry's own; rcx is the offset of that, still, from the first table.
    Entry,
    /// The same from the table in rdx.
    EntryOf,
    /// The same, guessed to be what this place has.
    Guessed(u8),
    /// That which its check kept here.
    Kept(u8),
}

impl Taken {
    /// Of an access that was checked before: see `Ir::kept`.
    pub(super) fn of(ir: &Ir) -> Taken {
        ir.kept().map_or(Taken::Assumed, Taken::Kept)
    }
}

/// What is behind a failed probe.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slow {
    from: Hole,
    /// Where it goes on.
    back: u32,
    /// Where a store that tests its line jumps if that has code.
    line: Option<Hole>,
    /// The address: host register, and what is added.
    imm: i32,
    site: u16,
    base: u8,
    /// The guest register loaded or stored.
    register: u8,
    access: Access,
    addend: Taken,
}

const SHIFT: i8 = (notdirty_core::PAGE_BITS - ENTRY_BITS) as i8;
const SMALL_INDEX: i32 = ((1 << SMALL_BITS) - 1) << ENTRY_BITS;
const INDEX: i32 = ((TLB_ENTRIES - 1) << ENTRY_BITS) as i32;

/// How a register is loaded, by `MemOp`.
const LOADS: [(u8, Opcode); 8] = [
    (NARROW, MOVZX_BYTE),
    (NARROW, MOVZX_WORD),
    (NARROW, MOV),
    (WIDE, MOV),
    (WIDE, MOVSX_BYTE),
    (WIDE, MOVSX_WORD),
    (WIDE, MOVSXD),
    (WIDE, MOV),
];

/// What follows the address of a probe, assembled once.
pub(super) struct Probes {
    /// Of physical addresses, and of translated ones.
    regimes: [Forms; 2],
    /// Behind a store's `beside`: jumps if the entry has another flag than CODEPAGE.
    flag: Template,
    /// Behind that, with the address in rdx: jumps if its line has code.
    line: Template,
    /// There, rax and rdx as they were.
    restore: Template,
}

/// The probes of one regime.
struct Forms {
    /// By direction and size.
    aligned: [Template; 8],
    /// The same for what may be misaligned.
    odd: [Template; 8],
    /// Both for entries with any addend, in the table that rdx has, or not; the index was begun.
    own: [[[Template; 8]; 2]; 2],
    /// Of aligned stores, by size, where code often lies beside: the zero flag is set if the entry has nothing more.
    beside: [Template; 4],
    /// Behind the address of the last byte of several accesses, once the entry of the first one's page was found: by direction, with the
    /// assumed addend and with any.
    page: [[Template; 2]; 2],
}

impl Forms {
    fn new(ops: &mut Assembler, flags: JitFlags, bmi2: bool) -> Forms {
        let beside = std::array::from_fn(|n| {
            ops.clear();
            begin_index(ops, flags, bmi2, RAX);
            end_index(ops, flags, false);
            dynasm!(ops; .arch x64
                ; and rax, DWORD !(FLAGS as i32) | ((1 << n) - 1)
                ; xor rax, [rbp + rcx + (TABLE + WRITE)]);
            ops.to_template()
        });
        let mut make = |look: bool, aligned: bool, own: bool, n: usize, held: bool| {
            ops.clear();
            if look && !own {
                begin_index(ops, flags, bmi2, RAX);
            }
            if look {
                end_index(ops, flags, held);
            }
            let more = (1 << (n & 3)) - 1;
            let mask = !(FLAGS as i32) | if aligned { more } else { 0 };
            if more != 0 && !aligned {
                dynasm!(ops; .arch x64; add rax, BYTE more as i8);
            }
            let comparator = if n < 4 { READ } else { WRITE };
            dynasm!(ops; .arch x64; and rax, DWORD mask);
            if held {
                dynasm!(ops; .arch x64; xor rax, [rdx + rcx + comparator]; test rax, DWORD !(OTHER as i32));
            } else if own {
                dynasm!(ops; .arch x64; xor rax, [rbp + rcx + (TABLE + comparator)]; test rax, DWORD !(OTHER as i32));
            } else {
                dynasm!(ops; .arch x64; cmp rax, [rbp + rcx + (TABLE + comparator)]);
            }
            ops.jump_if(Flag::NotEqual);
            ops.to_template()
        };
        Forms {
            aligned: std::array::from_fn(|n| make(true, true, false, n, false)),
            beside,
            odd: std::array::from_fn(|n| make(true, false, false, n, false)),
            own: [false, true]
                .map(|held| [true, false].map(|aligned| std::array::from_fn(|n| make(true, aligned, true, n, held)))),
            page: [false, true].map(|own| std::array::from_fn(|n| make(false, true, own, 4 * n, false))),
        }
    }

    fn of(&self, odd: bool, addend: Taken) -> &[Template; 8] {
        match addend {
            Taken::Entry => &self.own[0][usize::from(odd)],
            Taken::EntryOf | Taken::Guessed(_) => &self.own[1][usize::from(odd)],
            _ if odd => &self.odd,
            _ => &self.aligned,
        }
    }
}

/// By direction and log2 of the size.
fn slot(comparator: i32, bytes: u32) -> usize {
    (bytes.trailing_zeros() as usize & 3) | if comparator == READ { 0 } else { 4 }
}

impl Probes {
    pub(super) fn new(flags: JitFlags, bmi2: bool) -> Probes {
        let mut ops = Assembler::new();
        let regimes =
            [flags, JitFlags { base_register: false, ..flags }].map(|flags| Forms::new(&mut ops, flags, bmi2));
        ops.clear();
        dynasm!(ops; .arch x64; cmp rax, DWORD CODEPAGE as i32);
        ops.jump_if(Flag::NotEqual);
        let flag = ops.to_template();
        ops.clear();
        dynasm!(ops; .arch x64
            ; mov rax, [rbp + rcx + (TABLE + AUX)]
            ; ror rdx, LINE_BITS as i8
            ; mov rax, [BYTE rax + MASK_OFFSET as i8]
            ; bt rax, rdx);
        ops.jump_if(Flag::Below);
        let line = ops.to_template();
        ops.clear();
        dynasm!(ops; .arch x64
            ; rol rdx, LINE_BITS as i8
            ; mov rax, [rbp + rcx + (TABLE + WRITE)]
            ; xor rax, BYTE CODEPAGE as i8);
        let restore = ops.to_template();
        Probes { regimes, flag, line, restore }
    }
}

/// The bits of an entry's offset.
fn index_mask(flags: JitFlags) -> i32 {
    if flags.big_tlb { INDEX } else { SMALL_INDEX }
}

/// From an address, biased if the index is hashed, the bits of its entry's offset in ecx, and others.
pub(super) fn begin_index(ops: &mut Assembler, flags: JitFlags, bmi2: bool, from: u8) {
    if !flags.plain_index {
        dynasm!(ops; .arch x64
            ; mov ecx, Rd(from)
            ; shr ecx, BYTE HASH_SHIFT as i8
            ; xor ecx, Rd(from)
            ; shr ecx, SHIFT);
    } else if bmi2 {
        dynasm!(ops; .arch x64; rorx ecx, Rd(from), SHIFT);
    } else {
        dynasm!(ops; .arch x64; mov ecx, Rd(from); shr ecx, SHIFT);
    }
}

/// Its entry's offset in rcx, from the first table or in the one that rdx is made to hold.
pub(super) fn end_index(ops: &mut Assembler, flags: JitFlags, held: bool) {
    if held {
        dynasm!(ops; .arch x64; mov rdx, [rbp + SET_TABLE]);
    }
    dynasm!(ops; .arch x64; and ecx, DWORD index_mask(flags));
    if !flags.base_register && !held {
        dynasm!(ops; .arch x64; add rcx, [BYTE rbp + TABLE_OFFSET as i8]);
    }
}

impl Emitter {
    /// Leaves the entry's offset in rcx; the base register survives. Returned is where it jumps when it fails.
    #[inline(always)]
    fn probe(&mut self, (base, imm): (u8, i32), site: u16, bytes: u32, comparator: i32, addend: Taken) -> Hole {
        let odd = self.learned && self.known.odd.has(site);
        self.probe_as((base, imm), bytes, comparator, odd, addend)
    }

    /// The addend that an access of a site takes, off a base register.
    #[inline(always)]
    fn taken(&self, site: u16, base: u8) -> Taken {
        match self.learned && self.known.elsewhere.has(site) {
            true if self.translated && base != RDX => Taken::EntryOf,
            true => Taken::Entry,
            false => Taken::Assumed,
        }
    }

    #[inline(always)]
    fn probe_as(&mut self, (base, imm): (u8, i32), bytes: u32, comparator: i32, odd: bool, addend: Taken) -> Hole {
        self.ops.far(WIDE, LEA, RAX, base, imm + BIAS as i32);
        if addend != Taken::Assumed {
            let from = if imm == 0 && self.flags.plain_index { base } else { RAX };
            begin_index(&mut self.ops, self.flags, self.bmi2, from);
        }
        let probes = self.probes.regimes[usize::from(self.translated)].of(odd, addend);
        self.ops.template(&probes[slot(comparator, bytes)]);
        self.ops.hole()
    }

    /// The same for a store that often lies beside code; and where it jumps if its line has some. Its address is in rdx. The mask is
    /// tested before the store, without a fence, as halves are there (`again.rs`): no line is announced but by a RMW of the mask.
    fn probe_beside(&mut self, (base, imm): (u8, i32), bytes: u32) -> (Hole, Hole) {
        self.ops.far(WIDE, LEA, RAX, base, imm + BIAS as i32);
        let forms = &self.probes.regimes[usize::from(self.translated)];
        self.ops.template(&forms.beside[bytes.trailing_zeros() as usize & 3]);
        let store = self.ops.new_label();
        dynasm!(self.ops; .arch x64; jz BYTE =>store);
        self.ops.near(WIDE, LEA, RDX, base, imm);
        self.ops.template(&self.probes.flag);
        let from = self.ops.hole();
        self.ops.template(&self.probes.line);
        let code = self.ops.hole();
        dynasm!(self.ops; .arch x64; =>store);
        (from, code)
    }

    /// The same for an aligned cell at the base itself, of four bytes or eight; with any addend, if its entry is asked for its `own`.
    pub(super) fn probe_aligned(&mut self, base: u8, bytes: u32, comparator: i32, own: bool) -> Hole {
        self.probe_sized(base, 0, bytes, comparator, own)
    }

    /// The same for an aligned access of so many bytes.
    pub(super) fn probe_sized(&mut self, base: u8, imm: i32, bytes: u32, comparator: i32, own: bool) -> Hole {
        let addend = if own { Taken::Entry } else { Taken::Assumed };
        self.probe_as((base, imm), bytes, comparator, false, addend)
    }

    /// The same for the first byte of several accesses.
    pub(super) fn probe_first(&mut self, base: u8, imm: i32, comparator: i32, own: bool) -> Hole {
        self.probe_sized(base, imm, 1, comparator, own)
    }

    /// The same for a byte at a constant address.
    pub(super) fn probe_constant(&mut self, address: u64, comparator: i32) -> Hole {
        if !self.flags.plain_index || !self.flags.base_register || self.translated {
            self.constant(RDX, address as i64);
            return self.probe_first(RDX, 0, comparator, false);
        }
        let biased = address.wrapping_add(BIAS);
        let entry = (biased as u32).rotate_right(SHIFT as u32) as i32 & index_mask(self.flags);
        self.constant(RAX, (biased & !FLAGS) as i64);
        dynasm!(self.ops; .arch x64; cmp rax, [rbp + (TABLE + comparator + entry)]);
        self.ops.jump_if(Flag::NotEqual)
    }

    /// The same for several accesses, from the first byte to the last, less than a page away: the entry is that of the first one's page,
    /// and must be of the last one's. No entry of one page lies where the next one's would be looked for.
    pub(super) fn probe_span(&mut self, base: u8, (first, last): (i32, i32), comparator: i32, own: bool) -> Hole {
        let from = if first == 0 && self.flags.plain_index {
            base
        } else {
            self.ops.far(WIDE, LEA, RAX, base, first + BIAS as i32);
            RAX
        };
        begin_index(&mut self.ops, self.flags, self.bmi2, from);
        end_index(
            &mut self.ops,
            JitFlags { base_register: self.flags.base_register && !self.translated, ..self.flags },
            false,
        );
        self.ops.far(WIDE, LEA, RAX, base, last + BIAS as i32);
        let probes = &self.probes.regimes[usize::from(self.translated)].page[usize::from(own)];
        self.ops.template(&probes[usize::from(comparator != READ)]);
        self.ops.hole()
    }

    /// Keeps the addend of the entry that was probed.
    pub(super) fn keep_addend(&mut self, slot: u8) {
        dynasm!(self.ops; .arch x64; mov rax, [rbp + rcx + (TABLE + ADDEND)]; mov [rbp + kept_off(slot)], rax);
    }

    /// Has the entry that was probed the addend that is kept?
    pub(super) fn compare_addend(&mut self, slot: u8) -> Hole {
        dynasm!(self.ops; .arch x64; mov rax, [rbp + rcx + (TABLE + ADDEND)]; cmp rax, [rbp + kept_off(slot)]);
        self.ops.jump_if(Flag::NotEqual)
    }

    /// Is there an addend in rcx, and what is the displacement beside it? host address = base + rcx + displacement.
    pub(super) fn host_address(&mut self, imm: i32, addend: Taken) -> (bool, i32) {
        match (addend, self.addend) {
            (Taken::Kept(slot), _) => dynasm!(self.ops; .arch x64; mov rcx, [rbp + kept_off(slot)]),
            (Taken::EntryOf | Taken::Guessed(_), _) => dynasm!(self.ops; .arch x64; mov rcx, [rdx + rcx + ADDEND]),
            (Taken::Assumed, Addend::Flat(k)) => return (false, k + imm),
            (Taken::Assumed, Addend::Set) => dynasm!(self.ops; .arch x64; mov rcx, [rbp + SET_ADDEND]),
            _ => dynasm!(self.ops; .arch x64; mov rcx, [rbp + rcx + (TABLE + ADDEND)]),
        }
        (true, imm)
    }

    /// rax as it was before the entry's comparator was mixed into it.
    pub(super) fn unmix(&mut self, comparator: i32) {
        dynasm!(self.ops; .arch x64; xor rax, [rbp + rcx + (TABLE + comparator)]);
    }

    /// The way round, to here: the slow path writes a loaded register where it lives.
    #[inline(always)]
    fn slow(
        &mut self,
        (from, line): (Hole, Option<Hole>),
        ir: &Ir,
        access: Access,
        base: u8,
        register: u8,
        addend: Taken,
    ) {
        let (back, imm, site) = (self.here(), ir.imm as i32, ir.site);
        self.slow.push(Slow { from, back, line, imm, site, base, register, access, addend });
    }

    /// Does it test the mask in front of the store? Where that was learned to be worth its bytes, and can be: the
    /// base must survive in its register, the addend be the flat one, and the bytes lie in one line, which an address has in common with its place in RAM.
    #[inline(always)]
    fn tests_line(&self, base: u8, site: u16, bytes: u32) -> bool {
        self.learned && self.learned_line(base, site, bytes)
    }

    fn learned_line(&self, base: u8, site: u16, bytes: u32) -> bool {
        let flat = match self.addend {
            Addend::Flat(k) => (k as u64).is_multiple_of(PAGE_SIZE) && !self.known.elsewhere.has(site),
            Addend::Set => !self.known.elsewhere.has(site),
            Addend::Entry => false,
        };
        flat && self.known.beside.has(site) && base != RDX && (bytes == 1 || !self.known.odd.has(site))
    }

    /// Behind a failed probe: the shared routine for this access, which asks Rust if it must. See `again.rs`.
    pub(super) fn slow_part(&mut self, n: usize) {
        // Field by field, each loaded as it was stored.
        let Slow { from, back, line, imm, site, base, register, access, addend } = self.slow[n];
        self.ops.close(from);
        if matches!(addend, Taken::EntryOf | Taken::Guessed(_)) {
            dynasm!(self.ops; .arch x64; add rcx, [BYTE rbp + TABLE_OFFSET as i8]);
        }
        if !matches!(addend, Taken::Assumed | Taken::Whole) {
            self.unmix(if access.loads() { READ } else { WRITE });
        }
        match line {
            None if imm == 0 && base == RDX => {}
            None => self.ops.near(WIDE, LEA, RDX, base, imm),
            Some(code) => {
                self.unmix(WRITE);
                let call = self.ops.jump();
                self.ops.close(code);
                self.ops.template(&self.probes.restore);
                self.ops.close(call);
            }
        }
        let look = match (addend == Taken::Whole, self.translated) {
            (false, _) => Look::Done,
            (true, false) => Look::First,
            (true, true) => Look::Set,
        };
        let target = routine(self.thunks.again, access, register, self.map.host(register), look);
        self.ask_again(target, site, Some(back));
    }

    #[inline(never)]
    pub(super) fn load(&mut self, ir: &Ir, mem: MemOp) {
        let imm = ir.imm as i32;
        let base = self.source(ir.a, RDX);
        let addend = self.guessed(self.taken(ir.site, base), ir.site);
        if let Some(whole) = self.whole_at(addend, ir.site) {
            let from = self.probe_whole(base, imm, whole);
            self.load_at(base, ir, mem, addend);
            return self.slow((from, None), ir, Access::load(mem), base, ir.rd, Taken::Whole);
        }
        let from = self.probe((base, imm), ir.site, mem.bytes(), READ, addend);
        match addend {
            Taken::Guessed(slot) => self.load_guessed(base, ir, mem, slot),
            _ => self.load_at(base, ir, mem, addend),
        }
        self.slow((from, None), ir, Access::load(mem), base, ir.rd, addend);
    }

    /// The load itself, once it was checked.
    #[inline(always)]
    pub(super) fn load_at(&mut self, base: u8, ir: &Ir, mem: MemOp, addend: Taken) {
        let (indexed, disp) = self.host_address(ir.imm as i32, addend);
        self.load_into(ir.rd, mem, base, indexed.then_some((RCX, 0)), disp);
    }

    /// Loads from host memory: `base + disp`, and maybe an index, shifted.
    #[inline(always)]
    pub(super) fn load_into(&mut self, rd: u8, mem: MemOp, base: u8, index: Option<(u8, u8)>, disp: i32) {
        // What is loaded into x0 is loaded, and forgotten.
        let d = if rd == 0 { RAX } else { self.target(rd, RAX) };
        let (width, op) = LOADS[usize::from(mem.0 & 7)];
        match index {
            None if base == NOWHERE => self.ops.absolute(width, op, d, disp),
            None => self.ops.far(width, op, d, base, disp),
            Some(index) => self.ops.indexed(width, op, d, base, index, disp),
        }
        if rd != 0 {
            self.done(rd, d);
        }
    }

    /// A store whose check was done.
    pub(super) fn store_at(&mut self, base: u8, ir: &Ir, mem: MemOp, addend: Taken) {
        self.store_to_ram(Store { base, imm: ir.imm as i32, bytes: mem.bytes(), value: ir.b, addend });
    }

    #[inline(never)]
    pub(super) fn store(&mut self, ir: &Ir, mem: MemOp) {
        let imm = ir.imm as i32;
        let base = self.source(ir.a, RDX);
        let addend = self.taken(ir.site, base);
        let (from, line) = if self.tests_line(base, ir.site, mem.bytes()) {
            let (from, code) = self.probe_beside((base, imm), mem.bytes());
            (from, Some(code))
        } else {
            (self.probe((base, imm), ir.site, mem.bytes(), WRITE, addend), None)
        };
        self.store_at(base, ir, mem, addend);
        self.slow((from, line), ir, Access::store(mem.bytes()), base, ir.b, addend);
    }

    /// The store itself; rax and rcx are lost.
    #[inline(always)]
    fn store_to_ram(&mut self, Store { base, imm, bytes, value, addend }: Store) {
        let (indexed, disp) = self.host_address(imm, addend);
        self.store_into((base, indexed), disp, value, bytes);
    }

    /// Stores to host memory: `base + disp`, and maybe rcx more.
    #[inline(always)]
    pub(super) fn store_into(&mut self, (base, indexed): (u8, bool), disp: i32, value: u8, bytes: u32) {
        if value == 0 {
            macro_rules! zero {
                ($size:ident) => {
                    if indexed {
                        dynasm!(self.ops; .arch x64; mov $size [Rq(base) + rcx + disp], 0)
                    } else if base == NOWHERE {
                        dynasm!(self.ops; .arch x64; mov $size [disp], 0)
                    } else {
                        dynasm!(self.ops; .arch x64; mov $size [Rq(base) + disp], 0)
                    }
                };
            }
            match bytes {
                1 => zero!(BYTE),
                2 => zero!(WORD),
                4 => zero!(DWORD),
                _ => zero!(QWORD),
            }
            return;
        }
        let value = if (FIRST_FLOAT..HOST).contains(&value) && bytes == 4 {
            // As wide as it was stored a moment ago, or the load waits.
            dynasm!(self.ops; .arch x64; mov eax, [rbp + float_off(value)]);
            RAX
        } else {
            self.source(value, RAX)
        };
        if bytes == 2 {
            // The prefix for two bytes.
            self.ops.push(0x66);
        }
        let width = if bytes == 8 { WIDE } else { NARROW };
        let op = if bytes == 1 { MOV_BYTE_TO } else { MOV_TO };
        if indexed {
            self.ops.indexed(width, op, value, base, (RCX, 0), disp);
        } else if base == NOWHERE {
            self.ops.absolute(width, op, value, disp);
        } else {
            self.ops.far(width, op, value, base, disp);
        }
    }
}

const _: () = assert!(RCX == 1, "probe and host_address name rcx");
const _: () = assert!(MASK_OFFSET >= 0 && MASK_OFFSET < 0x80 && CODEPAGE < 0x80, "one byte each");
