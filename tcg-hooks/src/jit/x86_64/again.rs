//! Behind a failed probe, before Rust is asked: small routines that all TBs share, one for each kind of access and each
//! place of its value.
//!
//! ```text
//!   stub, behind the TB:  lea rdx, [base + imm] ; test eax, site ; call routine ; jmp back
//!   one that looked for no entry:  looks for it, and goes on as
//!   routine:  comparator equal but for OTHER ──────────▶ the access at rdx + the entry's addend ; ret     (one of many: site)
//!             store, equal but for LINES too ──────────▶ a routine of its size notes the line (core's dirty/lines.rs), then the same
//!             store, equal but for CODEPAGE (and OTHER) ─▶ no code in these halfwords: the same,
//!                                              but for one of many (`tb/sites.rs`)
//!             anything else ──────────────────────────▶ eax = site, read from the stub ; jmp site
//! ```
//!
//! rax still holds what was compared and rcx the entry's offset, so the stub names its site in an instruction that does
//! nothing, in front of the call. A region with a map of its own sets the number's top bit: it must move its registers
//! before Rust may see them, so its routine returns, with the zero flag clear.
//!
//! The halves are tested before the store, without a fence: whoever announces some re-arms this vCPU and compares the
//! bytes once that was served (CODE-1), so a store that was past the test by then is seen there.
use super::asm::{Assembler, Flag, Label};
use super::encode::{LEA, WIDE};
use super::mem::{begin_index, end_index};
use super::offsets::{BESIDE, ELSEWHERE, NOTED_ALONE, NOTED_END, NOTED_TOP, TABLE, float_off};
use super::regs::{PINS, RAX, RDX};
use super::{Emitter, LOCAL_BITS, off};
use crate::engine::JitFlags;
use crate::ir::{FIRST_FLOAT, Ir, Kind, MemOp};
use crate::jit::code_cache::CodeOffset;
use dynasmrt::dynasm;
use notdirty_core::LINE_BITS;
use notdirty_softmmu::tlb::entry::{ADDEND, AUX, BIAS, CODEPAGE, FLAGS, LINES, OTHER, READ, WRITE};
use notdirty_softmmu::{HALVES_OFFSET, NOTED_OFFSET, NOTED_STORES, STORES_OFFSET, WRITTEN_OFFSET};

/// Bytes from one routine to the next, at least as many as the longest has.
const STRIDE: usize = 128;
/// From a load's routine to where it begins for those that did not look for an entry, in machine mode's table or in the regime's.
const LOOK: usize = 72;
const LOOK_IN_SET: usize = 96;
/// Places of a value: each guest register in memory, each host register that one may live in, by its number; then the
/// floating-point registers.
const PLACES: usize = FLOATS + 32;
const FLOATS: usize = 32 + 16;
/// Loads by `MemOp`, but that all of eight bytes are one, then stores by size.
const KINDS: usize = LOADS + 4;
const LOADS: usize = 7;
/// Those that only find the host address, behind all others.
const RESOLVE: usize = 1 + KINDS * PLACES;
/// What OTHER and LINES ask of a store, by the logarithm of its size.
const FLAGGED: usize = RESOLVE + 3;
/// Bytes from one of them to the next.
const WIDE_STRIDE: usize = 256;
/// What looks, in machine mode's table and then in the regime's, by the logarithm of a load's size.
const LOOKS: usize = FLAGGED * STRIDE + 4 * WIDE_STRIDE;
/// Bytes from one of them to the next.
const LOOK_STRIDE: usize = 64;
/// Bytes of them all.
pub(super) const LEN: usize = LOOKS + 8 * LOOK_STRIDE;
/// Set in the number of a site whose stub has more to do before Rust is called.
pub(super) const MOVED: u32 = 1 << 31;

/// What a failed probe was for: one of `KINDS`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Access(u8);

impl Access {
    #[inline(always)]
    pub(super) fn load(mem: MemOp) -> Access {
        let kind = mem.0 & 7;
        // Of eight bytes no sign is extended.
        Access(if kind == LOADS as u8 { 3 } else { kind })
    }

    #[inline(always)]
    pub(super) fn store(bytes: u32) -> Access {
        Access((LOADS as u32 + (bytes.trailing_zeros() & 3)) as u8)
    }

