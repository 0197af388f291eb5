//! Host code as text, with our names for what it touches.
//!
//! ```text
//!   002f  lea    rax,[rsi+0x1010]                 offset in the TB
//!   003b  cmp    rax,[rbp+rcx+tlb.read]           fields of the context and the TLB by name
//!   0043  jne    0x0102                           blocks and thunks by name, other places by offset
//!   0049  mov    rdi,[rsi+ram+0x10]               ram = host - guest
//!   0107  call   site                             ; 80000014: ld a0,16(a1)
//! ```
use super::asm::Label;
use super::offsets::{self, BASE, JUMPS, TABLE};
use super::regs::{PINS, RegMap};
use super::{EmittedExit, Emitter, LOCAL_BITS, Thunks, Way, again};
use crate::cpu::CpuState;
use crate::guest::{REGISTERS, text};
use crate::ir::{Region, Site};
use crate::jit::code_cache::CodeOffset;
use crate::jit::context::{Context, JUMP_ENTRIES};
use crate::jit::{HostCode, HostLine};
use hashbrown::HashMap;
use iced_x86::{
    Code, Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter, Mnemonic, OpKind, Register, SymbolResolver,
    SymbolResult,
};
use notdirty_softmmu::tlb::entry::{ADDEND, AUX, READ, WRITE};
use std::mem::offset_of;

/// The code of one TB, and what is known about it.
#[derive(Debug, Clone)]
pub(crate) struct TbCode<'a> {
    bytes: &'a [u8],
    /// Its place in the code cache, where the thunks have theirs.
    at: CodeOffset,
    thunks: Thunks,
    flat: Option<i32>,
    map: RegMap,
    /// Guest pc and offset of each block.
    blocks: Vec<(u64, u32)>,
    /// Offset of what is behind the blocks.
    cold: u32,
    exits: &'a [EmittedExit],
    sites: &'a [Site],
}

impl<'a> TbCode<'a> {
    /// The TB emitted last; it was placed at `at`, and made from this region.
    pub(super) fn new(emitter: &'a Emitter, at: CodeOffset, region: &'a Region) -> TbCode<'a> {
        let (thunks, flat, map) = (emitter.thunks, emitter.flat(), emitter.map);
        let place = |n| emitter.ops.place(Label::first(n));
        let blocks = region.blocks.iter().zip(0..).map(|(block, n)| (block.pc, place(n))).collect();
        let (cold, sites) = (emitter.behind, &region.sites);
        TbCode { bytes: emitter.ops.code(), at, thunks, flat, map, blocks, cold, exits: &emitter.exits, sites }
    }
}

