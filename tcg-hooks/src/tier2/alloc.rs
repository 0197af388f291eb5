//! Which value lives where, and the region in these terms.
use super::narrow::{Widths, narrowed, widths};
use super::webs::{NONE, OpWebs, Positions, Webs};
use super::{HOST, HOSTS, Place, SAVED, pin_of, roles};
use crate::ir::{Alu, Ir, Kind, Region, Term, Turns};

/// Where a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Home {
    /// In its guest register's place only.
    Memory,
    /// In a host register where it is used, and there.
    Both(u8),
    /// In a host register as long as anything may ask for it.
    Register(u8),
}

impl Home {
    fn host(self) -> Option<u8> {
        match self {
            Home::Memory => None,
            Home::Both(k) | Home::Register(k) => Some(k),
        }
    }
}

/// The host registers, and where each is taken.
struct Hosts([Positions; HOSTS]);

impl Hosts {
    fn is_free(&self, k: u8, at: &Positions) -> bool {
        !self.0[usize::from(k)].meets(at)
    }

    fn take(&mut self, k: u8, at: &Positions) {
        self.0[usize::from(k)].join(at);
    }
}

/// Busiest first: a value gets a register that is free where it is used, and keeps it further if it can.
pub(super) fn allocate(webs: &Webs) -> Vec<Home> {
    let all = &webs.webs;
    let mut hosts = Hosts([Positions::NONE; HOSTS]);
    let mut homes = vec![Home::Memory; all.len()];
    let mut order: Vec<usize> = (0..all.len()).filter(|&w| all[w].reads != 0).collect();
    let density = |w: usize| {
        let web = &all[w];
        u64::from(web.reads + web.writes) * 256 / u64::from(web.hot.count().max(1))
    };
    order.sort_by_cached_key(|&w| std::cmp::Reverse(density(w)));
    for &w in &order {
        let web = &all[w];
        let mut whole = web.hot;
        whole.join(&web.cold);
        let like = (web.like != NONE).then(|| homes[usize::from(web.like)].host()).flatten();
        let wishes = [pin_of(web.guest), like];
        let ways = || wishes.into_iter().flatten().chain(0..HOSTS as u8);
        let found = ways().find(|&k| hosts.is_free(k, &whole)).or_else(|| ways().find(|&k| hosts.is_free(k, &web.hot)));
        if let Some(k) = found {
            hosts.take(k, &web.hot);
            homes[w] = Home::Both(k);
        }
    }
    // What is written most wants to be spared the way home; a value at the borders, too.
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by_cached_key(|&w| std::cmp::Reverse(2 * all[w].writes + u32::from(all[w].entry)));
    for w in order {
        let web = &all[w];
        let mut whole = web.hot;
        whole.join(&web.cold);
        match homes[w] {
            Home::Both(k) => {
                // Its own hot part is taken already.
                let mut rest = whole;
                rest.leave_out(&web.hot);
                if hosts.is_free(k, &rest) {
                    hosts.take(k, &rest);
                    homes[w] = Home::Register(k);
                }
            }
            Home::Memory if web.reads == 0 && (web.writes != 0 || (web.entry && pin_of(web.guest).is_some())) => {
                let pin = pin_of(web.guest);
                let others = if web.writes != 0 { 0..HOSTS as u8 } else { 0..0 };
                if let Some(k) = pin.into_iter().chain(others).find(|&k| hosts.is_free(k, &whole)) {
                    hosts.take(k, &whole);
                    homes[w] = Home::Register(k);
                }
            }
            _ => {}
        }
    }
    homes
}

/// Touches of memory for guest registers, by weight, and moves at the entry.
pub(super) fn cost(region: &Region, webs: &Webs, homes: &[Home]) -> u64 {
    let mut cost = 0u64;
    for (web, home) in webs.webs.iter().zip(homes) {
        cost += u64::from(match home {
            Home::Memory => web.reads + web.writes,
            Home::Both(_) => web.writes,
            Home::Register(_) => 0,
        });
    }
    for (g, &web) in webs.heads[usize::from(region.entry)].iter().enumerate().skip(1) {
        let home = homes[usize::from(web)];
        // It comes in, and goes out in the end.
        cost += match (pin_of(g as u8), home) {
            (Some(pin), Home::Register(k)) if pin == k => 0,
            (Some(_), _) | (None, Home::Register(_) | Home::Both(_)) => 2,
            (None, Home::Memory) => 0,
        };
    }
    cost
}

/// The same with the fixed map.
pub(super) fn cost_before(webs: &Webs) -> u64 {
    let unpinned = webs.webs.iter().filter(|web| pin_of(web.guest).is_none());
    unpinned.map(|web| u64::from(web.reads + web.writes)).sum()
}

