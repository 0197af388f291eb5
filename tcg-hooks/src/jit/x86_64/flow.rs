//! Control flow: between blocks, out through exits, and through the jump cache.
use super::asm::{Flag, Hole, Label};
use super::encode::{CMP, MOV_TO, NARROW, TEST, WIDE};
use super::frames::Border;
use super::offsets::{BUDGET, COVERAGE, JUMPS, LIMIT, MAPPINGS, NEAR_JUMPS, PC};
use super::regs::RAX;
use super::{Cold, Emitter, at_home, off};
use crate::guest::Mode;
use crate::ir::{Block, Cond, Kind, Region, Target, Term};
use crate::jit::context::{JUMP_ENTRIES, NO_MAPPINGS};
use dynasmrt::dynasm;
use notdirty_core::PAGE_BITS;

impl Emitter {
    /// The end of a block; the next one is emitted right behind.
    pub(super) fn terminator(&mut self, term: &Term, block: u16) {
        match *term {
            Term::Goto(target) => self.go(target, block),
            Term::Branch { cond, a, b, word, taken, fall } => {
                self.compare_integers(a, b, word);
                self.branch(cond, taken, fall, block);
            }
            Term::Again { cond, a, b, word, out, fast, head, clock } => {
                self.compare_integers(a, b, word);
                self.branch_out(cond, out, block);
                let round = if clock == 0 {
                    self.often(self.block_insns - 1)
                } else {
                    let clock = self.source(clock, RAX);
                    dynasm!(self.ops; .arch x64; cmp Rq(clock), [rbp + LIMIT]);
                    self.ops.jump_if(Flag::NotEqual)
                };
                self.ops.aim(round, self.label(fast, block));
                self.go(Target::Block(head), block);
            }
            Term::Count { turns, fast, once, cold } => {
                let one = (once != cold).then_some(Label::first(once));
                self.count_turns(&turns, one, Label::first(cold));
                self.go(Target::Block(fast), block);
            }
            Term::Turn { clock, fast, last } => {
                let clock = self.source(clock, RAX);
                dynasm!(self.ops; .arch x64; cmp Rq(clock), [rbp + LIMIT]);
                let round = self.ops.jump_if(Flag::NotEqual);
                self.ops.aim(round, self.label(fast, block));
                self.go(Target::Block(last), block);
            }
            Term::Fork { fast, clock, .. } => {
                if let Some((clock, step)) = clock {
                    self.set_limit(clock, step);
                }
                self.go(Target::Block(fast), block);
            }
            Term::Indirect { base, imm, link, cover, tells } => {
                let x = self.source(base, RAX);
                match imm {
                    0 if x == RAX => dynasm!(self.ops; .arch x64; and rax, BYTE -2),
                    0 => dynasm!(self.ops; .arch x64; mov rax, Rq(x); and rax, BYTE -2),
                    _ => dynasm!(self.ops; .arch x64; lea rax, [Rq(x) + imm]; and rax, BYTE -2),
                }
                if let Some((rd, ret)) = link {
                    self.link_register(rd, ret);
                }
                self.go_out(Border::End(block));
                if let Some((mix, mask)) = cover {
                    dynasm!(self.ops; .arch x64
                        ; mov ecx, eax
                        ; shr ecx, 1
                        ; xor ecx, i32::from(mix)
                        ; and ecx, i32::from(mask)
                        ; inc BYTE [rbp + rcx + COVERAGE]);
                }
                if let Some(site) = tells {
                    self.arrive(site);
                }
                self.jump_indirect();
            }
            Term::System { site } => {
                self.call_site(site);
                dynasm!(self.ops; .arch x64; ud2);
            }
        }
    }