impl HostCode for TbCode<'_> {
    fn bytes(&self) -> &[u8] {
        self.bytes
    }

    fn blocks(&self) -> &[(u64, u32)] {
        &self.blocks
    }

    fn cold(&self) -> u32 {
        self.cold
    }

    fn lines(&self, place: &dyn Fn(u64) -> String) -> Vec<HostLine> {
        let len = self.bytes.len() as u32;
        let blocks = self.blocks.iter().enumerate().map(|(n, b)| (b.1, n)).collect();
        let names = Names { thunks: self.thunks, at: self.at, len, blocks, flat: self.flat };
        let mut formatter = IntelFormatter::with_options(Some(Box::new(names)), None);
        let options = formatter.options_mut();
        options.set_hex_prefix("0x");
        options.set_hex_suffix("");
        options.set_uppercase_hex(false);
        options.set_small_hex_numbers_in_decimal(true);
        options.set_first_operand_char_index(7);
        options.set_memory_size_options(iced_x86::MemorySizeOptions::Minimal);
        options.set_branch_leading_zeros(false);
        options.set_show_branch_size(false);
        let mut decoder = Decoder::with_ip(64, self.bytes, u64::from(self.at), DecoderOptions::NONE);
        let (mut out, mut insn, mut eax) = (Vec::new(), Instruction::default(), None);
        while decoder.can_decode() {
            decoder.decode_out(&mut insn);
            let offset = (insn.ip() - u64::from(self.at)) as u32;
            // Constants that are moved are as often addresses; those that are added go both ways.
            let adds = matches!(insn.mnemonic(), Mnemonic::Add | Mnemonic::Sub | Mnemonic::Cmp | Mnemonic::Imul);
            formatter.options_mut().set_signed_immediate_operands(adds);
            let mut shown = String::new();
            formatter.format(&insn, &mut shown);
            if let Some(note) = self.note(&insn, offset, eax, place) {
                shown = format!("{shown:<44} ; {note}");
            }
            let named = matches!(insn.code(), Code::Mov_r32_imm32 | Code::Test_EAX_imm32);
            eax = (named && insn.op0_register() == Register::EAX).then(|| insn.immediate32());
            out.push(HostLine { offset, text: format!("{offset:04x}  {shown}") });
            if let Some(exit) = self.ways().find(|way| way.via != 0 && way.via == offset) {
                // Behind the call is what it reads.
                let len = Thunks::told_of(exit.pc);
                let number = self.bytes.get(decoder.position()..).and_then(|data| data.first_chunk());
                let (number, next) = (number.map_or(0, |&n| u32::from_le_bytes(n)), decoder.position() + len);
                let _ = decoder.set_position(next);
                decoder.set_ip(u64::from(self.at) + next as u64);
                let at = next - len;
                out.push(HostLine { offset: at as u32, text: format!("{at:04x}  dd     {number:#x},{:#x}", exit.pc) });
            }
        }
        out
    }

    /// Which guest register lives where, and in brackets whose place it has taken in this region.
    fn registers(&self) -> String {
        const HOST: [&str; 16] = [
            "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
            "r15",
        ];
        let mut pins: Vec<(u8, u8)> = (0..32).filter_map(|guest| Some((self.map.host(guest)?, guest))).collect();
        pins.sort_unstable();
        let mut out = String::new();
        for (host, guest) in pins {
            out.push_str(&format!("{}={}", HOST[usize::from(host & 15)], REGISTERS[usize::from(guest)]));
            match PINS.iter().find(|p| p.1 == host) {
                Some(pin) if pin.0 != guest => out.push_str(&format!("({}) ", REGISTERS[usize::from(pin.0 & 31)])),
                _ => out.push(' '),
            }
        }
        out + "r15=budget rbp=context"
    }
}

impl TbCode<'_> {
    fn ways(&self) -> impl Iterator<Item = Way> {
        self.exits.iter().map(|exit| exit.way)
    }

    /// What an instruction stands for, where that is not to be seen: exits, stubs, calls of sites.
    fn note(&self, insn: &Instruction, offset: u32, eax: Option<u32>, place: &dyn Fn(u64) -> String) -> Option<String> {
        let end = offset + insn.len() as u32;
        if let Some(exit) = self.ways().find(|way| way.field != 0 && way.field + 4 == end) {
            return Some(format!("to {}", place(exit.pc)));
        }
        if let Some(exit) = self.exits.iter().find(|e| e.way.stub == offset) {
            let (way, refund) = (exit.way, exit.refund);
            return Some(match refund {
                _ if way.guarded => format!("{} is not linked, or no more", place(way.pc)),
                0 => format!("{} is not linked", place(way.pc)),
                _ => format!("poll at {}", place(way.pc)),
            });
        }
        let call = insn.mnemonic() == Mnemonic::Call && insn.op0_kind() == OpKind::NearBranch64;
        let target = insn.near_branch64();
        let routines = u64::from(self.thunks.again)..u64::from(self.thunks.again_end);
        if call && (target == u64::from(self.thunks.site) || routines.contains(&target)) {
            if again::only_looks(self.thunks.again, target) {
                return None;
            }
            let site = self.sites.get(eax? as usize % (1 << LOCAL_BITS))?;
            return Some(format!("{:x}: {}", site.pc, text(&site.insn, site.pc).replace('\t', " ")));
        }
        // The only subroutines of a TB: see remap.rs. The way out saves before it loads.
        let inside = usize::try_from(target.checked_sub(self.at.into())?).ok()?;
        if call && inside < self.bytes.len() {
            let first = Decoder::new(64, &self.bytes[inside..], DecoderOptions::NONE).decode();
            let out = first.op0_kind() == OpKind::Memory;
            return Some(if out { "to the registers that all TBs have" } else { "to the region's registers" }.into());
        }
        None
    }
}

/// Names for iced's formatter.
struct Names {
    thunks: Thunks,
    at: CodeOffset,
    len: u32,
    /// Offsets and numbers of blocks.
    blocks: HashMap<u32, usize>,
    flat: Option<i32>,
}

