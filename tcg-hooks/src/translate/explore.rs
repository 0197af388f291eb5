//! Which instructions belong to a region: from the entry along branches and jumps, inside two pages.
//!
//! ```text
//!   queue ─▶ a run: read, decode, note, straight on ─▶ met before, too many, the end: next in the queue
//!              └─ branch: its target and what follows it are leaders, the target is queued
//!   runs, sorted and merged ─▶ spans
//! ```
use super::{EXIT, Found, Limits, NONE, Page, READ, Slot, Translator, UNNUMBERED, WINDOW};
use crate::fetch::prefetch;
use crate::guest::{Features, Packed, is_short};
use crate::ir::{Region, Span};
use notdirty_core::PAGE_SIZE;
use notdirty_softmmu::{AccessKind, GuestVirt, Hooks, LiveMmu, MemFault};

/// Bytes behind the copy of the spans, so that there is a word at its last halfword.
const PAD: usize = 2;
/// Bytes behind its entry in which a region does not end for another.
const CLOSE: i64 = 64;
/// Bytes that are asked for ahead.
const AHEAD: usize = 6 * 64;

/// Bytes of one page that were asked for, for reads that need not ask.
#[derive(Clone, Copy)]
struct Open {
    /// Offset in the window of the first.
    from: u32,
    /// At how many places, from there on, four bytes can be read.
    places: u32,
    /// Where offset `from` is.
    host: *const u8,
}

impl Open {
    const NONE: Open = Open { from: 0, places: 0, host: std::ptr::null() };

    /// Code that was written a while ago is not in the near caches, and reading begins sooner than the host notices.
    fn prefetch(&self, off: u32) {
        prefetch(self.host.wrapping_add((off - self.from) as usize + 64), AHEAD);
    }

    /// The word at `off`, if four bytes from there are open.
    #[inline(always)]
    fn word(&self, off: u32) -> Option<u32> {
        let at = off.wrapping_sub(self.from);
        if at >= self.places {
            return None;
        }
        // SAFETY: inside the bytes that `fetch` said can be read; the page lives until the next `serve`, which
        // `translate` does not call.
        Some(unsafe { crate::fetch::word(self.host.add(at as usize)) })
    }
}

/// Where offsets of the window are in the copy of the spans' bytes. What lies over the end of a page goes on there as it
/// does in the window.
struct Placed<'a> {
    spans: &'a [Span],
    /// The span that was looked for last: its first offset, its length, and where it is.
    from: u32,
    len: u32,
    at: usize,
}

impl Placed<'_> {
    #[inline(always)]
    fn place(&mut self, off: u32) -> Option<usize> {
        if off.wrapping_sub(self.from) >= self.len {
            self.find(off)?;
        }
        Some(self.at + (off - self.from) as usize)
    }

    #[cold]
    fn find(&mut self, off: u32) -> Option<()> {
        self.at = 0;
        for span in self.spans {
            self.from = u32::from(span.page) * PAGE_SIZE as u32 + u32::from(span.start);
            self.len = (span.end - span.start).into();
            if off.wrapping_sub(self.from) < self.len {
                return Some(());
            }
            self.at += self.len as usize;
        }
        self.len = 0;
        None
    }
}

/// Of a word, the bits of the instruction that it begins with.
#[inline(always)]
fn own(word: u32) -> u32 {
    if is_short(word as u16) { word & 0xffff } else { word }
}

/// Why a straight run stops.
enum Stop {
    /// What comes next is not open.
    Blind,
    /// What comes next was met before.
    Met,
    /// No more may be found, or the window ends.
    Full,
    /// The last one found ends its block.
    Ends,
}

fn decoded(bits: u32) -> Packed {
    if is_short(bits as u16) { Packed::short(bits as u16) } else { Packed::long(bits) }
}