    /// Hooks of the block at the pc in rax are called; it may be another one then.
    fn arrive(&mut self, site: u16) {
        dynasm!(self.ops; .arch x64; mov [rbp + PC], rax);
        if self.lights.contains(&site) {
            self.constant(super::regs::RCX, 1);
            dynasm!(self.ops; .arch x64; .u8 0xe8);
            self.external(self.thunks.tell);
            let from = self.ops.jump_if(Flag::NotEqual);
            self.cold.push(Cold::Stop { from, site });
        } else {
            self.call_site_at_border(site);
        }
        dynasm!(self.ops; .arch x64; mov rax, [rbp + PC]);
    }

    /// A locked instruction is a full barrier, and cheaper than `mfence`.
    pub(super) fn fence(&mut self) {
        dynasm!(self.ops; .arch x64; lock or DWORD [rsp], BYTE 0);
    }

    /// At the head of a block that is a loop, stores nothing and fences: does so once, before it. From then on every store of this
    /// hart is visible, so the fences inside are nothing.
    pub(super) fn fence_before(&mut self, region: &Region, block: u16) {
        self.behind_fence = None;
        if self.known.alone || !self.flags.optimise {
            return;
        }
        let Block { first, end, term, .. } = region.blocks[usize::from(block)];
        let mut loops = false;
        term.each_target(|target| loops |= target == Target::Block(block));
        if !loops {
            return;
        }
        let ops = &region.ops[first as usize..end as usize];
        if ops.iter().any(|ir| ir.kind == Kind::Fence) && !ops.iter().any(|ir| ir.kind.may_store()) {
            self.fence();
            let label = self.ops.new_label();
            dynasm!(self.ops; .arch x64; =>label);
            self.behind_fence = Some(label);
        }
    }

    /// Where a jump from `block` to `to` leads.
    fn label(&self, to: u16, block: u16) -> Label {
        self.behind_fence.filter(|_| to == block).unwrap_or(Label::first(to))
    }

    /// A jump that is taken but once in some 128 instructions, of a block of so many that is a loop.
    fn often(&mut self, insns: u16) -> Hole {
        if self.flags.budget_register {
            dynasm!(self.ops; .arch x64; mov eax, r15d);
        } else {
            dynasm!(self.ops; .arch x64; mov eax, [rbp + BUDGET]);
        }
        dynasm!(self.ops; .arch x64; and eax, 127; cmp eax, i32::from(insns));
        self.ops.jump_if(Flag::NotBelow)
    }

    fn go(&mut self, target: Target, block: u16) {
        match target {
            Target::Block(b) if b == block + 1 => {}
            Target::Block(b) => {
                let from = self.ops.jump();
                self.ops.aim(from, self.label(b, block));
            }
            Target::Exit(pc) => {
                self.go_out(Border::End(block));
                self.jump_out(pc);
            }
        }
    }

    /// A direct jump to another TB, once it is linked.
    pub(super) fn jump_out(&mut self, pc: u64) {
        let ahead = (pc >> PAGE_BITS).wrapping_sub(self.region_pc >> PAGE_BITS);
        if !self.translated || !self.flags.jump_cache || ahead < self.pages {
            let from = self.ops.jump();
            self.exit_from(from, pc);
            return;
        }
        // Its link is guarded, whatever it is: here, as one jump more costs most where much code runs once in a while.
        dynasm!(self.ops; .arch x64; cmp DWORD [rbp + MAPPINGS], DWORD NO_MAPPINGS as i32);
        let from = self.ops.jump_if(Flag::NotEqual);
        dynasm!(self.ops; .arch x64; .u8 0xe9; .i32 0);
        self.exit_from(from, pc);
        if let Some(exit) = self.exits.last_mut() {
            exit.way.guarded = true;
        }
    }

    /// A jump that leads out.
    fn exit_from(&mut self, from: Hole, pc: u64) {
        let exit = self.exit(pc, 0);
        self.exits[usize::from(exit)].way.field = from.0;
        self.cold.push(Cold::Exit { from, exit });
    }

