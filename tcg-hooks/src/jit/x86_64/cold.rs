//! What lies behind the blocks of a TB: slow parts, polls and exits; and how a site and an exit are left for.
//!
//! ```text
//!   block ──failed──▶ slow part ─▶ back                  Cold, in the order in which the jumps to them were emitted
//!     └────exit────▶ eax = the exit's number ─▶ leave    a chain replaces the jump, the stub stays
//! ```
use super::asm::{Hole, Label};
use super::frames::Border;
use super::offsets::MAPPINGS;
use super::thunks::Thunks;
use super::{EmittedExit, Emitter, LOCAL_BITS, Way, atomic, float};
use crate::ir::{Block, Kind, Region};
use crate::jit::code_cache::CodeOffset;
use crate::jit::context::NO_MAPPINGS;
use dynasmrt::dynasm;

#[derive(Debug, Clone, Copy)]
pub(super) enum Cold {
    Exit {
        from: Hole,
        exit: u16,
    },
    Poll {
        from: Hole,
        exit: u16,
        block: u16,
    },
    /// The cold copy of accesses that share a check.
    Cluster(usize),
    /// The slow part of an AMO, LR or SC.
    Cell(atomic::Elsewhere),
    /// A site that comes back.
    Site {
        from: Hole,
        site: u16,
        back: u32,
    },
    /// A site that does not come back, where the map is that of borders.
    Stop {
        from: Hole,
        site: u16,
    },
    /// Floating point that the host cannot do.
    Float(float::Cold),
    /// A conditional exit of a region with a map of its own.
    Leave {
        from: Hole,
        pc: u64,
        block: u16,
    },
    /// What is checked at the entry does not hold.
    Refusal {
        label: Label,
        exit: u16,
    },
}

impl Emitter {
    /// A site in line or behind the TB, from which control comes back here.
    pub(super) fn execute_site(&mut self, site: u16) {
        self.call_site(site);
        if self.is_named() {
            self.take_back(site);
        } else {
            self.swap_in();
        }
    }

    /// The same where the map is that of borders.
    pub(super) fn call_site_at_border(&mut self, site: u16) {
        self.call_thunk(self.thunks.site, site);
    }

    pub(super) fn call_thunk(&mut self, thunk: CodeOffset, site: u16) {
        let number = self.tb << LOCAL_BITS | u32::from(site);
        dynasm!(self.ops; .arch x64; mov eax, number as i32; .u8 0xe8);
        self.external(thunk);
    }

    /// Has Rust execute a site's instruction, in line; nothing is in registers behind it.
    pub(super) fn call_site(&mut self, site: u16) {
        let thunk = if self.is_named() {
            self.show(site);
            self.thunks.shown
        } else {
            self.swap_out();
            self.thunks.site
        };
        self.call_thunk(thunk, site);
    }

    /// The four bytes of a displacement to a thunk.
    pub(super) fn external(&mut self, target: CodeOffset) {
        self.externals.push((self.here(), target));
        self.ops.push_i32(0);
    }

    pub(super) fn cold_part(&mut self, region: &Region, cold: Cold) {
        match cold {
            Cold::Exit { from, exit } => {
                self.ops.close(from);
                let guarded = self.exits[usize::from(exit)].way.guarded;
                if !guarded {
                    self.leave_stub(exit);
                }
                if self.translated && self.flags.jump_cache {
                    if !guarded {
                        self.guard();
                    }
                    self.via(exit);
                }
            }
            Cold::Refusal { label, exit } => {
                dynasm!(self.ops; .arch x64; =>label);
                self.leave_stub(exit);
            }
            Cold::Poll { from, exit, block } => {
                self.ops.close(from);
                self.go_out(Border::Head(block));
                // Control took the edge but not the block: count the edge here, as the TB that goes on at the block starts behind it.
                let Block { first, end, .. } = region.blocks[usize::from(block)];
                let ways =
                    region.ops[first as usize..end as usize].iter().filter(|ir| ir.kind == Kind::Cover && ir.a == 1);
                ways.for_each(|ir| self.cover(ir));
                self.leave_stub(exit);
            }
            Cold::Cluster(number) => self.cold_cluster(&region.ops, number),
            Cold::Cell(cell) => self.cold_cell(cell),
            Cold::Site { from, site, back } => {
                self.ops.close(from);
                self.execute_site(site);
                self.ops.jump_to(back);
            }
            Cold::Stop { from, site } => {
                self.ops.close(from);
                self.call_site_at_border(site);
                dynasm!(self.ops; .arch x64; ud2);
            }
            Cold::Float(cold) => self.float_cold(cold),
            Cold::Leave { from, pc, block } => {
                self.ops.close(from);
                self.go_out(Border::End(block));
                self.jump_out(pc);
            }
        }
    }

    /// Where a link to another page leads: on to its target while all mappings are as they were then. See `tb/chain.rs`, which writes the
    /// number and the jump.
    fn guard(&mut self) {
        dynasm!(self.ops; .arch x64
            ; cmp DWORD [rbp + MAPPINGS], DWORD NO_MAPPINGS as i32
            // jne via; jmp
            ; .u8 0x75; .u8 5
            ; .u8 0xe9; .i32 0);
    }

    /// The way through the jump cache, or, before a link with its guard elsewhere is made, to the exec loop. It is short, as much code
    /// has many exits: `tb/chain.rs`.
    fn via(&mut self, exit: u16) {
        let number = self.tb << LOCAL_BITS | u32::from(exit);
        let Way { pc, guarded, ref mut via, ref mut stub, .. } = self.exits[usize::from(exit)].way;
        *via = self.ops.here();
        let kind = Thunks::via_of(pc);
        if guarded {
            *stub = *via;
        }
        dynasm!(self.ops; .arch x64; .u8 0xe8);
        self.external(if guarded { self.thunks.unlinked } else { self.thunks.via[kind] });
        dynasm!(self.ops; .arch x64; .i32 number as i32; .i32 pc as i32);
        if kind == Thunks::WIDE {
            dynasm!(self.ops; .arch x64; .i32 (pc >> 32) as i32);
        }
    }

    /// Back to the exec loop with an exit's number.
    pub(super) fn leave_stub(&mut self, exit: u16) {
        self.exits[usize::from(exit)].way.stub = self.here();
        let number = self.tb << LOCAL_BITS | u32::from(exit);
        dynasm!(self.ops; .arch x64; mov eax, number as i32; .u8 0xe9);
        self.external(self.thunks.leave);
    }

    pub(super) fn exit(&mut self, pc: u64, refund: u16) -> u16 {
        let way = Way { field: 0, stub: 0, pc, via: 0, guarded: false };
        self.exits.push(EmittedExit { way, refund });
        (self.exits.len() - 1) as u16
    }
}
