//! The guest that is emulated, by the names that all but its own folder know it by.
//!
//! ```text
//!   exec ─┐                 ┌ state      System, Mode, Features, float registers' side of it, names, streams
//!   tb   ─┤                 │ code       Insn, Packed, Lower, decode, is_short, flow, text
//!   tier0 ┼─▶ guest (this) ─┤ execution  step (tier 0), sites (of emitted code), interp (the oracle), Outcome
//!   jit  ─┤                 │ memory     Memory, Walker, Changed, follow, changed, fence
//!   hooks ┘                 └ traps      Trap, hart (interrupts, handlers, what an exception is)
//!                                  ▲
//!                        riscv/ ───┘ one folder
//! ```
//!
//! A guest is a folder that has these names, and a line here: what is called is known when this is compiled, and costs nothing. What is
//! taken for granted of each: 32 integer registers, of which number 0 is zero, and 32 of 64 bits for floating point
//! ([`CpuState`](crate::cpu::CpuState)); instructions of two or four bytes at even addresses, of which the first halfword says how long they
//! are; pages of 4 KiB; little endian. Beside what is below, `CpuState` says how it finds memory: `fetch_idx`, `data_idx`,
//! `regime`, `is_in_plain_mode`, `why_not`.
use crate::riscv as guest;

/// An instruction, decoded (of its fields, only `len` is for all; what a hart lacks is sifted out by [`Features`]), and as the translator
/// keeps it.
pub(crate) use guest::decode::{Insn, Packed, decode_any as decode, is_compressed as is_short};
/// Instructions and registers as text.
pub(crate) use guest::disasm::{FLOAT_REGISTERS, REGISTERS, line, text};
/// Where instructions go, and what they compare.
pub(crate) use guest::flow;
/// From instructions to IR, a block at a time.
pub(crate) use guest::lower::{Lower, push_site};

/// The rest of its registers, the modes that it has, and what may be left out of it.
pub(crate) use guest::{Isa as Features, Privilege as Mode, csr::Csrs as System};

/// The oracle: an instruction after the other.
pub(crate) use guest::interp;
/// The instruction of a site of emitted code.
pub(crate) use guest::sites;
/// An instruction of tier 0.
pub(crate) use guest::step::step;

/// How addresses are translated, and what of that changed.
pub(crate) use guest::mmu::{self as memory, Changed, Memory, Walker};

/// What the loop asks of a hart: interrupts, handlers, registers by name.
pub(crate) use guest::hart;
/// An exception or an interrupt.
pub(crate) use guest::trap::Trap;

/// Where control goes by an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goes {
    /// To one of two places that it names.
    Branch,
    /// To one.
    Jump,
    /// To where a register says.
    Indirect,
}

/// What executing an instruction came to.
pub(crate) enum Outcome {
    /// On with the next instruction of the TB.
    Next,
    /// It retired; go on at this pc by way of the exec loop.
    Leave(u64),
    /// It retired; go on at this pc, not behind the instruction (which may be gone).
    Go(u64),
    /// It did not retire.
    Trap(Trap),
    /// It was not executed: a run shall end there.
    Exit,
}

#[cfg(test)]
mod tests {
    use crate::jit::tests::files;
    use std::path::Path;

    /// What only that guest has. What is the crate's own, as `CpuState::csr` is, or of each guest, is not among them.
    const WORDS: &str = "riscv Op Privilege Isa Csrs CsrEnv CsrEffect PATTERNS is_compressed decode_any fpu pmp \
        mstatus satp mtvec stvec mie mip mepc sepc medeleg mideleg frm fflags fcsr mcountinhibit menvcfg supervisor_deadline \
        Mret Sret Ecall Ebreak Jal Jalr FenceVma SfenceVma mret sret ecall ebreak sfence_vma take_in_s_mode is_delegated";

    /// Code alone: without comments, texts and tests, which end each file.
    fn code(text: &str) -> String {
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let without = |line: &str| -> String {
            let line = line.split("//").next().unwrap_or_default();
            line.split('"').step_by(2).collect::<Vec<_>>().join(" ")
        };
        text.lines().map(without).collect::<Vec<_>>().join("\n")
    }

    /// The words of that guest that a file says.
    fn known(text: &str) -> Vec<String> {
        let text = code(text);
        let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
        words.filter(|word| WORDS.split_whitespace().any(|known| known == *word)).map(str::to_owned).collect()
    }

    #[test]
    fn nothing_but_its_own_folder_knows_which_guest_is_emulated() {
        let (mut all, src) = (Vec::new(), Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
        files(&src, &mut all);
        let inside = |path: &str| path.contains("src/riscv/");
        // Programs for tests are that guest's, and so are tests.
        let tests = |path: &str| path.contains("src/testkit/") || path.ends_with("/tests.rs");
        assert!(all.iter().filter(|(path, _)| inside(path)).any(|(_, text)| known(text).len() > 50));
        let outside = all.iter().filter(|(path, _)| !inside(path) && !tests(path));
        let knows: Vec<_> =
            outside.map(|(path, text)| (path, known(text))).filter(|(_, words)| !words.is_empty()).collect();
        // The line that chooses it, with its names beside ours; and the crate's face, which shows all of it.
        let [guest, lib] = &knows[..] else { panic!("{knows:?}") };
        let (guest, lib) = if guest.0.ends_with("lib.rs") { (lib, guest) } else { (guest, lib) };
        assert!(guest.0.ends_with("src/guest.rs") && lib.0.ends_with("src/lib.rs"), "{knows:?}");
        assert_eq!(lib.1, ["riscv", "riscv"], "the module, and its oracle");
        assert_eq!(guest.1.iter().filter(|word| *word == "riscv").count(), 1);
    }
}
