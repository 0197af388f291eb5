//! Callers by DWARF: what `.eh_frame` or `.debug_frame` says of each function's frame.
//!
//! ```text
//!   pc ─▶ the function's entry (FDE) ─▶ the row of that pc: CFA = a register + n; ra, s0 .. at CFA + m, or as they are
//!      ─▶ the caller's registers, sp = CFA ─▶ its pc - 1 (the call) ─▶ the next
//! ```
//!
//! It ends where a function says that it has no caller, where no entry covers the pc, or where a return address is none.
//! The files are read as hostile: entries are read once, and what one entry can make the reader do is bounded by its length.

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, CommonInformationEntry, DebugFrame, EhFrame, EndianSlice, FrameDescriptionEntry,
    LittleEndian, RegisterRule, UnwindContext, UnwindOffset, UnwindSection,
};

use crate::load::FrameTables;

type Bytes<'t> = EndianSlice<'t, LittleEndian>;
/// Registers that a caller gets back, and `ra`: a bit each.
const KEPT: u32 = 1 << 1 | 1 << 2 | 3 << 8 | 0x3ff << 18;
/// Longest CIE: each of thousands of FDEs may name one, and its bytes are looked through then.
const LONGEST_CIE: u32 = 4096;

/// What the unwinder asks the machine.
pub(super) trait Memory {
    /// Eight bytes of RAM.
    fn word(&self, at: u64) -> Option<u64>;
    /// Is there a call just before this address?
    fn is_return(&self, at: u64) -> bool;
}

/// How to undo the frame of one function at one pc.
struct Undo {
    cfa: (u16, i64),
    rules: Vec<(u16, RegisterRule<usize>)>,
    /// The register with the return address.
    ra: u16,
}

/// The entries of one section.
struct Table<'t, S: UnwindSection<Bytes<'t>>> {
    section: S,
    bases: BaseAddresses,
    entries: Vec<FrameDescriptionEntry<Bytes<'t>>>,
}

impl<'t, S: UnwindSection<Bytes<'t>>> Table<'t, S> {
    fn new(section: S, bytes: &'t [u8], address: u64) -> Self {
        let bases = BaseAddresses::default().set_eh_frame(address);
        let mut entries = Vec::new();
        let mut all = section.entries(&bases);
        // What is damaged ends the list: nothing behind it can be found.
        while let Ok(Some(entry)) = all.next() {
            let CieOrFde::Fde(partial) = entry else { continue };
            entries.extend(partial.parse(|section, bases, offset| cie(section, bases, offset, bytes)).ok());
        }
        Table { section, bases, entries }
    }

    fn undo(&self, context: &mut UnwindContext<usize>, pc: u64) -> Option<Undo> {
        let entry = self.entries.iter().find(|entry| entry.contains(pc))?;
        let row = entry.unwind_info_for_address(&self.section, &self.bases, context, pc).ok()?;
        let CfaRule::RegisterAndOffset { register, offset } = row.cfa() else { return None };
        let rules = row.registers().map(|(register, rule)| (register.0, rule.clone())).collect();
        Some(Undo { cfa: (register.0, *offset), rules, ra: entry.cie().return_address_register().0 })
    }
}

fn cie<'t, S: UnwindSection<Bytes<'t>>>(
    section: &S,
    bases: &BaseAddresses,
    offset: S::Offset,
    bytes: &[u8],
) -> gimli::Result<CommonInformationEntry<Bytes<'t>>> {
    let at: usize = UnwindOffset::into(offset);
    let length = bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|length| u32::from_le_bytes(*length));
    match length {
        Some(..=LONGEST_CIE) => section.cie_from_offset(bases, offset),
        _ => Err(gimli::Error::UnknownAugmentation),
    }
}

/// Return addresses of the callers of code at `pc` with these registers, the nearest first; not more than `most`. `None` if
/// nothing is known of `pc`, or its frame is not as it is said to be. With `call`, `pc` is what a call returns to.
pub(super) fn callers(
    tables: &FrameTables,
    memory: &impl Memory,
    (pc, call): (u64, bool),
    x: &[u64; 32],
    most: usize,
) -> Option<Vec<u64>> {
    let (eh, debug) = (&tables.eh_frame, &tables.debug_frame);
    let eh = Table::new(EhFrame::new(&eh.bytes, LittleEndian), &eh.bytes, eh.address);
    let debug = Table::new(DebugFrame::new(&debug.bytes, LittleEndian), &debug.bytes, 0);
    let mut context = UnwindContext::new();
    let mut registers = x.map(Some);
    let mut at = if call { pc.wrapping_sub(1) } else { pc };
    let mut found = Vec::new();
    while found.len() < most {
        let Some(undo) = eh.undo(&mut context, at).or_else(|| debug.undo(&mut context, at)) else { break };
        let Some((caller, ends)) = undo.apply(memory, &registers) else { break };
        let ra = caller.get(usize::from(undo.ra)).copied().flatten();
        match ra.filter(|&ra| memory.is_return(ra)) {
            Some(ra) => found.push(ra),
            // The outermost function says so: it has no caller, and there is nothing to look for.
            None if ends => return Some(found),
            None => break,
        }
        // `found` grew: the loop ends though frames be circular.
        (at, registers) = (ra.unwrap_or(0).wrapping_sub(1), caller);
    }
    (!found.is_empty()).then_some(found)
}

impl Undo {
    /// The caller's registers, as far as they are known, and whether there is none.
    fn apply(&self, memory: &impl Memory, of: &[Option<u64>; 32]) -> Option<([Option<u64>; 32], bool)> {
        let register = |n: u16| of.get(usize::from(n)).copied().flatten();
        let cfa = register(self.cfa.0)?.wrapping_add_signed(self.cfa.1);
        let mut caller = [None; 32];
        for n in (0..32).filter(|n| KEPT >> n & 1 != 0) {
            caller[n] = of[n];
        }
        caller[2] = Some(cfa);
        let mut ends = false;
        for (n, rule) in &self.rules {
            ends |= *n == self.ra && *rule == RegisterRule::Undefined;
            let Some(place) = caller.get_mut(usize::from(*n)) else { continue };
            *place = match *rule {
                RegisterRule::SameValue => register(*n),
                RegisterRule::Offset(offset) => memory.word(cfa.wrapping_add_signed(offset)),
                RegisterRule::ValOffset(offset) => Some(cfa.wrapping_add_signed(offset)),
                RegisterRule::Register(other) => register(other.0),
                RegisterRule::Constant(value) => Some(value),
                _ => None,
            };
        }
        Some((caller, ends))
    }
}