/// The region's ops on host registers and memory, with its frames.
pub(super) fn rewrite(region: &mut Region, webs: &Webs, homes: &[Home]) {
    let Widths { extended, narrow, words } = widths(region, webs, homes);
    let is_narrow = |web: u16| web != NONE && narrow[usize::from(web)];
    let is_extended = |web: u16| web != NONE && extended[usize::from(web)];
    let home = |web: u16| if web == NONE { Home::Memory } else { homes[usize::from(web)] };
    let name = |web: u16, id: u8| home(web).host().map_or(id, |k| HOST + k);
    let occupies = |web: u16, p: usize| {
        let w = &webs.webs[usize::from(web)];
        w.hot.has(p) || matches!(home(web), Home::Register(_)) && w.cold.has(p)
    };
    let mut frames = std::mem::take(&mut region.frames);
    frames.clear();
    frames.sites.resize(region.sites.len(), Default::default());
    // In registers, and not at home.
    let kept = |now: &[u16; 32]| {
        let now = *now;
        (1..32u8).filter_map(move |guest| match home(now[usize::from(guest)]) {
            Home::Register(host) => Some(Place { guest, host, narrow: is_narrow(now[usize::from(guest)]) }),
            _ => None,
        })
    };
    let entry = &webs.heads[usize::from(region.entry)];
    let start = webs.positions[usize::from(region.entry)];
    frames.home = frames.add((1..32u8).filter_map(|guest| {
        let at_home = !matches!(home(entry[usize::from(guest)]), Home::Register(_));
        pin_of(guest).filter(|_| at_home).map(|host| Place { guest, host, narrow: false })
    }));
    frames.load = frames.add((1..32u8).filter_map(|guest| {
        let web = entry[usize::from(guest)];
        home(web).host().filter(|_| occupies(web, start)).map(|host| Place { guest, host, narrow: false })
    }));
    let mut ops: Vec<Ir> = Vec::with_capacity(2 * region.ops.len());
    for b in 0..region.blocks.len() {
        let block = region.blocks[b];
        let mut now = webs.heads[b];
        let head = frames.add(kept(&now));
        frames.heads.push(head);
        let first = ops.len() as u32;
        for j in block.first as usize..block.end as usize {
            let p = webs.positions[b] + 1 + j - block.first as usize;
            let ir = region.ops[j];
            let OpWebs { writes, reads, .. } = webs.ops[j];
            let roles = roles(&ir);
            let before = if roles.site { frames.add(kept(&now)) } else { Default::default() };
            if let Some(g) = roles.writes {
                now[usize::from(g)] = writes;
            }
            if roles.site {
                let behind = (1..32u8).filter_map(|guest| {
                    let web = now[usize::from(guest)];
                    let host = home(web).host().filter(|_| occupies(web, p + 1))?;
                    let changed = roles.writes == Some(guest) || SAVED >> host & 1 == 0;
                    changed.then_some(Place { guest, host, narrow: false })
                });
                let behind = frames.add(behind);
                frames.sites[usize::from(ir.site)] = (before, behind);
            }
            let (rd, a, b) = (name(writes, ir.rd), name(reads[0], ir.a), name(reads[1], ir.b));
            let (kind, imm) = match ir.kind {
                // `sext.w` of what is extended, or for the 32 bits alone.
                Kind::Imm(Alu::AddW)
                    if ir.imm == 0 && (is_narrow(writes) || is_extended(reads[0]) && !is_narrow(reads[0])) =>
                {
                    (Kind::Mov, 0)
                }
                // What `split` makes for a value of its own.
                Kind::Imm(Alu::Add) if ir.imm == 0 => (Kind::Mov, 0),
                _ if is_narrow(writes) => narrowed(&ir),
                kind => (kind, ir.imm),
            };
            if kind != Kind::Mov || rd != a {
                ops.push(Ir { kind, rd, a, b, imm, ..ir });
            }
            if let (Home::Both(k), Some(g)) = (home(writes), roles.writes) {
                let kind = if is_narrow(writes) { Kind::Imm(Alu::AddW) } else { Kind::Mov };
                ops.push(Ir { kind, rd: g, a: HOST + k, b: 0, site: 0, imm: 0 });
            }
        }
        // A return address is written home, over what was there.
        let link = if let Term::Indirect { link: Some((rd, _)), .. } = block.term { rd } else { 0 };
        let term = frames.add(kept(&now).filter(|place| place.guest != link));
        frames.terms.push(term);
        let ([x, y], number) = (webs.terms[b], b);
        let block = &mut region.blocks[b];
        match &mut block.term {
            Term::Again { clock, .. } | Term::Fork { clock: Some((clock, _)), .. } => {
                *clock = name(now[usize::from(*clock)], *clock);
            }
            _ => {}
        }
        match &mut block.term {
            Term::Branch { a, b, word, .. } | Term::Again { a, b, word, .. } => {
                (*a, *b, *word) = (name(x, *a), name(y, *b), words[number]);
            }
            Term::Indirect { base, .. } => *base = name(x, *base),
            Term::Count { turns: Turns { clock, bound, .. }, .. } => {
                (*clock, *bound) = (name(x, *clock), name(y, *bound));
            }
            Term::Turn { clock, .. } => *clock = name(x, *clock),
            Term::System { site } => frames.sites[usize::from(*site)] = (term, Default::default()),
            Term::Goto(_) | Term::Fork { .. } => {}
        }
        (block.first, block.end) = (first, ops.len() as u32);
    }
    region.ops = ops;
    region.frames = frames;
}