/// Reads on from `off` as far as it goes without asking anybody, behind branches too if there is a list for them; returns
/// where it stopped.
// Out of line and with arguments of its own: their lengths and pointers stay in registers.
#[inline(never)]
fn straight<const ALL: bool>(
    slots: &mut [Slot; WINDOW],
    found: &mut Vec<Found>,
    read: &mut [u8; READ],
    (open, off): (Open, u32),
    most: usize,
    isa: Features,
    mut branches: Option<&mut Vec<u16>>,
) -> (u32, Stop) {
    let mut number = found.len();
    let left = most.saturating_sub(number);
    found.reserve(left);
    let mut room = found.spare_capacity_mut()[..left].iter_mut();
    // In halfwords, as slots are; what is open behind the first place is one bound.
    let mut half = off as usize / 2;
    let end = if off < open.from { 0 } else { (open.from + open.places).div_ceil(2) as usize }.min(WINDOW);
    let base = open.host.wrapping_sub(open.from as usize);
    let why = loop {
        if half >= end {
            break match slots.get(half) {
                None => Stop::Full,
                Some(slot) if slot.at == NONE => Stop::Blind,
                Some(_) => Stop::Met,
            };
        }
        let slot = &mut slots[half];
        if slot.at != NONE {
            break Stop::Met;
        }
        let Some(place) = room.next() else { break Stop::Full };
        // SAFETY: from the first place to one past the last, `open` has four bytes that `fetch` said can be read; the page
        // lives until the next `serve`, which `translate` does not call.
        let word = unsafe { crate::fetch::word(base.wrapping_add(2 * half)) };
        slot.at = number as u16;
        number += 1;
        let off = 2 * half;
        // The way on depends on a jump, which is predicted, and not on what was looked up.
        let (bits, mut insn) = if !is_short(word as u16) {
            read[off..off + 4].copy_from_slice(&word.to_le_bytes());
            half += 2;
            (word, Packed::long(word))
        } else {
            read[off..off + 2].copy_from_slice(&(word as u16).to_le_bytes());
            half += 1;
            (word & 0xffff, Packed::short(word as u16))
        };
        if !ALL {
            insn = insn.filtered(isa, bits);
        }
        place.write(Found { off: off as u32, bits, insn });
        if insn.ends_block() {
            match &mut branches {
                Some(branches) if insn.condition().is_some() => branches.push(number as u16 - 1),
                _ => break Stop::Ends,
            }
        }
    };
    // SAFETY: `room` gave out as many places as were counted, one behind the other, and each was written.
    unsafe { found.set_len(number) };
    (2 * half as u32, if number >= most && !matches!(why, Stop::Ends) { Stop::Full } else { why })
}

impl Translator {
    fn page<H: Hooks>(&mut self, mmu: &mut LiveMmu, hooks: &mut H, off: u32) -> Result<(), MemFault> {
        let n = (u64::from(off) / PAGE_SIZE) as usize;
        let inside = u64::from(off) % PAGE_SIZE;
        let va = GuestVirt::new(self.base.wrapping_add(off.into()));
        let Some(&slot) = self.pages.get(n) else {
            return Err(MemFault::access(AccessKind::Fetch, va));
        };
        if slot.is_some_and(|p| (p.start..p.end).contains(&inside)) {
            return Ok(());
        }
        let got = mmu.fetch(hooks, self.idx, va)?;
        if !got.lasting {
            return Err(MemFault::access(AccessKind::Fetch, va));
        }
        let end = inside + got.len_ok;
        let page = Page { ram: got.ram, host: got.host, start: inside, end, size_log2: got.size_log2 };
        match slot {
            // Asked for from an earlier byte on: the same range if it ends at the same place.
            Some(old) if old.ram != page.ram || old.host != page.host || old.end != page.end => {
                // A page of several ranges: one region stays within one of them.
                Err(MemFault::access(AccessKind::Fetch, va))
            }
            _ => {
                self.pages[n] = Some(page);
                Ok(())
            }
        }
    }

    /// What is open of the page that `off` lies on.
    fn open(&self, off: u32) -> Open {
        let start = off / PAGE_SIZE as u32 * PAGE_SIZE as u32;
        match self.pages.get(off as usize / PAGE_SIZE as usize).copied().flatten() {
            Some(page) => Open {
                from: start + page.start as u32,
                places: ((page.end - page.start) as u32).saturating_sub(3),
                host: page.host.wrapping_add(page.start as usize),
            },
            None => Open::NONE,
        }
    }

    /// The halfword at `off`, if its page was asked for.
    fn half(&self, off: u32) -> Option<u16> {
        let page = self.pages.get(off as usize / PAGE_SIZE as usize).copied().flatten()?;
        let at = u64::from(off) % PAGE_SIZE;
        if at < page.start || at + 2 > page.end {
            return None;
        }
        // SAFETY: as in `Open::word`.
        Some(u16::from_le(unsafe { page.host.add(at as usize).cast::<u16>().read_volatile() }))
    }