impl SymbolResolver for Names {
    fn symbol(
        &mut self,
        insn: &Instruction,
        operand: u32,
        _: Option<u32>,
        address: u64,
        _: u32,
    ) -> Option<SymbolResult<'_>> {
        let kind = insn.op_kind(operand);
        if kind == OpKind::NearBranch64 || insn.is_ip_rel_memory_operand() {
            let offset = address.wrapping_sub(self.at.into());
            if offset < u64::from(self.len) {
                let name = match self.blocks.get(&(offset as u32)) {
                    Some(block) => format!("b{block}"),
                    None => format!("{offset:#06x}"),
                };
                return Some(SymbolResult::with_string(address, name));
            }
            let t = &self.thunks;
            let thunks =
                [(t.enter, "enter"), (t.leave, "leave"), (t.site, "site"), (t.miss, "miss"), (t.miss_below, "miss")];
            let routines = u64::from(t.again)..u64::from(t.again_end);
            let exits = t.via.iter().map(|&via| (via, "via")).chain([(t.unlinked, "unlinked")]);
            let name = match thunks.into_iter().chain(exits).find(|n| u64::from(n.0) == address) {
                Some(thunk) => thunk.1,
                None if routines.contains(&address) && again::only_looks(t.again, address) => "look",
                None if routines.contains(&address) => "again",
                None => return None,
            };
            return Some(SymbolResult::with_str(address, name));
        }
        if kind != OpKind::Memory {
            return None;
        }
        let disp = insn.memory_displacement64() as i64;
        if insn.memory_base() == Register::RBP {
            return field(i32::try_from(disp).ok()?).map(|name| SymbolResult::with_string(address, name));
        }
        let flat = i64::from(self.flat?);
        // Nothing a load adds is further away; small displacements are not of RAM.
        let ram = flat.unsigned_abs() > 1 << 16 && (disp - flat).unsigned_abs() <= 1 << 12;
        ram.then(|| SymbolResult::with_str(flat as u64, "ram"))
    }
}

/// What lies at this displacement from the context register.
fn field(disp: i32) -> Option<String> {
    const CPU: i32 = offset_of!(Context, cpu) as i32 - BASE;
    const X: i32 = CPU + offset_of!(CpuState, x) as i32;
    const F: i32 = CPU + offset_of!(CpuState, f) as i32;
    const CSR: i32 = CPU + offset_of!(CpuState, csr) as i32;
    const CSR_END: i32 = CSR + size_of::<crate::guest::System>() as i32;
    const FIELDS: [(i32, &str); 14] = [
        (offsets::WHOLE, "ram.whole"),
        (offsets::RUN_START, "run.start"),
        (offsets::RUN, "run.len"),
        (offsets::TABLE_OFFSET, "set.offset"),
        (offsets::SET_TABLE, "set.table"),
        (offsets::SET_ADDEND, "set.addend"),
        (offsets::MAPPINGS, "mappings"),
        (CPU + offset_of!(CpuState, pc) as i32, "pc"),
        (CPU + offset_of!(CpuState, retired) as i32, "retired"),
        (offsets::BUDGET, "budget"),
        (offset_of!(Context, slice) as i32 - BASE, "slice"),
        (offsets::NEAR_JUMPS, "near_jumps"),
        (offsets::FAR_JUMPS, "far_jumps"),
        (offsets::FAR_MASK, "far_mask"),
    ];
    const JUMPS_END: i32 = JUMPS + 16 * JUMP_ENTRIES as i32;
    if let Some(found) = FIELDS.iter().find(|f| f.0 == disp) {
        return Some(found.1.into());
    }
    let pair = |from: i32| if (disp - from) % 16 == 0 { "pc" } else { "host" };
    Some(match disp - TABLE {
        READ => "tlb.read".into(),
        WRITE => "tlb.write".into(),
        ADDEND => "tlb.addend".into(),
        AUX => "tlb.aux".into(),
        _ if (X..X + 256).contains(&disp) => REGISTERS[(disp - X) as usize / 8].into(),
        _ if (F..F + 256).contains(&disp) => format!("f{}", (disp - F) / 8),
        _ if (CSR..CSR_END).contains(&disp) => format!("csr+{:#x}", disp - CSR),
        _ if (JUMPS..JUMPS_END).contains(&disp) => format!("jumps.{}", pair(JUMPS)),
        _ => return None,
    })
}
