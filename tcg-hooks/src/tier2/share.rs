//! Accesses of a whole region off what it leaves alone, checked once: at its entry.
//!
//! ```text
//!   entry:  check a7 …, store a7 …, page 80005 …     in the registers that all TBs have ──no──▶ refused: tier 0 runs on from here
//!   blocks: lw t4,0(a7) ; … ; sw a2,4(t4)            the first without a check, and without a site; the second with its own
//! ```
//!
//! A base is a register as it is at the entry, or one that holds so much more; or a constant, as `auipc` and `lui` make them: a
//! page of globals is one check. A check holds as one in front of a loop does (`split.rs`): until the region is left, or Rust may
//! do more than an access. What comes back from a poll comes to an entry.
//!
//! A TB that is refused often is made again without this (`tb/hot.rs`).
use super::reach::{ENTRY, Facts, Reach};
use super::{Ahead, Learned, simplify};
use crate::ir::{Block, Check, Kind, Region, Target, Term};
use hashbrown::HashMap;
use notdirty_core::PAGE_SIZE;
use std::ops::Range;

/// Checks at an entry, at most.
const MOST: usize = 12;
/// Host instructions of a check, and of one of a page that is constant.
const PROBE: f32 = 6.0;
const ONE_PAGE: f32 = 3.0;
/// How many times as much must be gained, as what runs how often is a guess: a function that returns at once pays for what it might do.
const WORTH: f32 = 2.0;
/// How probable a way back is, and a way out beside one that goes on.
const BACK: f32 = 0.85;
const OUT: f32 = 0.25;
/// Rounds in which that spreads: with so few a loop has less turns than its way back says.
const ROUNDS: usize = 32;

/// An access that might go without a check of its own.
#[derive(Debug, Clone, Copy)]
struct Access {
    /// Its op.
    op: u32,
    base: u8,
    store: bool,
    /// Off the base.
    first: i32,
    last: i32,
    /// Is that all of it, and always?
    exact: bool,
    odd: bool,
    beside_run: bool,
    block: u16,
}

impl Access {
    /// Of a constant: which page that begins on, from the region's.
    fn page(&self, pc: u64) -> i64 {
        (i64::from(self.first) + (pc % PAGE_SIZE) as i64).div_euclid(PAGE_SIZE as i64)
    }
}

/// Takes the checks of accesses out of the region and puts them at its entry.
pub(super) fn share(region: &mut Region, ahead: Ahead) {
    let mut accesses = accesses(region, ahead.learned);
    // One group behind the other, each in the order of its bytes.
    accesses.sort_by_key(|access| (access.base, access.store, access.first));
    let mut groups: Vec<(f32, Check, Range<usize>)> = Vec::new();
    let often = often(region);
    let mut from = 0;
    while from < accesses.len() {
        let (check, to) = group(&accesses, from, region.pc);
        let gain = gain(&often, &accesses[from..to]);
        let price = match (check.base, check.lone) {
            (0, Some(_)) => ONE_PAGE,
            (_, Some(_)) => PROBE,
            (_, None) => 2.0 * PROBE,
        };
        if gain >= price * WORTH {
            groups.push((gain - price, check, from..to));
        }
        from = to;
    }
    groups.sort_by(|a, b| b.0.total_cmp(&a.0));
    groups.truncate(MOST);
    for (_, check, members) in &groups {
        region.shared.push(*check);
        for access in &accesses[members.clone()] {
            let ir = &mut region.ops[access.op as usize];
            if access.base == ENTRY && access.exact {
                (ir.a, ir.imm) = (0, region.pc.wrapping_add_signed(access.first.into()) as i64);
            }
            match ir.kind {
                Kind::Load(mem) => (ir.kind, ir.b) = (Kind::LoadFast(mem, 0), 0),
                Kind::Store(mem) => ir.kind = Kind::StoreFast(mem),
                _ => continue,
            }
            ir.site = 0;
        }
    }
    if !groups.is_empty() {
        // Constants that were addresses are asked for no more.
        simplify::sweep(region);
    }
}

/// Host instructions that are not done for each time that the region is entered. In a block accesses off one base share a check
/// already (`jit/x86_64/elide.rs`).
fn gain(often: &[f32], accesses: &[Access]) -> f32 {
    let mut in_block = HashMap::<u16, f32>::new();
    accesses.iter().for_each(|access| *in_block.entry(access.block).or_default() += PROBE);
    in_block.iter().map(|(&block, &cost)| cost.min(2.0 * PROBE) * often[usize::from(block)]).sum()
}