    pub(super) fn loads(self) -> bool {
        usize::from(self.0) < LOADS
    }
}

/// Has a load looked for the entry?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    Done,
    /// It has yet to look, in machine mode's table.
    First,
    /// In that of the regime.
    Set,
}

/// The place of the routine for a value that lives in `host`, or in memory as `guest`.
#[inline(always)]
pub(super) fn routine(first: CodeOffset, Access(kind): Access, guest: u8, host: Option<u8>, look: Look) -> CodeOffset {
    let memory = if guest < FIRST_FLOAT { guest } else { FLOATS as u8 + (guest & 31) };
    let place = host.map_or(memory, |host| 32 + (host & 15));
    let (kind, place) = (CodeOffset::from(kind), CodeOffset::from(place));
    let look = match look {
        Look::Done => 0,
        Look::First => LOOK as CodeOffset,
        Look::Set => LOOK_IN_SET as CodeOffset,
    };
    first + (1 + kind * PLACES as CodeOffset + place) * STRIDE as CodeOffset + look
}

/// The routine that finds an aligned cell's host address: to rdx, with the zero flag set; or it is not to be had without
/// Rust, and the flag is clear.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resolve(usize);

impl Resolve {
    pub(super) fn new(store: bool, mem: MemOp) -> Resolve {
        Resolve(if store { 1 + usize::from(mem.bytes() == 8) } else { 0 })
    }

    pub(super) fn place(self, first: CodeOffset) -> CodeOffset {
        first + ((RESOLVE + self.0) * STRIDE) as CodeOffset
    }
}

impl Emitter {
    /// Calls a routine for an access to the guest address in rdx, and goes on there, or right behind.
    #[inline(always)]
    pub(super) fn ask_again(&mut self, routine: CodeOffset, site: u16, back: Option<u32>) {
        let moved = self.moves_at_borders();
        let number = self.tb << LOCAL_BITS | u32::from(site) | if moved { MOVED } else { 0 };
        // test eax, number; call
        let call = 0xa9 | u64::from(number) << 8 | 0xe8 << 40;
        let field = self.here() + 6;
        self.externals.push((field, routine));
        if moved {
            self.ops.put_two([call, 0], 10);
            let done = self.ops.jump_if(Flag::Equal);
            self.execute_site(site);
            self.ops.close(done);
            if let Some(back) = back {
                self.ops.jump_to(back);
            }
        } else if let Some(back) = back {
            // jmp
            let distance = back.wrapping_sub(field + 9);
            self.ops.put_two([call, 0xe9 << 16 | u64::from(distance) << 24], 15);
        } else {
            self.ops.put_two([call, 0], 10);
        }
    }

    /// A load or store by its routine alone: in few bytes, where it is seldom come to. Not so, and nothing is emitted, for other ops, and
    /// where something was learned of the TB's accesses.
    pub(super) fn by_routine(&mut self, ir: &Ir) -> bool {
        let (access, register, bytes) = match ir.kind {
            Kind::Load(mem) => (Access::load(mem), ir.rd, mem.bytes()),
            Kind::Store(mem) => (Access::store(mem.bytes()), ir.b, mem.bytes()),
            _ => return false,
        };
        if self.learned {
            return false;
        }
        let base = self.source(ir.a, RDX);
        if (base, ir.imm as i32) != (RDX, 0) {
            self.ops.near(WIDE, LEA, RDX, base, ir.imm as i32);
        }
        let look = match (access.loads(), self.translated) {
            (true, false) => Look::First,
            (true, true) => Look::Set,
            (false, own_set) => {
                dynasm!(self.ops; .arch x64; .u8 0xe8);
                self.external(looks(self.thunks.again, bytes, own_set));
                Look::Done
            }
        };
        self.ask_again(routine(self.thunks.again, access, register, self.map.host(register), look), ir.site, None);
        true
    }
}

/// Is that offset one of those that look for an entry?
pub(super) fn only_looks(first: CodeOffset, at: u64) -> bool {
    at >= u64::from(first) + LOOKS as u64
}

