//! Where each hart is, and what became of one that is stuck in a trap: the text that the command prints.
//!
//! ```text
//!   unhandled trap on hart 0: load access fault (mcause 5), mtval 0x10, at pc 0x80000046 <main+0x6>
//!     its trap handler at 0x0 is not RAM: instruction access fault (mcause 1), mtval 0x0, at pc 0x0
//!     zero ..  ra ..  sp ..  gp ..              registers, four in a row
//!     called from, by frame pointers: ..        or by DWARF, or what looks like return addresses on the stack
//!     hart 0: pc .., stuck in its trap handler  every hart
//! ```

use std::fmt::Write as _;

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
        let mut word = [0; 2];
        if pending_interrupt(cpu, irq::ALL).is_some() || self.read(cpu.pc, &mut word).is_err() {
            return false;
        }
        let low = u16::from_le_bytes(word);
        // c.j with an offset of 0, and jal x0 with one; the upper half of that is zero as well.
        low == 0xa001 || low == 0x006f && self.read(cpu.pc.wrapping_add(2), &mut word).is_ok() && word == [0; 2]
    }

    /// The first trap of a hart that no handler takes, in full; `None` if there is none. It ends with a newline.
    pub fn crash_report(&self, hart: usize) -> Option<String> {
        let crash = self.vcpu(hart)?.unhandled()?;
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "unhandled trap on hart {hart}: {}", self.trap_text(&crash.first));
        let base = crash.vector & !3;
        let handler = self.trap_text(&crash.handler);
        let name = self.symbol(base).map(|name| format!(" <{name}>")).unwrap_or_default();
        let what = if self.is_ram(base) { "traps itself" } else { "is not RAM" };
        let _ = writeln!(out, "  its trap handler at {base:#x}{name} {what}: {handler}");
        if crash.retired != 0 {
            let _ = writeln!(out, "  registers behind {} instructions of the handler:", crash.retired);
        }
        for row in 0..8 {
            for column in 0..4 {
                let n = 4 * row + column;
                let _ = write!(out, "  {:>4} {:016x}", REGISTERS[n], crash.x[n]);
            }
            out.push('\n');
        }
        let (how, callers) = self.callers(crash.first.pc, &crash.x);
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

    fn trap_text(&self, at: &TrapAt) -> String {
        let TrapAt { trap, pc, mode } = at;
        let place = self.place(*pc) + mode.beside_pc();
        format!("{} (mcause {}), mtval {:#x}, at {place}", trap.name(), trap.cause, trap.tval)
    }

    /// Return addresses of the callers, the nearest first, of code at `pc` with these registers.
    pub fn callers(&self, pc: u64, x: &[u64; 32]) -> (Callers, Vec<u64>) {
        let (ra, sp, fp) = (x[1], x[2], x[8]);
        let mut callers = Vec::new();
        // A jump into the wild: only ra tells where from.
        if !self.is_ram(pc) && self.is_return(ra) {
            callers.push(ra);
        }
        let from = if callers.is_empty() { (pc, false) } else { (ra, true) };
        if let Some(found) = unwind::callers(&self.frames, self, from, x, CALLERS - callers.len()) {
            callers.extend(found);
            return (Callers::Dwarf, callers);
        }
        let chain = self.chain(ra, sp, fp);
        if !chain.is_empty() {
            callers.extend(chain.into_iter().filter(|at| callers.first() != Some(at)).collect::<Vec<_>>());
            callers.truncate(CALLERS);
            return (Callers::FramePointers, callers);
        }
        if callers.is_empty() && self.is_return(ra) {
            callers.push(ra);
        }
        // A stack pointer near the end of the address space has no stack above it.
        let Some(aligned) = sp.checked_next_multiple_of(8) else { return (Callers::Scan, callers) };
        for at in (aligned..aligned.saturating_add(SCANNED)).step_by(8) {
            let Some(word) = self.word(at) else { break };
            if callers.len() < CALLERS && self.is_return(word) && callers.last() != Some(&word) {
                callers.push(word);
            }
        }
        (Callers::Scan, callers)
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

    fn is_ram(&self, at: u64) -> bool {
        let memory = self.memory();
        memory.blocks().iter().any(|block| at.checked_sub(block.base.get()).is_some_and(|off| off < block.size))
    }
}

impl unwind::Memory for Machine {
    fn word(&self, at: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        // Devices have registers that change when they are read.
        (self.is_ram(at) && self.is_ram(at.checked_add(7)?)).then_some(())?;
        self.read(at, &mut bytes).ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    fn is_return(&self, at: u64) -> bool {
        let half = |at: u64| {
            let mut bytes = [0; 2];
            (self.is_ram(at) && self.read(at, &mut bytes).is_ok()).then(|| u16::from_le_bytes(bytes))
        };
        if at & 1 != 0 || at < 4 {
            return false;
        }
        // jal and jalr with rd = ra; c.jalr.
        let long = half(at - 4).is_some_and(|low| matches!(low & 0xfff, 0x0ef | 0x0e7));
        let short = half(at - 2).is_some_and(|low| low & 0xf07f == 0x9002 && low & 0x0f80 != 0);
        (long || short) && self.is_ram(at)
    }
}