/// How often each block runs each time that the region is entered: a guess. What leaves the region, in a loop or not, ends it: a
/// loop that calls is one turn.
fn often(region: &Region) -> Vec<f32> {
    let mut often = vec![0.0; region.blocks.len()];
    for _ in 0..ROUNDS {
        let mut next = vec![0.0; often.len()];
        next[usize::from(region.entry)] = 1.0;
        for (n, block) in region.blocks.iter().enumerate() {
            let here: f32 = often[n];
            let mut go = |target: Target, share: f32| {
                if let Target::Block(to) = target {
                    next[usize::from(to)] += here * share;
                }
            };
            let is_back = |target: Target| matches!(target, Target::Block(to) if usize::from(to) <= n);
            let is_out = |target: Target| matches!(target, Target::Exit(_));
            match block.term {
                Term::Goto(to) => go(to, 1.0),
                Term::Branch { taken, fall, .. } => {
                    let share = match (is_back(taken), is_back(fall)) {
                        (true, false) => BACK,
                        (false, true) => 1.0 - BACK,
                        _ if is_out(taken) && !is_out(fall) => OUT,
                        _ if is_out(fall) && !is_out(taken) => 1.0 - OUT,
                        _ => 0.5,
                    };
                    go(taken, share);
                    go(fall, 1.0 - share);
                }
                Term::Again { out, fast, .. } => {
                    go(out, 1.0 - BACK);
                    go(Target::Block(fast), BACK);
                }
                Term::Turn { fast, last, .. } => {
                    go(Target::Block(fast), BACK);
                    go(Target::Block(last), 1.0 - BACK);
                }
                Term::Fork { fast, .. } | Term::Count { fast, .. } => go(Target::Block(fast), 1.0),
                Term::Indirect { .. } | Term::System { .. } => {}
            }
        }
        often = next;
    }
    often
}

/// The accesses from `from` on that one check covers, and where the next ones begin.
fn group(accesses: &[Access], from: usize, pc: u64) -> (Check, usize) {
    let lead = accesses[from];
    let constant = lead.base == ENTRY;
    let on_one_page =
        |access: &Access| constant && access.page(pc) == Access { first: access.last, ..*access }.page(pc);
    let one_page = on_one_page(&lead);
    let (mut last, mut alike, mut beside_run) = (lead.last, lead.exact && !lead.odd, lead.beside_run);
    let mut to = from + 1;
    while let Some(next) = accesses.get(to) {
        let same = (next.base, next.store) == (lead.base, lead.store);
        let fits = match one_page {
            true => next.page(pc) == lead.page(pc) && on_one_page(next),
            false => next.last.max(last) - lead.first < PAGE_SIZE as i32,
        };
        if !same || !fits {
            break;
        }
        last = last.max(next.last);
        beside_run |= next.beside_run;
        alike &= (next.first, next.last, next.exact, next.odd) == (lead.first, lead.last, true, false);
        to += 1;
    }
    let base = lead.base - ENTRY;
    // On one page for certain; or they are all the same, which is on one if it is aligned.
    let lone = match (one_page, constant) {
        (true, _) => Some(1),
        (false, false) if alike => Some((last - lead.first + 1) as u8),
        _ => None,
    };
    (Check { base, store: lead.store, first: lead.first, last, lone, beside_run, ..Check::default() }, to)
}

/// The accesses off bases that are what they were at the entry.
fn accesses(region: &Region, learned: &dyn Fn(u64) -> Learned) -> Vec<Access> {
    let facts = facts(region);
    let (mut out, mut reaches) = (Vec::new(), Vec::new());
    for (block, facts) in (0..).zip(&facts) {
        let Some(facts) = facts else { continue };
        let Block { first, .. } = region.blocks[usize::from(block)];
        facts.through(region.pc, region.ops_of(&region.blocks[usize::from(block)]), &mut reaches);
        for (n, reach) in (first..).zip(&reaches) {
            let Some(Reach { base, first, last, exact, .. }) = reach.filter(|reach| reach.base >= ENTRY) else {
                continue;
            };
            let ir = &region.ops[n as usize];
            let store = matches!(ir.kind, Kind::Store(_));
            let Learned { odd, beside, elsewhere, beside_run } = learned(region.sites[usize::from(ir.site)].pc);
            // A page with code would fail the check for all, and so would one with another addend.
            if !(elsewhere || store && beside) && last - first < PAGE_SIZE as i32 {
                out.push(Access { op: n, base, store, first, last, exact, odd, beside_run, block });
            }
        }
    }
    out
}

/// What is known at the head of each block that can be reached.
fn facts(region: &Region) -> Vec<Option<Facts>> {
    let mut heads: Vec<Option<Facts>> = vec![None; region.blocks.len()];
    heads[usize::from(region.entry)] = Some(Facts::at_entry());
    let mut reaches = Vec::new();
    let mut open: Vec<u16> = vec![region.entry];
    while let Some(number) = open.pop() {
        let block = &region.blocks[usize::from(number)];
        let Some(head) = &heads[usize::from(number)] else { continue };
        let end = head.through(region.pc, region.ops_of(block), &mut reaches);
        let mut see = |to: u16| {
            let head = &mut heads[usize::from(to)];
            let now = match head {
                Some(known) => {
                    let mut now = known.clone();
                    now.meet(&end);
                    now
                }
                None => end.clone(),
            };
            if head.as_ref() != Some(&now) {
                *head = Some(now);
                if !open.contains(&to) {
                    open.push(to);
                }
            }
        };
        block.term.each_target(|target| {
            if let Target::Block(to) = target {
                see(to);
            }
        });
        // Checks lead elsewhere, too.
        for ir in region.ops_of(block).iter().filter(|ir| ir.kind == Kind::Check) {
            see(region.checks[ir.imm as usize].cold);
        }
    }
    heads
}