/// What looks for the entry of so many bytes from the guest address in rdx, in machine mode's table or in the regime's.
fn looks(first: CodeOffset, bytes: u32, own_set: bool) -> CodeOffset {
    let n = (bytes.trailing_zeros() as usize & 3) + if own_set { 4 } else { 0 };
    first + (LOOKS + n * LOOK_STRIDE) as CodeOffset
}

/// Assembles all of them, for offset `first` of the code cache, with thunk `site` at its offset.
pub(super) fn assemble(first: CodeOffset, site: CodeOffset, flags: JitFlags) -> Vec<u8> {
    let mut ops = Assembler::new();
    let out = ops.new_label();
    // The stub's `test eax, imm32` and `call rel32` are five bytes each.
    dynasm!(ops; .arch x64
        ; =>out
        ; mov rcx, [rsp]
        ; mov eax, [rcx - 9]
        ; test eax, eax
        ; .u8 0x0f; .u8 0x89); // jns site
    let behind = first + ops.here() + 4;
    dynasm!(ops; .arch x64; .i32 site.wrapping_sub(behind) as i32; ret);
    let mut hosts = PINS.map(|(_, host)| (32 + usize::from(host), host));
    hosts.sort_unstable();
    let flagged = [(); 4].map(|()| ops.new_label());
    let looks = [(); 8].map(|()| ops.new_label());
    for kind in 0..KINDS {
        let memory = (0..32).map(|guest| (guest, RAX));
        let floats = (0..32).map(|n| (FLOATS + n, RAX));
        for (place, host) in memory.chain(hosts).chain(floats) {
            let start = (1 + kind * PLACES + place) * STRIDE;
            assert!(ops.here() as usize <= start, "a routine is shorter than the stride");
            ops.skip_to(start);
            let guest = match place {
                0..32 => Some(place as u8),
                FLOATS.. => Some(FIRST_FLOAT + (place - FLOATS) as u8),
                _ => None,
            };
            if kind < LOADS {
                let body = ops.new_label();
                dynasm!(ops; .arch x64; =>body);
                load(&mut ops, MemOp(kind as u8), guest, host, out);
                ops.skip_to(start + LOOK);
                let size = MemOp(kind as u8).bytes().trailing_zeros() as usize & 3;
                dynasm!(ops; .arch x64; call =>looks[size]; jmp =>body);
                ops.skip_to(start + LOOK_IN_SET);
                // Every so many go `out`, to be told of.
                dynasm!(ops; .arch x64; dec DWORD [rbp + ELSEWHERE]; js =>out; call =>looks[4 + size]; jmp =>body);
            } else {
                store(&mut ops, kind - LOADS, guest, host, (flagged[kind - LOADS], out));
            }
        }
    }
    for n in 0..3 {
        let out = ops.new_label();
        ops.skip_to((RESOLVE + n) * STRIDE);
        match n {
            0 => resolve_load(&mut ops, out),
            _ => {
                let rest = resolve_store(&mut ops, 2 << n, false, out);
                dynasm!(ops; .arch x64; ret);
                ask_flags(&mut ops, rest, (flagged[n + 1], out));
            }
        }
        dynasm!(ops; .arch x64; ret);
        dynasm!(ops; .arch x64; =>out; test rsp, rsp; ret);
    }
    for (n, start) in flagged.into_iter().enumerate() {
        ops.skip_to(FLAGGED * STRIDE + n * WIDE_STRIDE);
        flagged_store(&mut ops, 1 << n, start);
    }
    for (n, start) in looks.into_iter().enumerate() {
        ops.skip_to(LOOKS + n * LOOK_STRIDE);
        dynasm!(ops; .arch x64; =>start);
        let base_register = flags.base_register && n < 4;
        look(&mut ops, JitFlags { base_register, ..flags }, 1 << (n & 3));
        dynasm!(ops; .arch x64; ret);
    }
    assert!(ops.here() as usize <= LEN, "the last is no longer than the stride");
    ops.skip_to(LEN);
    ops.finish();
    ops.code().to_vec()
}

/// From a guest address in rdx, what a probe of so many bytes leaves in rax and rcx.
fn look(ops: &mut Assembler, flags: JitFlags, bytes: u32) {
    dynasm!(ops; .arch x64; lea rax, [rdx + BIAS as i32]);
    begin_index(ops, flags, false, RAX);
    end_index(ops, flags, false);
    dynasm!(ops; .arch x64; and rax, DWORD !(FLAGS as i32) | (bytes - 1) as i32);
}

