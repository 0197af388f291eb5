//! AMOs, LR and SC in line: an aligned probe, then the operation at the host address in rdx.
//!
//! ```text
//!   probe ──ne──▶ behind the TB: resolve (again.rs) ── RAM after all: rdx ─▶ back to op
//!   lea rdx, [base + K]                            └─ else Rust does it ──▶ behind op
//!   op: …                 locked, or plain while one thread stores (WRITER-1)
//! ```
//!
//! A reservation is the host address of the cell, its width and the value that LR saw (`tlb::entry::Reservation`); SC
//! compares and exchanges. Rust does the same (`softmmu/src/atomic.rs`), so either may finish what the other began. Where any other
//! store is to break a reservation, and there is another writer, Rust does both.
use super::alu::with;
use super::asm::{Flag, Hole};
use super::mem::Taken;
use super::offsets::TABLE;
use super::regs::{RAX, RCX, RDX};
use super::{Cold, Emitter, again};
use crate::ir::{Ir, MemOp};
use dynasmrt::dynasm;
use notdirty_softmmu::AmoOp;
use notdirty_softmmu::tlb::entry::{READ, RESERVATION, WRITE};
use std::mem::offset_of;

const TAG: i32 = TABLE + RESERVATION + offset_of!(notdirty_softmmu::tlb::entry::Reservation, tag) as i32;
const VALUE: i32 = TABLE + RESERVATION + offset_of!(notdirty_softmmu::tlb::entry::Reservation, value) as i32;

/// What is behind a failed probe.
#[derive(Debug, Clone, Copy)]
pub(super) struct Elsewhere {
    from: Hole,
    /// Where the operation is.
    op: u32,
    /// What follows it.
    behind: u32,
    base: u8,
    site: u16,
    /// The routine that looks again.
    resolve: again::Resolve,
    comparator: i32,
    /// Was it probed for an entry with any addend?
    own: bool,
}

impl Emitter {
    /// The probe of an aligned cell, and its host address in rdx; then comes the operation.
    fn cell(&mut self, ir: &Ir, mem: MemOp, comparator: i32) -> Elsewhere {
        let base = self.source(ir.a, RDX);
        let own = self.known.elsewhere.has(ir.site);
        let from = self.probe_aligned(base, mem.bytes(), comparator, own);
        match self.host_address(0, if own { Taken::Entry } else { Taken::Assumed }) {
            (false, k) => dynasm!(self.ops; .arch x64; lea rdx, [Rq(base) + k]),
            (true, _) => dynasm!(self.ops; .arch x64; lea rdx, [Rq(base) + rcx]),
        }
        let resolve = again::Resolve::new(comparator == WRITE, mem);
        Elsewhere { from, op: self.here(), behind: 0, base, site: ir.site, resolve, comparator, own }
    }

    /// The operation ends here.
    fn cell_done(&mut self, elsewhere: Elsewhere) {
        self.cold.push(Cold::Cell(Elsewhere { behind: self.here(), ..elsewhere }));
    }

    /// Behind a failed probe: RAM that needs no Rust after all, or a site.
    pub(super) fn cold_cell(&mut self, elsewhere: Elsewhere) {
        let Elsewhere { from, op, behind, base, site, resolve, comparator, own } = elsewhere;
        self.ops.close(from);
        if own {
            self.unmix(comparator);
        }
        if base != RDX {
            dynasm!(self.ops; .arch x64; mov rdx, Rq(base));
        }
        dynasm!(self.ops; .arch x64; .u8 0xe8);
        self.external(resolve.place(self.thunks.again));
        let rust = self.ops.jump_if(Flag::NotEqual);
        self.ops.jump_to(op);
        self.ops.close(rust);
        self.execute_site(site);
        self.ops.jump_to(behind);
    }

    pub(super) fn load_reserved(&mut self, ir: &Ir, mem: MemOp) {
        if self.known.strict {
            return self.execute_site(ir.site);
        }
        let elsewhere = self.cell(ir, mem, READ);
        let rd = if ir.rd == 0 { RAX } else { self.target(ir.rd, RAX) };
        if mem.bytes() == 8 {
            dynasm!(self.ops; .arch x64
                ; mov Rq(rd), [rdx]
                ; lea rcx, [rdx + 1]
                ; mov [rbp + TAG], rcx);
        } else {
            dynasm!(self.ops; .arch x64
                ; movsxd Rq(rd), DWORD [rdx]
                ; mov [rbp + TAG], rdx);
        }
        dynasm!(self.ops; .arch x64; mov [rbp + VALUE], Rq(rd));
        if ir.rd != 0 {
            self.done(ir.rd, rd);
        }
        self.cell_done(elsewhere);
    }

