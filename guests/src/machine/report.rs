//! Where each hart is, and what became of one that is stuck in a trap: the text that the command prints.
//!
//! ```text
//!   unhandled trap on hart 0: load access fault (mcause 5), mtval 0x10, at pc 0x80000046 <main+0x6>
//!     its trap handler at 0x0 (mtvec) is not RAM: instruction access fault (mcause 1), mtval 0x0, at pc 0x0
//!     zero ..  ra ..  sp ..  gp ..              registers, four in a row
//!     called from, by frame pointers: ..        or by DWARF, or what looks like return addresses on the stack
//!     hart 0: pc .., stuck in its trap handler  every hart
//! ```
//!
//! Code and stack are looked up as the hart would find them in the mode of the trap, by its page tables and PMP; nothing is changed, and
//! no device is read. What is not mapped is told.

use std::fmt::Write as _;

use notdirty_softmmu::{AccessKind, FaultCause};
use notdirty_tcg::riscv::Privilege;
use notdirty_tcg::riscv::csr::irq;
use notdirty_tcg::riscv::disasm::REGISTERS;
use notdirty_tcg::riscv::trap::pending_interrupt;
use notdirty_tcg::{TrapAt, UnhandledTrap};

use super::Machine;
use super::unwind::{self, Memory as _};

/// Callers that are shown, at most.
const CALLERS: usize = 32;
/// Bytes of the stack in which return addresses are looked for.
const SCANNED: u64 = 4096;

/// The hart and the first trap that it could not handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CrashedHart {
    /// Number of the hart.
    pub hart: usize,
    /// The first trap.
    pub first: TrapAt,
    /// What its handler, or the attempt to enter it, came to.
    pub handler: TrapAt,
    /// Where the handler should be: `mtvec`, or `stvec` of a trap that is delegated.
    pub vector: u64,
}

/// How the callers were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    /// By what the file's `.eh_frame` or `.debug_frame` says (`-g`, `-fasynchronous-unwind-tables`).
    Dwarf,
    /// By the chain of frame pointers (`-fno-omit-frame-pointer`).
    FramePointers,
    /// What looks like return addresses in `ra` and on the stack: some may be old.
    Scan,
}

impl Machine {
    /// The first hart that is stuck in a trap, if one is.
    pub fn crashed(&self) -> Option<CrashedHart> {
        self.vcpus.iter().enumerate().find_map(|(hart, vcpu)| {
            let UnhandledTrap { first, handler, vector, .. } = vcpu.unhandled()?;
            Some(CrashedHart { hart, first, handler, vector })
        })
    }

    /// `pc 0x80000046 <main+0x6>`.
    pub fn place(&self, pc: u64) -> String {
        self.symbol(pc).map_or_else(|| format!("pc {pc:#x}"), |symbol| format!("pc {pc:#x} <{symbol}>"))
    }

    /// A line for each hart: where it is, and what it does there.
    pub fn places(&self) -> String {
        let mut text = String::new();
        for (hart, vcpu) in self.vcpus.iter().enumerate() {
            let place = self.place(vcpu.cpu().pc) + vcpu.cpu().privilege.beside_pc();
            let does = if vcpu.unhandled().is_some() {
                ", stuck in its trap handler"
            } else if vcpu.is_waiting() {
                ", waits for an interrupt (wfi)"
            } else if self.spins(hart) {
                ", in a loop of one instruction with interrupts off"
            } else {
                ""
            };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  hart {hart}: {place}{does}");
        }
        text
    }

    /// Is the hart in a jump to itself that no interrupt ends?
    pub fn spins(&self, hart: usize) -> bool {
        let Some(vcpu) = self.vcpu(hart) else { return false };
        let cpu = vcpu.cpu();
        if pending_interrupt(cpu, irq::ALL).is_some() {
            return false;
        }
        let seen = Seen { machine: self, hart, mode: cpu.privilege };
        // c.j with an offset of 0, and jal x0 with one; the upper half of that is zero as well.
        match seen.half(cpu.pc) {
            Some(0xa001) => true,
            Some(0x006f) => seen.half(cpu.pc.wrapping_add(2)) == Some(0),
            _ => false,
        }
    }

