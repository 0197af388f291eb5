//! Control flow: between blocks, out through exits, and through the jump cache.
use super::alu::with;
use super::asm::{Flag, Hole};
use super::context::{JUMP_ENTRIES, JUMPS};
use super::regs::RAX;
use super::{Cold, Emitter, off};
use crate::ir::{Cond, Target, Term};
use dynasmrt::dynasm;

impl Emitter {
    /// The end of a block; block number `next` is emitted right behind.
    pub(super) fn terminator(&mut self, term: &Term, next: u16) {
        match *term {
            Term::Goto(target) => self.go(target, next),
            Term::Branch { cond, a, b, taken, fall } => self.branch(cond, a, b, taken, fall, next),
            Term::Indirect { base, imm, link } => {
                let x = self.source(base, RAX);
                match imm {
                    0 if x == RAX => dynasm!(self.ops; .arch x64; and rax, BYTE -2),
                    0 => dynasm!(self.ops; .arch x64; mov rax, Rq(x); and rax, BYTE -2),
                    _ => dynasm!(self.ops; .arch x64; lea rax, [Rq(x) + imm]; and rax, BYTE -2),
                }
                if let Some((rd, ret)) = link {
                    self.link_register(rd, ret);
                }
                self.swap_out();
                self.jump_indirect();
            }
            Term::System { site } => {
                self.swap_out();
                self.call_site(site);
                dynasm!(self.ops; .arch x64; ud2);
            }
        }
    }

    fn go(&mut self, target: Target, next: u16) {
        match target {
            Target::Block(b) if b == next => {}
            Target::Block(b) => {
                let from = self.ops.jump();
                self.ops.aim(from, self.blocks[usize::from(b)]);
            }
            Target::Exit(pc) => {
                self.swap_out();
                self.jump_out(pc);
            }
        }
    }

    /// A direct jump to another TB, once it is linked.
    pub(super) fn jump_out(&mut self, pc: u64) {
        let from = self.ops.jump();
        self.exit_from(from, pc);
    }

    /// A jump that leads out.
    fn exit_from(&mut self, from: Hole, pc: u64) {
        let exit = self.exit(pc, 0);
        self.exits[usize::from(exit)].field = from.0;
        self.cold.push(Cold::Exit { from, exit });
    }

    fn branch(&mut self, cond: Cond, a: u8, b: u8, taken: Target, fall: Target, next: u16) {
        match (self.map.host(a), b) {
            (Some(x), 0) => dynasm!(self.ops; .arch x64; test Rq(x), Rq(x)),
            (None, 0) => dynasm!(self.ops; .arch x64; cmp QWORD [BYTE rbp + off(a)], 0),
            _ => {
                let x = self.source(a, RAX);
                with!(self, cmp, Rq, x, b);
            }
        }
        let (cond, taken, fall) =
            if taken == Target::Block(next) { (negate(cond), fall, taken) } else { (cond, taken, fall) };
        let from = self.ops.jump_if(match cond {
            Cond::Eq => Flag::Equal,
            Cond::Ne => Flag::NotEqual,
            Cond::Lt => Flag::Less,
            Cond::Ge => Flag::NotLess,
            Cond::Ltu => Flag::Below,
            Cond::Geu => Flag::NotBelow,
        });
        match taken {
            Target::Block(b) => self.ops.aim(from, self.blocks[usize::from(b)]),
            Target::Exit(pc) if self.is_remapped() => self.cold.push(Cold::Leave { from, pc }),
            Target::Exit(pc) => self.exit_from(from, pc),
        }
        self.go(fall, next);
    }

    /// Writes the return address without touching rax.
    fn link_register(&mut self, rd: u8, ret: u64) {
        match self.map.host(rd) {
            Some(host) => self.constant(host, ret as i64),
            None => {
                self.constant(super::regs::RCX, ret as i64);
                dynasm!(self.ops; .arch x64; mov [BYTE rbp + off(rd)], rcx);
            }
        }
    }

    /// Jumps to the guest address in rax.
    fn jump_indirect(&mut self) {
        if self.flags.jump_cache {
            let mask = ((JUMP_ENTRIES - 1) << 1) as i32;
            dynasm!(self.ops; .arch x64
                ; mov ecx, eax
                ; and ecx, mask
                ; cmp rax, [rbp + rcx * 8 + JUMPS]
                ; .u8 0x0f; .u8 0x85); // jne miss
            self.external(self.thunks.miss);
            dynasm!(self.ops; .arch x64; jmp QWORD [rbp + rcx * 8 + (JUMPS + 8)]);
        } else {
            dynasm!(self.ops; .arch x64; .u8 0xe9);
            self.external(self.thunks.miss);
        }
    }
}

fn negate(cond: Cond) -> Cond {
    match cond {
        Cond::Eq => Cond::Ne,
        Cond::Ne => Cond::Eq,
        Cond::Lt => Cond::Ge,
        Cond::Ge => Cond::Lt,
        Cond::Ltu => Cond::Geu,
        Cond::Geu => Cond::Ltu,
    }
}