    pub(super) fn store_conditional(&mut self, ir: &Ir, mem: MemOp) {
        if self.known.strict {
            return self.execute_site(ir.site);
        }
        let elsewhere = self.cell(ir, mem, WRITE);
        let wide = mem.bytes() == 8;
        if wide {
            dynasm!(self.ops; .arch x64; lea rcx, [rdx + 1]; cmp rcx, [rbp + TAG]);
        } else {
            dynasm!(self.ops; .arch x64; cmp rdx, [rbp + TAG]);
        }
        let failed = self.ops.new_label();
        dynasm!(self.ops; .arch x64
            ; mov QWORD [rbp + TAG], 0
            ; jne =>failed
            ; mov rax, [rbp + VALUE]);
        let new = self.source(ir.b, RCX);
        // The zero flag says whether it wrote.
        match (wide, self.known.alone) {
            (true, false) => dynasm!(self.ops; .arch x64; lock cmpxchg [rdx], Rq(new)),
            (false, false) => dynasm!(self.ops; .arch x64; lock cmpxchg [rdx], Rd(new)),
            (true, true) => dynasm!(self.ops; .arch x64; cmp [rdx], rax; jne =>failed; mov [rdx], Rq(new)),
            (false, true) => dynasm!(self.ops; .arch x64; cmp [rdx], eax; jne =>failed; mov [rdx], Rd(new)),
        }
        dynasm!(self.ops; .arch x64; =>failed);
        if ir.rd != 0 {
            let rd = self.target(ir.rd, RAX);
            dynasm!(self.ops; .arch x64; setne al; movzx Rd(rd), al);
            self.done(ir.rd, rd);
        }
        self.cell_done(elsewhere);
    }

    pub(super) fn amo(&mut self, ir: &Ir, op: AmoOp, mem: MemOp) {
        let elsewhere = self.cell(ir, mem, WRITE);
        let plain = matches!(op, AmoOp::Swap | AmoOp::Add | AmoOp::Xor | AmoOp::And | AmoOp::Or);
        if self.known.alone && plain && ir.rd != 0 && ir.rd != ir.b {
            // One thread stores: a load, and an operation that no register wants the old value of.
            let rd = self.target(ir.rd, RAX);
            let unread = Ir { rd: 0, ..*ir };
            if mem.bytes() == 8 {
                dynasm!(self.ops; .arch x64; mov Rq(rd), [rdx]);
                self.amo_wide(&unread, op);
            } else {
                dynasm!(self.ops; .arch x64; movsxd Rq(rd), DWORD [rdx]);
                self.amo_narrow(&unread, op);
            }
            self.done(ir.rd, rd);
            return self.cell_done(elsewhere);
        }
        // The old value goes to rax, unless no register wants it.
        if mem.bytes() == 8 {
            self.amo_wide(ir, op);
        } else {
            self.amo_narrow(ir, op);
            if ir.rd != 0 {
                dynasm!(self.ops; .arch x64; cdqe);
            }
        }
        if ir.rd != 0 {
            self.put(ir.rd, RAX);
        }
        self.cell_done(elsewhere);
    }
}

/// The operation on a cell of one width; `$r` are registers of that width, `$a` and `$c` rax and rcx.
macro_rules! amo_of {
    ($name:ident, $r:ident, $a:tt, $c:tt) => {
        impl Emitter {
            fn $name(&mut self, ir: &Ir, op: AmoOp) {
                let (alone, unread) = (self.known.alone, ir.rd == 0);
                // In a loop, rcx is the new value.
                macro_rules! exchange {
                    ($new:expr) => {{
                        dynasm!(self.ops; .arch x64; mov $a, [rdx]);
                        let again = self.ops.new_label();
                        dynasm!(self.ops; .arch x64; =>again);
                        $new;
                        if alone {
                            dynasm!(self.ops; .arch x64; mov [rdx], $c);
                        } else {
                            dynasm!(self.ops; .arch x64; lock cmpxchg [rdx], $c; jne BYTE =>again);
                        }
                    }};
                }
                macro_rules! logic {
                    ($op:ident) => {
                        if !alone && !unread {
                            exchange!({
                                dynasm!(self.ops; .arch x64; mov $c, $a);
                                with!(self, $op, $r, RCX, ir.b);
                            });
                        } else {
                            let b = self.source(ir.b, RCX);
                            match alone {
                                true if unread => dynasm!(self.ops; .arch x64; $op [rdx], $r(b)),
                                true => dynasm!(self.ops; .arch x64; mov $a, [rdx]; $op [rdx], $r(b)),
                                false => dynasm!(self.ops; .arch x64; lock $op [rdx], $r(b)),
                            }
                        }
                    };
                }
                macro_rules! choose {
                    ($cmov:ident) => {
                        exchange!({
                            with!(self, mov, $r, RCX, ir.b);
                            dynasm!(self.ops; .arch x64; cmp $a, $c; $cmov $c, $a);
                        })
                    };
                }
                match op {
                    AmoOp::Swap if alone => {
                        let b = self.source(ir.b, RCX);
                        if !unread {
                            dynasm!(self.ops; .arch x64; mov $a, [rdx]);
                        }
                        dynasm!(self.ops; .arch x64; mov [rdx], $r(b));
                    }
                    AmoOp::Swap => {
                        with!(self, mov, $r, RAX, ir.b);
                        dynasm!(self.ops; .arch x64; xchg [rdx], $a);
                    }
                    AmoOp::Add if !alone && !unread => {
                        with!(self, mov, $r, RAX, ir.b);
                        dynasm!(self.ops; .arch x64; lock xadd [rdx], $a);
                    }
                    AmoOp::Add => logic!(add),
                    AmoOp::Xor => logic!(xor),
                    AmoOp::And => logic!(and),
                    AmoOp::Or => logic!(or),
                    AmoOp::Min => choose!(cmovl),
                    AmoOp::Max => choose!(cmovg),
                    AmoOp::Minu => choose!(cmovb),
                    AmoOp::Maxu => choose!(cmova),
                }
            }
        }
    };
}

amo_of!(amo_wide, Rq, rax, rcx);
amo_of!(amo_narrow, Rd, eax, ecx);