    /// The first trap of a hart that no handler takes, in full; `None` if there is none. It ends with a newline.
    pub fn crash_report(&self, hart: usize) -> Option<String> {
        let crash = self.vcpu(hart)?.unhandled()?;
        let mut out = String::new();
        // The CSRs of the mode that the handler runs in hold the cause.
        let by = if crash.handler.mode == Privilege::M { 'm' } else { 's' };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "unhandled trap on hart {hart}: {}", self.trap_text(&crash.first, by));
        let base = crash.vector & !3;
        let handler = self.trap_text(&crash.handler, by);
        let name = self.symbol(base).map(|name| format!(" <{name}>")).unwrap_or_default();
        let handled_in = Seen { machine: self, hart, mode: crash.handler.mode };
        let what = handled_in.why_not(base, AccessKind::Fetch).map_or("traps itself".into(), |why| format!("is {why}"));
        let _ = writeln!(out, "  its trap handler at {base:#x}{name} ({by}tvec) {what}: {handler}");
        if crash.retired != 0 {
            let insns = if crash.retired == 1 { "instruction" } else { "instructions" };
            let _ = writeln!(out, "  registers after {} {insns} of the handler:", crash.retired);
        }
        for row in 0..8 {
            for column in 0..4 {
                let n = 4 * row + column;
                let _ = write!(out, "  {:>4} {:016x}", REGISTERS[n], crash.x[n]);
            }
            out.push('\n');
        }
        let mode = crash.first.mode;
        let cpu = self.vcpu(hart)?.cpu();
        // In M-mode without paging there is nothing to say.
        if mode != Privilege::M || cpu.csr.satp != 0 {
            let _ = writeln!(out, "  satp {:016x} ({})", cpu.csr.satp, cpu.paging());
        }
        let seen = Seen { machine: self, hart, mode };
        // Where addresses are physical, the registers say it.
        if let Some(why) = seen.why_not(crash.x[2], AccessKind::Load).filter(|why| *why != NOT_RAM) {
            let _ = writeln!(out, "  the stack at {:#x} is {why}{}", crash.x[2], mode.beside_pc());
        }
        let (how, callers) = self.callers((hart, mode), crash.first.pc, &crash.x);
        if !callers.is_empty() {
            out.push_str(match how {
                Callers::Dwarf => "  called from, by DWARF:\n",
                Callers::FramePointers => "  called from, by frame pointers:\n",
                Callers::Scan => "  called from, by what looks like return addresses in ra and on the stack:\n",
            });
        }
        for caller in callers {
            let _ = writeln!(out, "    {}", self.place(caller));
        }
        out.push_str(&self.places());
        Some(out)
    }

    fn trap_text(&self, at: &TrapAt, by: char) -> String {
        let TrapAt { trap, pc, mode } = at;
        let place = self.place(*pc) + mode.beside_pc();
        format!("{} ({by}cause {}), {by}tval {:#x}, at {place}", trap.name(), trap.cause, trap.tval)
    }

    /// Return addresses of the callers, the nearest first, of code at `pc` with these registers, as a hart sees its memory in a mode.
    pub fn callers(&self, (hart, mode): (usize, Privilege), pc: u64, x: &[u64; 32]) -> (Callers, Vec<u64>) {
        let seen = Seen { machine: self, hart, mode };
        let (ra, sp, fp) = (x[1], x[2], x[8]);
        let mut callers = Vec::new();
        // A jump into the wild: only ra tells where from.
        if !seen.is_code(pc) && seen.is_return(ra) {
            callers.push(ra);
        }
        let from = if callers.is_empty() { (pc, false) } else { (ra, true) };
        if let Some(found) = unwind::callers(&self.frames, &seen, from, x, CALLERS - callers.len()) {
            callers.extend(found);
            return (Callers::Dwarf, callers);
        }
        let chain = seen.chain(ra, sp, fp);
        if !chain.is_empty() {
            callers.extend(chain.into_iter().filter(|at| callers.first() != Some(at)).collect::<Vec<_>>());
            callers.truncate(CALLERS);
            return (Callers::FramePointers, callers);
        }
        if callers.is_empty() && seen.is_return(ra) {
            callers.push(ra);
        }
        // A stack pointer near the end of the address space has no stack above it.
        let Some(aligned) = sp.checked_next_multiple_of(8) else { return (Callers::Scan, callers) };
        for at in (aligned..aligned.saturating_add(SCANNED)).step_by(8) {
            let Some(word) = seen.word(at) else { break };
            if callers.len() < CALLERS && seen.is_return(word) && callers.last() != Some(&word) {
                callers.push(word);
            }
        }
        (Callers::Scan, callers)
    }

    fn is_ram(&self, at: u64) -> bool {
        let memory = self.memory();
        memory.blocks().iter().any(|block| at.checked_sub(block.base.get()).is_some_and(|off| off < block.size))
    }
}

