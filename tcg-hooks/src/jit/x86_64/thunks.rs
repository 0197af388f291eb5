//! The few pieces of host code that all TBs share: in, out, and over to Rust.
//!
//! ```text
//!   enter(context, code)   saves the host's registers, loads pins and budget, jumps to code
//!                          and the flags of floating point; Rust's own that it raised do not come back with them
//!   leave                  pins and budget to the context, back to Rust; eax says why
//!   site                   called by a TB with a site number in eax: everything to the context, Rust executes the
//!                          instruction, everything back; or on at `cpu.pc` by the jump cache; or on to `leave`
//!   hook                   as site, of one that calls hooks
//!   shown                  the same where the guest's registers are in the context already
//!   tell                   called with a pc in rax and what hooks are told of it in ecx: nothing but rax, rcx, rdx is lost; not zero,
//!                          by the flags: one of them ends the run
//!   again                  where the routines behind failed probes begin: again.rs
//!   jump                   on at the pc in rax by the jump cache of the regime that the hart is in
//!   via                    called by an exit in front of its number and pc, of 4 bytes or `wide`: its link does not hold; on by the jump cache
//!   unlinked               called by an exit in front of its number: it is not linked; leave
//!   miss                   the jump cache does not have the pc in rax: search the table behind it; leave for a look-up
//!   miss_below             the same in whatever regime the hart is, which loads the place of its jump cache
//! ```
use super::again;
use super::offsets::{
    BASE, BUDGET, ENGINE, FAR_JUMPS, FAR_MASK, FLOAT_UNIT, JUMPS, LINKS_NOT, NEAR_JUMPS, PC, UNIT_DIRTY,
};
use super::regs::RegMap;
use crate::engine::JitFlags;
use crate::hooks::tell;
use crate::jit::code_cache::CodeOffset;
use crate::jit::context::{JUMP_ENTRIES, JumpEntry, OFFSET_SHIFT, SPREAD};
use crate::jit::helpers::execute_hook;
use crate::jit::{SiteFn, answer, reason};
use dynasmrt::x64::X64Relocation;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm};

/// Where the thunks are in the code cache.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Thunks {
    pub(super) enter: CodeOffset,
    pub(super) leave: CodeOffset,
    pub(super) site: CodeOffset,
    pub(super) shown: CodeOffset,
    pub(super) jump: CodeOffset,
    pub(super) unlinked: CodeOffset,
    /// Of a pc below 4 GiB, of one that is negative in 32 bits, and of others.
    pub(super) via: [CodeOffset; 3],
    pub(super) tell: CodeOffset,
    pub(super) hook: CodeOffset,
    pub(super) miss: CodeOffset,
    pub(super) miss_below: CodeOffset,
    pub(super) again: CodeOffset,
    pub(super) again_end: CodeOffset,
}

impl Thunks {
    /// Which `via` takes any pc.
    pub(super) const WIDE: usize = 2;

    /// Bytes behind a call of it: the exit's number, and its pc.
    pub(super) fn told_of(pc: u64) -> usize {
        if Thunks::via_of(pc) == Thunks::WIDE { 12 } else { 8 }
    }