    /// Copies the bytes of the spans.
    pub(super) fn copy_spans(&mut self) {
        self.bytes.clear();
        let len: usize = self.region.spans.iter().map(|s| usize::from(s.end - s.start)).sum();
        self.bytes.reserve_exact(len + PAD);
        for span in &self.region.spans {
            let Some(page) = self.pages[usize::from(span.page)] else { continue };
            let (from, len) = (usize::from(span.start), usize::from(span.end - span.start));
            // SAFETY: instructions were read there; the page lives until the next `serve`, which `translate` does not call.
            unsafe { crate::fetch::copy(page.host.add(from), len, &mut self.bytes) };
        }
        self.bytes.extend([0; PAD]);
    }

    /// Do the bytes, as they were copied, still say what they said?
    pub(super) fn unchanged(&self) -> bool {
        // Where none overlap, each byte was read once.
        let read: u32 = self.runs.iter().map(|&(start, end)| end - start).sum();
        if read as usize + PAD == self.bytes.len() {
            let mut at = 0;
            return self.region.spans.iter().all(|span| {
                let from = usize::from(span.page) * PAGE_SIZE as usize + usize::from(span.start);
                let len = usize::from(span.end - span.start);
                let now = self.bytes.get(at..at + len);
                at += len;
                now.is_some() && now == self.read.get(from..from + len)
            });
        }
        self.unchanged_one_by_one()
    }

    #[cold]
    fn unchanged_one_by_one(&self) -> bool {
        let mut spans = Placed { spans: &self.region.spans, from: 0, len: 0, at: 0 };
        let mut difference = 0;
        for &Found { off, bits, .. } in &self.found {
            let Some(at) = spans.place(off) else { return false };
            let Some(now) = self.bytes.get(at..at + 4) else { return false };
            let now = u32::from_le_bytes(now.try_into().expect("four bytes"));
            difference |= own(now) ^ bits;
        }
        difference == 0
    }

    fn mark(&mut self, off: u32) {
        let slot = &mut self.slots[off as usize / 2];
        if slot.block == NONE {
            slot.block = UNNUMBERED;
            self.leaders.push(off);
        }
    }

    /// Finds the region's instructions, the likeliest first: straight on before aside.
    pub(super) fn explore<H: Hooks>(
        &mut self,
        mmu: &mut LiveMmu,
        hooks: &mut H,
        pc: u64,
        limits: Limits,
    ) -> Result<(), MemFault> {
        let entry = (pc - self.base) as u32;
        self.queue.push(entry);
        self.mark(entry);
        let mut open = Open::NONE;
        let mut head = 0;
        while let Some(&start) = self.queue.get(head) {
            head += 1;
            if !matches!(self.slots[start as usize / 2].at, NONE | EXIT) {
                continue;
            }
            let mut off = start;
            loop {
                // Apart: where not everything is an instruction is seldom.
                let straight = if self.isa == Features::ALL { straight::<true> } else { straight::<false> };
                let branches = limits.regions.then_some(&mut self.branches);
                let (slots, found, read) = (&mut self.slots, &mut self.found, &mut self.read);
                let why;
                (off, why) = straight(slots, found, read, (open, off), limits.insns, self.isa, branches);
                self.follow_branches();
                match why {
                    Stop::Blind => {
                        match self.fetch(mmu, hooks, off) {
                            Ok(bits) => {
                                open = self.open(off);
                                open.prefetch(off);
                                // Over the end of what is open, two bytes on the next page or the last of all.
                                if open.word(off).is_some() {
                                    continue;
                                }
                                let insn = decoded(bits);
                                let all = self.isa == Features::ALL;
                                off = self.note(off, bits, if all { insn } else { insn.filtered(self.isa, bits) });
                            }
                            // Only the first instruction's fault is the guest's; others are met when they are reached.
                            Err(fault) if self.found.is_empty() => return Err(fault),
                            Err(_) => break,
                        }
                    }
                    Stop::Met => {
                        self.mark(off);
                        if self.slots[off as usize / 2].at == EXIT {
                            off = self.exit(mmu, hooks, off)?;
                        }
                        break;
                    }
                    Stop::Full => break,
                    Stop::Ends => {}
                }
                let last = self.found.last().copied();
                if last.is_none_or(|found| found.insn.ends_block() && !self.follow(found, limits.regions)) {
                    break;
                }
            }
            if off != start {
                self.runs.push((start, off));
            }
        }
        Ok(())
    }