/// Of an address that leads somewhere else.
const NOT_RAM: &str = "not RAM";

/// Memory as a hart finds it in a mode.
#[derive(Clone, Copy)]
struct Seen<'m> {
    machine: &'m Machine,
    hart: usize,
    mode: Privilege,
}

impl Seen<'_> {
    /// RAM's bytes at a physical address. Devices have registers that change when they are read.
    fn ram<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (self.machine.is_ram(at) && self.machine.is_ram(at.checked_add(N as u64 - 1)?)).then_some(())?;
        self.machine.read(at, &mut bytes).ok()?;
        Some(bytes)
    }

    fn physical(&self, at: (u64, u64), kind: AccessKind) -> Result<u64, FaultCause> {
        let vcpu = self.machine.vcpu(self.hart).ok_or(FaultCause::Access)?;
        vcpu.cpu().physical(self.mode, at, kind, |at| self.ram(at).map(u64::from_le_bytes))
    }

    /// The bytes at an address, if they are all in RAM and such an access may reach them.
    fn bytes<const N: usize>(&self, at: u64, kind: AccessKind) -> Option<[u8; N]> {
        let len = N as u64;
        at.checked_add(len - 1)?;
        if (at & 0xfff) + len <= 0x1000 {
            return self.ram(self.physical((at, len), kind).ok()?);
        }
        let mut bytes = [0; N];
        for (at, byte) in (at..).zip(&mut bytes) {
            [*byte] = self.ram(self.physical((at, 1), kind).ok()?)?;
        }
        Some(bytes)
    }

    fn half(&self, at: u64) -> Option<u16> {
        self.bytes(at, AccessKind::Fetch).map(u16::from_le_bytes)
    }

    fn is_code(&self, at: u64) -> bool {
        self.why_not(at, AccessKind::Fetch).is_none()
    }

    /// Why no such access finds RAM there.
    fn why_not(&self, at: u64, kind: AccessKind) -> Option<&'static str> {
        match self.physical((at, 1), kind) {
            Ok(at) if self.machine.is_ram(at) => None,
            Ok(_) => Some(NOT_RAM),
            Err(FaultCause::Page) => Some("not mapped"),
            Err(_) => Some("refused by PMP, or has no page table"),
        }
    }

    /// `ra` lies below the frame pointer and the caller's frame pointer below that; a leaf function keeps the latter only.
    fn chain(&self, ra: u64, sp: u64, mut fp: u64) -> Vec<u64> {
        let mut chain = Vec::new();
        let mut below = sp;
        while chain.len() < CALLERS && fp.is_multiple_of(8) && fp > below {
            let (Some(first), Some(second)) = (self.word(fp.wrapping_sub(8)), self.word(fp.wrapping_sub(16))) else {
                break;
            };
            let next = if self.is_return(first) {
                chain.push(first);
                second
            } else if chain.is_empty() && self.is_return(ra) && first > fp {
                chain.push(ra);
                first
            } else {
                break;
            };
            (below, fp) = (fp, next);
        }
        chain
    }
}

impl unwind::Memory for Seen<'_> {
    fn word(&self, at: u64) -> Option<u64> {
        self.bytes(at, AccessKind::Load).map(u64::from_le_bytes)
    }

    fn is_return(&self, at: u64) -> bool {
        if at & 1 != 0 || at < 4 {
            return false;
        }
        // jal and jalr with rd = ra; c.jalr.
        let long = self.half(at - 4).is_some_and(|low| matches!(low & 0xfff, 0x0ef | 0x0e7));
        let short = self.half(at - 2).is_some_and(|low| low & 0xf07f == 0x9002 && low & 0x0f80 != 0);
        (long || short) && self.is_code(at)
    }
}