    /// Names and places, by rising place, and the end of them all.
    pub(super) fn names(&self) -> (Vec<(&'static str, CodeOffset)>, CodeOffset) {
        let mut all = vec![
            ("enter", self.enter),
            ("miss", self.miss),
            ("miss", self.miss_below),
            ("leave", self.leave),
            ("site", self.site),
            ("jump", self.jump),
            ("unlinked", self.unlinked),
            ("via", self.via[0]),
            ("again", self.again),
        ];
        all.sort_unstable_by_key(|a| a.1);
        (all, self.again_end)
    }

    /// Which `via` is short for this pc.
    pub(super) fn via_of(pc: u64) -> usize {
        if pc == u64::from(pc as u32) {
            0
        } else if pc == pc as i32 as u64 {
            1
        } else {
            Thunks::WIDE
        }
    }
}

/// Assembles the thunks; they are position independent.
pub(super) fn assemble(flags: JitFlags, site: SiteFn) -> (Vec<u8>, Thunks) {
    let map = RegMap::new(flags.pinned);
    let mut ops: VecAssembler<X64Relocation> = VecAssembler::new(0);
    let save = |ops: &mut VecAssembler<X64Relocation>, pins: bool| {
        for (guest, host) in map.pins().filter(|_| pins) {
            dynasm!(ops; .arch x64; mov [rbp + (8 * i32::from(guest) - BASE)], Rq(host));
        }
        if flags.budget_register {
            dynasm!(ops; .arch x64; mov [rbp + BUDGET], r15);
        }
        // A unit that is not dirty has raised nothing; the two take 65 cycles on some hosts.
        dynasm!(ops; .arch x64
            ; test BYTE [rbp + UNIT_DIRTY.0], BYTE UNIT_DIRTY.1
            ; jz >clean
            ; stmxcsr DWORD [rbp + FLOAT_UNIT]
            ; clean:);
    };
    let load = |ops: &mut VecAssembler<X64Relocation>, pins: bool| {
        for (guest, host) in map.pins().filter(|_| pins) {
            dynasm!(ops; .arch x64; mov Rq(host), [rbp + (8 * i32::from(guest) - BASE)]);
        }
        if flags.budget_register {
            dynasm!(ops; .arch x64; mov r15, [rbp + BUDGET]);
        }
        dynasm!(ops; .arch x64
            ; test BYTE [rbp + UNIT_DIRTY.0], BYTE UNIT_DIRTY.1
            ; jz >clean
            ; ldmxcsr DWORD [rbp + FLOAT_UNIT]
            ; clean:);
    };
    let mut thunks = Thunks { enter: 0, ..Thunks::default() };
    // Six pushes and eight bytes: the stack is aligned in emitted code, one return address off inside `site`.
    dynasm!(ops; .arch x64
        ; push rbx; push rbp; push r12; push r13; push r14; push r15
        ; sub rsp, 8
        ; lea rbp, [rdi + BASE]
        ; mov rax, rsi);
    load(&mut ops, true);
    dynasm!(ops; .arch x64; jmp rax; .align 16);

    let mask = ((JUMP_ENTRIES - 1) << 1) as i32;
    // M-mode's own falls through to `leave`.
    for machine in [false, true] {
        // Where its loop lies is worth a tenth of what is found by it.
        dynasm!(ops; .arch x64; .align 64);
        *(if machine { &mut thunks.miss } else { &mut thunks.miss_below }) = ops.offset().0 as u32;
        // The places from the pc's own on, to the first that is empty; see tb/jumps.rs.
        dynasm!(ops; .arch x64
            ; imul rcx, rax, SPREAD
            ; shr rcx, OFFSET_SHIFT
            ; mov rdx, [rbp + FAR_JUMPS]
            ; next:
            ; and rcx, [rbp + FAR_MASK]
            ; cmp rax, [rdx + rcx]
            ; je >found
            ; cmp QWORD [rdx + rcx], JumpEntry::EMPTY.pc as i32
            ; je >nothing
            ; add rcx, BYTE size_of::<JumpEntry>() as i8
            ; jmp <next
            ; found:
            ; mov rdx, [rdx + rcx + 8]
            ; mov ecx, eax
            ; and ecx, mask);
        if machine {
            dynasm!(ops; .arch x64
                ; mov [rbp + rcx * 8 + JUMPS], rax
                ; mov [rbp + rcx * 8 + (JUMPS + 8)], rdx);
        } else {
            dynasm!(ops; .arch x64
                ; shl ecx, 3
                ; add rcx, [rbp + NEAR_JUMPS]
                ; mov [rcx], rax
                ; mov [rcx + 8], rdx);
        }
        dynasm!(ops; .arch x64
            ; jmp rdx
            ; nothing:
            ; mov [rbp + PC], rax
            ; mov eax, reason::LOOKUP as i32);
        if !machine {
            dynasm!(ops; .arch x64; jmp >leave);
        }
    }
    dynasm!(ops; .arch x64; leave:);
    thunks.leave = ops.offset().0 as u32;
    save(&mut ops, true);
    let out = ops.offset().0;
    dynasm!(ops; .arch x64
        ; add rsp, 8
        ; pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx
        ; ret; .align 16);

    thunks.tell = ops.offset().0 as u32;
    // Six pushes, the return address and eight bytes: the stack is aligned.
    dynasm!(ops; .arch x64
        ; push rdi; push rsi; push r8; push r9; push r10; push r11
        ; sub rsp, 8
        ; test BYTE [rbp + UNIT_DIRTY.0], BYTE UNIT_DIRTY.1
        ; jnz >dirty
        ; mov rdi, [rbp + ENGINE]
        ; mov rsi, rax
        ; mov edx, ecx
        ; mov rax, QWORD tell as *const () as i64
        ; call rax
        ; back:
        ; add rsp, 8
        ; pop r11; pop r10; pop r9; pop r8; pop rsi; pop rdi
        ; test eax, eax
        ; ret
        ; dirty:
        ; stmxcsr DWORD [rsp]
        ; mov rdi, [rbp + ENGINE]
        ; mov rsi, rax
        ; mov edx, ecx
        ; mov rax, QWORD tell as *const () as i64
        ; call rax
        ; ldmxcsr DWORD [rsp]
        ; jmp <back
        ; .align 16);
    thunks.jump = ops.offset().0 as u32;
    jump(&mut ops, thunks.miss_below);
    thunks.unlinked = ops.offset().0 as u32;
    dynasm!(ops; .arch x64; pop rdx; mov eax, [rdx]);
    jump_to(&mut ops, thunks.leave);
    for (n, place) in thunks.via.iter_mut().enumerate() {
        *place = ops.offset().0 as u32;
        dynasm!(ops; .arch x64; pop rdx; mov eax, [rdx]; mov [rbp + LINKS_NOT], eax);
        match n {
            0 => dynasm!(ops; .arch x64; mov eax, [rdx + 4]),
            1 => dynasm!(ops; .arch x64; movsxd rax, DWORD [rdx + 4]),
            _ => dynasm!(ops; .arch x64; mov rax, [rdx + 4]),
        }
        jump(&mut ops, thunks.miss_below);
    }
    for (n, (pins, site)) in [(true, site), (false, site), (true, execute_hook as SiteFn)].into_iter().enumerate() {
        *[&mut thunks.site, &mut thunks.shown, &mut thunks.hook][n] = ops.offset().0 as u32;
        save(&mut ops, pins);
        dynasm!(ops; .arch x64
        ; sub rsp, 8
        ; lea rdi, [rbp - BASE]
        ; mov esi, eax
        ; mov rax, QWORD site as *const () as i64
        ; call rax
        ; add rsp, 8
        ; test eax, eax
        ; jnz >other);
        load(&mut ops, pins);
        dynasm!(ops; .arch x64
        ; ret
        ; other:
        ; cmp eax, answer::LEAVE as i32
        ; je >out
        ; add rsp, 8);
        load(&mut ops, true);
        dynasm!(ops; .arch x64
        ; mov rax, [rbp + PC]);
        // The mode may be another one.
        jump(&mut ops, thunks.miss_below);
        dynasm!(ops; .arch x64
        ; out:
        ; add rsp, 8
        ; mov eax, reason::SITE as i32);
        // jmp out: the registers are in the context already.
        jump_to(&mut ops, out as CodeOffset);
        dynasm!(ops; .arch x64; .align 16);
    }
    let mut code = ops.finalize().expect("no relocation leaves the thunks");
    // Each of these routines is as long as two lines of the host's cache, and has no part in a third.
    code.resize(code.len().next_multiple_of(64), 0xcc);
    thunks.again = code.len() as CodeOffset;
    code.extend(again::assemble(thunks.again, thunks.site, flags));
    thunks.again_end = code.len() as CodeOffset;
    (code, thunks)
}

/// On at the pc in rax, by the jump cache of whatever regime the hart is in.
fn jump(ops: &mut VecAssembler<X64Relocation>, miss: CodeOffset) {
    dynasm!(ops; .arch x64
        ; mov rdx, [rbp + NEAR_JUMPS]
        ; mov ecx, eax
        ; and ecx, ((JUMP_ENTRIES - 1) << 1) as i32
        ; cmp rax, [rdx + rcx * 8]
        ; jne >miss
        ; jmp QWORD [rdx + rcx * 8 + 8]
        ; miss:);
    jump_to(ops, miss);
}

/// `jmp`, to a place passed.
fn jump_to(ops: &mut VecAssembler<X64Relocation>, to: CodeOffset) {
    let rel = (i64::from(to) - (ops.offset().0 as i64 + 5)) as i32;
    dynasm!(ops; .arch x64; .u8 0xe9; .i32 rel);
}