/// From a guest address in rdx to its host address, with the zero flag set; or `out`, with it clear or a site to come.
fn resolve_load(ops: &mut Assembler, out: Label) {
    let near = ops.new_label();
    dynasm!(ops; .arch x64
        ; xor rax, [rbp + rcx + (TABLE + READ)]
        ; test rax, DWORD !(OTHER as i32)
        ; jnz =>out
        ; add rdx, [rbp + rcx + (TABLE + ADDEND)]
        // Every so many with another addend go `out`.
        ; test al, BYTE OTHER as u8 as i8
        ; jz BYTE =>near
        ; dec DWORD [rbp + ELSEWHERE]
        ; js =>out
        ; =>near
        ; cmp eax, eax);
}

/// What OTHER and LINES ask of a store that comes from the first label, and goes on at the second.
fn ask_flags(ops: &mut Assembler, (from, back): (Label, Label), (flagged, out): (Label, Label)) {
    dynasm!(ops; .arch x64; =>from; call =>flagged; jnc BYTE =>back; jmp =>out);
}

/// The same for a store; if they are counted, every so many beside code go `out`. What `ask_flags` is to join.
fn resolve_store(ops: &mut Assembler, bytes: u32, counted: bool, out: Label) -> (Label, Label) {
    let (go, from, back) = (ops.new_label(), ops.new_label(), ops.new_label());
    dynasm!(ops; .arch x64
        ; xor rax, [rbp + rcx + (TABLE + WRITE)]
        ; test rax, DWORD !((OTHER | CODEPAGE | LINES) as i32)
        ; jnz =>out
        ; add rdx, [rbp + rcx + (TABLE + ADDEND)]
        // Most come for CODEPAGE, and take no jump.
        ; test al, BYTE (OTHER | LINES) as u8 as i8
        ; jnz BYTE =>from
        ; =>back
        ; test al, BYTE CODEPAGE as i8
        ; jz BYTE =>go
        ; mov rax, [rbp + rcx + (TABLE + AUX)]
        ; mov ecx, edx
        ; shr ecx, 4
        ; movzx ecx, cl
        ; mov eax, [rax + rcx + HALVES_OFFSET]
        ; mov ecx, edx
        ; shr ecx, 1
        ; and ecx, 7
        ; shr eax, cl
        ; test al, ((1 << bytes.div_ceil(2)) - 1) as i8
        ; jnz =>out);
    if counted {
        dynasm!(ops; .arch x64; dec DWORD [rbp + BESIDE]; js =>out);
    }
    if bytes > 1 {
        // From an odd address on it is a half more.
        dynasm!(ops; .arch x64
            ; test dl, 1
            ; jz BYTE =>go
            ; test al, 1 << (bytes / 2)
            ; jnz =>out);
    } else {
        dynasm!(ops; .arch x64; cmp eax, eax);
    }
    dynasm!(ops; .arch x64; =>go);
    (from, back)
}

/// What is asked of a store to the host address in rdx through the entry at rcx, with these flags in al: every so many with another
/// addend are Rust's, with the carry flag set, and a line is noted. All but flags survives.
fn flagged_store(ops: &mut Assembler, bytes: u32, start: Label) {
    let [lines, done, rust] = [(); 3].map(|()| ops.new_label());
    dynasm!(ops; .arch x64
        ; =>start
        ; test al, BYTE OTHER as u8 as i8
        ; jz BYTE =>lines
        ; dec DWORD [rbp + ELSEWHERE]
        ; js =>rust
        ; =>lines
        ; test al, BYTE LINES as i8
        ; jz =>done);
    note_line(ops, bytes, rust);
    dynasm!(ops; .arch x64; =>done; clc; ret; =>rust; stc; ret);
}