    /// The flags of `a - b`, in 32 bits or 64.
    pub(super) fn compare_integers(&mut self, a: u8, b: u8, word: bool) {
        match (self.map.host(a), b, word) {
            (Some(x), 0, true) => self.ops.two(NARROW, TEST, x, x),
            (None, 0, true) => at_home!(
                a,
                |home| dynasm!(self.ops; .arch x64; cmp DWORD [BYTE rbp + home], 0),
                dynasm!(self.ops; .arch x64; cmp DWORD [rbp + home], 0)
            ),
            (Some(x), 0, false) => self.ops.two(WIDE, TEST, x, x),
            (None, 0, false) => at_home!(
                a,
                |home| dynasm!(self.ops; .arch x64; cmp QWORD [BYTE rbp + home], 0),
                dynasm!(self.ops; .arch x64; cmp QWORD [rbp + home], 0)
            ),
            (_, _, true) => {
                let x = self.source(a, RAX);
                self.with(NARROW, CMP, x, b);
            }
            (_, _, false) => {
                let x = self.source(a, RAX);
                self.with(WIDE, CMP, x, b);
            }
        }
    }

    fn branch(&mut self, cond: Cond, taken: Target, fall: Target, block: u16) {
        let (cond, taken, fall) =
            if taken == Target::Block(block + 1) { (cond.negate(), fall, taken) } else { (cond, taken, fall) };
        self.branch_out(cond, taken, block);
        self.go(fall, block);
    }

    /// A jump to a target, if the condition holds.
    fn branch_out(&mut self, cond: Cond, target: Target, block: u16) {
        let from = self.ops.jump_if(match cond {
            Cond::Eq => Flag::Equal,
            Cond::Ne => Flag::NotEqual,
            Cond::Lt => Flag::Less,
            Cond::Ge => Flag::NotLess,
            Cond::Ltu => Flag::Below,
            Cond::Geu => Flag::NotBelow,
        });
        match target {
            Target::Block(b) => self.ops.aim(from, self.label(b, block)),
            Target::Exit(pc) if self.moves_at_borders() => self.cold.push(Cold::Leave { from, pc, block }),
            Target::Exit(pc) => self.exit_from(from, pc),
        }
    }

    /// Writes the return address without touching rax.
    fn link_register(&mut self, rd: u8, ret: u64) {
        match self.map.host(rd) {
            Some(host) => self.constant(host, ret as i64),
            None => {
                self.constant(super::regs::RCX, ret as i64);
                self.ops.slot(WIDE, MOV_TO, super::regs::RCX, off(rd));
            }
        }
    }

    /// Jumps to the guest address in rax.
    fn jump_indirect(&mut self) {
        let first = self.mode == Mode::FIRST && !self.translated;
        let miss = if first { self.thunks.miss } else { self.thunks.miss_below };
        if self.flags.jump_cache {
            let mask = ((JUMP_ENTRIES - 1) << 1) as i32;
            if !first {
                dynasm!(self.ops; .arch x64
                    ; mov rdx, [rbp + NEAR_JUMPS]
                    ; mov ecx, eax
                    ; and ecx, mask
                    ; cmp rax, [rdx + rcx * 8]
                    ; .u8 0x0f; .u8 0x85); // jne miss
                self.external(miss);
                dynasm!(self.ops; .arch x64; jmp QWORD [rdx + rcx * 8 + 8]);
                return;
            }
            dynasm!(self.ops; .arch x64
                ; mov ecx, eax
                ; and ecx, mask
                ; cmp rax, [rbp + rcx * 8 + JUMPS]
                ; .u8 0x0f; .u8 0x85); // jne miss
            self.external(miss);
            dynasm!(self.ops; .arch x64; jmp QWORD [rbp + rcx * 8 + (JUMPS + 8)]);
        } else {
            dynasm!(self.ops; .arch x64; .u8 0xe9);
            self.external(miss);
        }
    }
}