    /// A run shall end at `off`: what is there is read, so that it is known when it changes, and is a site that leaves.
    #[cold]
    fn exit<H: Hooks>(&mut self, mmu: &mut LiveMmu, hooks: &mut H, off: u32) -> Result<u32, MemFault> {
        let bits = match self.fetch(mmu, hooks, off) {
            Ok(bits) => bits,
            Err(fault) if self.found.is_empty() => return Err(fault),
            Err(_) => {
                self.slots[off as usize / 2].at = NONE;
                return Ok(off);
            }
        };
        Ok(self.note(off, bits, decoded(bits).stopped()))
    }

    /// Notes the instruction at `off`; returns what follows it.
    fn note(&mut self, off: u32, bits: u32, insn: Packed) -> u32 {
        let (at, len) = (off as usize, insn.len() as usize);
        self.read[at..at + len].copy_from_slice(&bits.to_le_bytes()[..len]);
        self.slots[at / 2].at = self.found.len() as u16;
        self.found.push(Found { off, bits, insn });
        off + insn.len()
    }

    /// The instruction at `off`, on pages that may not have been asked for.
    fn fetch<H: Hooks>(&mut self, mmu: &mut LiveMmu, hooks: &mut H, off: u32) -> Result<u32, MemFault> {
        let low = self.ask(mmu, hooks, off)?;
        // Read once: were it another length at a second look, half of it would be on a page that nobody asked for.
        Ok(if is_short(low) { low.into() } else { u32::from(self.ask(mmu, hooks, off + 2)?) << 16 | u32::from(low) })
    }

    fn ask<H: Hooks>(&mut self, mmu: &mut LiveMmu, hooks: &mut H, off: u32) -> Result<u16, MemFault> {
        self.page(mmu, hooks, off)?;
        let last = GuestVirt::new(self.base.wrapping_add(u64::from(off) + 1));
        self.half(off).ok_or(MemFault::access(AccessKind::Fetch, last))
    }

    /// The same as below of the branches that were passed.
    fn follow_branches(&mut self) {
        for n in 0..self.branches.len() {
            self.follow(self.found[usize::from(self.branches[n])], true);
        }
        self.branches.clear();
    }

    /// Notes where an instruction may go; does exploring go straight on?
    fn follow(&mut self, found: Found, regions: bool) -> bool {
        let branch = found.insn.condition().is_some();
        if regions && (branch || found.insn.is_plain_jump()) {
            let target = self.base.wrapping_add_signed(i64::from(found.off) + i64::from(found.insn.imm));
            if let Some(target) = self.offset(target).filter(|target| !self.heads.contains(target)) {
                self.queue.push(target);
                self.mark(target);
            }
            if branch && (found.next() as usize) < 2 * WINDOW {
                self.mark(found.next());
            }
        }
        branch && regions
    }

    /// Of a region that was cut: the heads of loops that were entered behind these; whether there are any. What is cut has no
    /// such loop whole, or goes through it from the middle.
    pub(super) fn find_heads(&mut self, pc: u64) -> bool {
        let entry = (pc - self.base) as u32;
        for found in &self.found {
            if found.off >= entry && found.insn.condition().is_some() {
                let target = self.base.wrapping_add_signed(i64::from(found.off) + i64::from(found.insn.imm));
                let head = self.offset(target).filter(|&head| head < entry && !self.heads.contains(&head));
                self.heads.extend(head);
            }
        }
        !self.heads.is_empty()
    }

    /// Of a region that was cut: where other regions begin that are `known`, not in a loop of this one, nor close behind its entry.
    pub(super) fn find_stops(&mut self, known: impl Fn(u64) -> bool) {
        self.stops.clear();
        let Region { pc: entry, blocks, .. } = &self.region;
        for (n, block) in (0..).zip(blocks) {
            let far = block.pc.wrapping_sub(*entry) as i64;
            if far > CLOSE && known(block.pc) && !self.region.goes_round(n) {
                self.stops.push(block.pc);
            }
        }
    }

    /// The bytes of all runs.
    pub(super) fn make_spans(&mut self) {
        if !self.runs.is_sorted() {
            self.runs.sort_unstable();
        }
        let spans = &mut self.region.spans;
        spans.clear();
        let page = PAGE_SIZE as u32;
        for n in 0..2 {
            for &(start, end) in &self.runs {
                let (start, end) = (start.max(n * page), end.min((n + 1) * page));
                if start >= end {
                    continue;
                }
                let (s, e) = ((start - n * page) as u16, (end - n * page) as u16);
                match spans.last_mut() {
                    Some(last) if u32::from(last.page) == n && s <= last.end => last.end = last.end.max(e),
                    _ => spans.push(Span { page: n as u8, start: s, end: e }),
                }
            }
        }
    }
}