/// Notes the line of a store; rax, rcx and rdx survive. `rust` if nothing was noted.
fn note_line(ops: &mut Assembler, bytes: u32, rust: Label) {
    let [go, back, shared, rare, out, noted] = [(); 6].map(|()| ops.new_label());
    let (written, stores) = (NOTED_OFFSET + WRITTEN_OFFSET, NOTED_OFFSET + STORES_OFFSET);
    dynasm!(ops; .arch x64; push rax; push rcx; mov rax, [rbp + rcx + (TABLE + AUX)]);
    if bytes > 1 {
        // Over two lines, which is rare.
        dynasm!(ops; .arch x64
            ; mov ecx, edx
            ; and ecx, 63
            ; cmp ecx, (64 - bytes) as i32
            ; ja =>out);
    }
    dynasm!(ops; .arch x64
        ; mov ecx, [BYTE rax + stores as i8]
        ; dec ecx
        ; cmp ecx, (NOTED_STORES - 2) as i32
        ; ja =>rare
        ; =>go
        ; inc DWORD [BYTE rax + stores as i8]
        ; ror rdx, LINE_BITS as i8
        ; mov rcx, [BYTE rax + written as i8]
        ; bts rcx, rdx
        ; jc BYTE =>back
        ; cmp BYTE [rbp + NOTED_ALONE], 0
        ; je BYTE =>shared
        ; mov [BYTE rax + written as i8], rcx
        ; =>back
        ; rol rdx, LINE_BITS as i8
        ; pop rcx
        ; pop rax
        ; jmp =>noted
        ; =>shared
        ; lock or [BYTE rax + written as i8], rcx
        ; jmp BYTE =>back
        ; =>rare
        ; inc ecx
        ; jnz =>out
        ; mov rcx, [rbp + NOTED_TOP]
        ; cmp rcx, [rbp + NOTED_END]
        ; jae =>out
        ; mov [rcx], rax
        ; add rcx, BYTE 8
        ; mov [rbp + NOTED_TOP], rcx
        ; jmp =>go
        ; =>out
        ; pop rcx
        ; pop rax
        ; jmp =>rust
        ; =>noted);
}

fn load(ops: &mut Assembler, mem: MemOp, guest: Option<u8>, d: u8, out: Label) {
    resolve_load(ops, out);
    match (mem.bytes(), mem.signed()) {
        (1, true) => dynasm!(ops; .arch x64; movsx Rq(d), BYTE [rdx]),
        (1, false) => dynasm!(ops; .arch x64; movzx Rd(d), BYTE [rdx]),
        (2, true) => dynasm!(ops; .arch x64; movsx Rq(d), WORD [rdx]),
        (2, false) => dynasm!(ops; .arch x64; movzx Rd(d), WORD [rdx]),
        (4, true) => dynasm!(ops; .arch x64; movsxd Rq(d), DWORD [rdx]),
        (4, false) => dynasm!(ops; .arch x64; mov Rd(d), [rdx]),
        _ => dynasm!(ops; .arch x64; mov Rq(d), [rdx]),
    }
    match guest {
        None | Some(0) => {}
        Some(guest @ FIRST_FLOAT..) => dynasm!(ops; .arch x64; mov [rbp + float_off(guest)], rax),
        Some(guest) => dynasm!(ops; .arch x64; mov [rbp + off(guest)], rax),
    }
    dynasm!(ops; .arch x64; ret);
}

fn store(ops: &mut Assembler, size: usize, guest: Option<u8>, value: u8, to: (Label, Label)) {
    let rest = resolve_store(ops, 1 << size, true, to.1);
    match guest {
        Some(0) => dynasm!(ops; .arch x64; mov eax, DWORD 0),
        Some(guest @ FIRST_FLOAT..) => dynasm!(ops; .arch x64; mov rax, [rbp + float_off(guest)]),
        Some(guest) => dynasm!(ops; .arch x64; mov rax, [rbp + off(guest)]),
        None => {}
    }
    match size {
        0 => dynasm!(ops; .arch x64; mov [rdx], Rb(value)),
        1 => dynasm!(ops; .arch x64; mov [rdx], Rw(value)),
        2 => dynasm!(ops; .arch x64; mov [rdx], Rd(value)),
        _ => dynasm!(ops; .arch x64; mov [rdx], Rq(value)),
    }
    dynasm!(ops; .arch x64; ret);
    ask_flags(ops, rest, to);
}

const _: () = assert!(CODEPAGE < 0x80 && LINES < 0x80, "one byte each");
const _: () = assert!(NOTED_OFFSET + STORES_OFFSET < 0x80 && NOTED_STORES > 2 && NOTED_STORES < 0x80, "one byte each");
