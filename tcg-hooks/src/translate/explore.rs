//! Which instructions belong to a region: from the entry along branches and jumps, inside two pages.
//!
//! ```text
//!   queue ─▶ a run: read, decode, note, straight on ─▶ met before, too many, the end: next in the queue
//!              └─ branch: its target and what follows it are leaders, the target is queued
//!   runs, sorted and merged ─▶ spans
//! ```
use super::plan::{Plan, plan_of};
use super::{Found, Limits, NONE, Page, Translator, UNNUMBERED, WINDOW};
use crate::ir::Span;
use crate::riscv::{Insn, decode_any};
use notdirty_core::PAGE_SIZE;
use notdirty_softmmu::{AccessKind, GuestVirt, Hooks, MemFault, MmuIdx, SoftMmu};

/// Lines that are asked for ahead.
const AHEAD: usize = 6;

/// Bytes of one page that were asked for, for reads that need not ask: `[from, to)`, by offset in the window.
#[derive(Clone, Copy)]
struct Open {
    from: u32,
    to: u32,
    /// Where offset `from` is.
    host: *const u8,
}

impl Open {
    const NONE: Open = Open { from: 0, to: 0, host: std::ptr::null() };

    /// Code that was written a while ago is not in the near caches, and reading begins sooner than the host notices.
    fn prefetch(&self, off: u32) {
        #[cfg(target_arch = "x86_64")]
        for line in 1..=AHEAD {
            let at = self.host.wrapping_add((off - self.from) as usize + 64 * line);
            // SAFETY: a hint; it touches no memory.
            unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast()) };
        }
    }

    /// The bits at `off`, if four bytes from there are open.
    #[inline(always)]
    fn read(&self, off: u32) -> Option<u32> {
        let at = off.wrapping_sub(self.from);
        if at > (self.to - self.from).checked_sub(4)? {
            return None;
        }
        // SAFETY: inside the bytes that `fetch` said can be read; the page lives until the next `serve`, which
        // `translate` does not call.
        let bits = unsafe { crate::fetch::word(self.host.add(at as usize)) };
        Some(if bits & 3 == 3 { bits } else { bits & 0xffff })
    }
}

impl Translator {
    fn page<H: Hooks>(&mut self, mmu: &mut SoftMmu, hooks: &mut H, off: u32) -> Result<(), MemFault> {
        let n = (u64::from(off) / PAGE_SIZE) as usize;
        let inside = u64::from(off) % PAGE_SIZE;
        let va = GuestVirt::new(self.base.wrapping_add(off.into()));
        let Some(&slot) = self.pages.get(n) else {
            return Err(MemFault::access(AccessKind::Fetch, va));
        };
        if slot.is_some_and(|p| (p.start..p.end).contains(&inside)) {
            return Ok(());
        }
        let got = mmu.fetch(hooks, MmuIdx::M, va)?;
        let page = Page { ram: got.ram, host: got.host, start: inside, end: inside + got.len_ok };
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
                to: start + page.end as u32,
                host: page.host.wrapping_add(page.start as usize),
            },
            None => Open::NONE,
        }
    }

    /// The halfword at `off`, if its page was asked for.
    fn half(&self, off: u32) -> Option<u16> {
        let open = self.open(off);
        if off < open.from || off + 2 > open.to {
            return None;
        }
        // SAFETY: as in `Open::read`.
        Some(u16::from_le(unsafe { open.host.add((off - open.from) as usize).cast::<u16>().read_volatile() }))
    }

    /// The bits of the instruction at `off`, which may lie over the end of a page.
    fn read(&self, off: u32) -> Option<u32> {
        let low = self.half(off)?;
        if low & 3 != 3 { Some(low.into()) } else { Some(u32::from(self.half(off + 2)?) << 16 | u32::from(low)) }
    }

    /// Do the bytes still say what they said?
    pub(super) fn unchanged(&self) -> bool {
        let mut open = Open::NONE;
        self.found.iter().all(|&Found { off, bits, .. }| {
            let now = open.read(off).or_else(|| {
                open = self.open(off);
                self.read(off)
            });
            now == Some(bits)
        })
    }

    fn mark(&mut self, off: u32) {
        let leader = &mut self.leader[off as usize / 2];
        if *leader == NONE {
            *leader = UNNUMBERED;
            self.leaders.push(off);
        }
    }

    /// Finds the region's instructions, the likeliest first: straight on before aside.
    pub(super) fn explore<H: Hooks>(
        &mut self,
        mmu: &mut SoftMmu,
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
            let mut off = start;
            while (off as usize) < 2 * WINDOW && self.found.len() < limits.insns {
                if self.at[off as usize / 2] != NONE {
                    self.mark(off);
                    break;
                }
                let bits = match open.read(off) {
                    Some(bits) => bits,
                    None => match self.fetch(mmu, hooks, off) {
                        Ok(bits) => {
                            open = self.open(off);
                            open.prefetch(off);
                            bits
                        }
                        // Only the first instruction's fault is the guest's; others are met when they are reached.
                        Err(fault) if self.found.is_empty() => return Err(fault),
                        Err(_) => break,
                    },
                };
                let insn = decode_any(bits as u16, bits);
                self.at[off as usize / 2] = self.found.len() as u16;
                self.found.push(Found { off, bits, insn });
                let here = off;
                off += u32::from(insn.len);
                let plan = plan_of(insn.op);
                if plan.ends_block() && !self.follow(here, &insn, plan, off, limits.regions) {
                    break;
                }
            }
            if off != start {
                self.runs.push((start, off));
            }
        }
        Ok(())
    }

    /// The instruction at `off`, on pages that may not have been asked for.
    fn fetch<H: Hooks>(&mut self, mmu: &mut SoftMmu, hooks: &mut H, off: u32) -> Result<u32, MemFault> {
        self.page(mmu, hooks, off)?;
        if self.half(off).is_some_and(|low| low & 3 == 3) {
            self.page(mmu, hooks, off + 2)?;
        }
        let behind = GuestVirt::new(self.base.wrapping_add(u64::from(off) + 2));
        self.read(off).ok_or(MemFault::access(AccessKind::Fetch, behind))
    }

    /// Notes where `insn` may go; does exploring go straight on?
    fn follow(&mut self, off: u32, insn: &Insn, plan: Plan, next: u32, regions: bool) -> bool {
        let branch = matches!(plan, Plan::Branch(_));
        if regions && (branch || plan == Plan::Jump && insn.rd == 0) {
            let pc = self.base.wrapping_add(off.into());
            if let Some(target) = self.offset(insn.target(pc)) {
                self.queue.push(target);
                self.mark(target);
            }
            if branch && (next as usize) < 2 * WINDOW {
                self.mark(next);
            }
        }
        branch && regions
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
