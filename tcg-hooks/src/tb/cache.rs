//! Finding TBs, and adding them.
use super::ghosts::Ghosts;
use super::hot::HotKeys;
use super::jumps::JumpTable;
use super::pages::PageTbs;
use super::provisional::Provisional;
use super::regimes::Regimes;
use super::sites::{Places, SiteSet};
use super::{Exit, Tb, TbId, TbKey};
use crate::engine::JitFlags;
use crate::heat::Heat;
use crate::ir::{LETS_ODD, SEES_ADDEND, SEES_ENTRY, TESTS_LINE};
use crate::ir::{Region, Site, Span};
use crate::jit::code_cache::{CodeCache, CodeOffset, place_bytes};
use crate::jit::context::{Context, JUMP_SETS, JumpEntry};
use crate::jit::{Backend, Flat, Host, LOCAL_BITS, Regime, SiteFn};
use hashbrown::HashMap;
use notdirty_core::PageIndex;
use notdirty_softmmu::{AddressSpace, VcpuId, lines_of};
use std::io;
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::Duration;

/// Numbers of sites and exits keep this many bits for the TB, so that none looks like a leave reason.
const MAX_TBS: usize = 1 << (31 - LOCAL_BITS);

/// A TB to run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) id: TbId,
    pub(crate) entry: CodeOffset,
}

/// Counters of the TB cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TbStats {
    /// TBs made.
    pub translated: u64,
    /// Guest instructions in them.
    pub insns: u64,
    /// Host bytes in them.
    pub host_bytes: u64,
    /// TBs that died because their bytes were written.
    pub invalidated: u64,
    /// TBs that others than this hart wrote over, with the bytes they had.
    pub unchanged: u64,
    /// TBs that died because their chunk of the code cache was needed, or the memory map changed.
    pub evicted: u64,
    /// Of those whose bytes were written, the ones that died young: hot patch sites, left to tier 0 for a while.
    pub died_young: u64,
    /// TBs made by tier 2.
    pub tier2: u64,
    /// TBs made while one thread stored (WRITER-1): without locked instructions.
    pub alone: u64,
    /// TBs that died because a site was misaligned again and again, to be made anew for that.
    pub odd: u64,
    /// Translations given up because a store of theirs often lay beside code.
    pub beside: u64,
    /// The same because the RAM of an access often had another addend than assumed.
    pub elsewhere: u64,
    /// The same because loads often guessed an addend wrong.
    pub guessed: u64,
    /// Links made between TBs.
    pub linked: u64,
    /// Entries of lists that were looked at, or cut, to drop TBs: links, and the TBs of a page.
    pub steps: u64,
    /// Bytes of the code cache in use, and of what is kept of TBs beside their code.
    pub bytes: u64,
    /// The most CPU time that making room in the code cache took once.
    pub longest_reclaim: Duration,
}

impl AddAssign for TbStats {
    fn add_assign(&mut self, other: TbStats) {
        let TbStats {
            translated,
            insns,
            host_bytes,
            invalidated,
            unchanged,
            evicted,
            died_young,
            tier2,
            alone,
            odd,
            beside,
            elsewhere,
            guessed,
            linked,
            steps,
            bytes,
            longest_reclaim,
        } = other;
        self.translated += translated;
        self.insns += insns;
        self.host_bytes += host_bytes;
        self.invalidated += invalidated;
        self.unchanged += unchanged;
        self.evicted += evicted;
        self.died_young += died_young;
        self.tier2 += tier2;
        self.alone += alone;
        self.odd += odd;
        self.beside += beside;
        self.elsewhere += elsewhere;
        self.guessed += guessed;
        self.linked += linked;
        self.steps += steps;
        self.bytes += bytes;
        self.longest_reclaim = self.longest_reclaim.max(longest_reclaim);
    }
}

/// All TBs of one vCPU (TB-1).
pub(crate) struct TbCache {
    pub(super) space: Arc<AddressSpace>,
    /// Whose they are.
    pub(super) vcpu: VcpuId,
    pub(super) code: CodeCache,
    /// Where the pieces are that all TBs share.
    pub(crate) shared: <Host as Backend>::Shared,
    pub(crate) emitter: Box<Host>,
    pub(super) tbs: Vec<Option<Box<Tb>>>,
    pub(super) free: Vec<TbId>,
    /// TBs that are dead, for their memory.
    #[expect(clippy::vec_box, reason = "the boxes are what is kept")]
    pub(super) spare: Vec<Box<Tb>>,
    pub(super) by_key: HashMap<TbKey, TbId>,
    /// Where indirect jumps to TBs go that the jump cache does not know, by regime.
    pub(super) jumps: [JumpTable; JUMP_SETS],
    pub(super) regimes: Regimes,
    pub(super) pages: PageTbs,
    pub(super) provisional: Vec<Provisional>,
    pub(super) chunk_tbs: Vec<Vec<TbId>>,
    pub(super) ghosts: Ghosts,
    pub(super) odd: Places,
    /// Sites with stores that often lie beside code.
    pub(super) beside: Places,
    /// Sites that often find RAM with another addend than assumed.
    pub(super) elsewhere: Places,
    pub(super) beside_run: Places,
    /// How many there were.
    pub(super) beside_runs: u64,
    /// Sites of those whose addend is not that of the access before.
    pub(super) varied: Places,
    /// It is assumed of all sites, as memory lies in no order.
    pub(crate) scattered: bool,
    pub(super) hot: HotKeys,
    /// Bytes that are kept of the TBs that live, apart from their code.
    pub(super) kept: usize,
    /// Bytes of the places of their code.
    pub(super) live: usize,
    pub(crate) stats: TbStats,
    pub(super) flags: JitFlags,
    /// Those that died of a store, for who traces it: where, after how many instructions, and how often tier 0 will
    /// run that code before it is translated again.
    pub(crate) deaths: Option<Vec<(u64, u64, u32)>>,
    /// What tier 0 knows of cold code.
    pub(crate) heat: Heat,
    #[cfg(any(test, feature = "testkit"))]
    pub(crate) checker: super::check::Checker,
}

impl TbCache {
    pub(crate) fn new(
        space: &Arc<AddressSpace>,
        vcpu: VcpuId,
        bytes: usize,
        flags: JitFlags,
        flat: Flat,
        site: SiteFn,
    ) -> io::Result<TbCache> {
        let (shared_code, shared) = Host::assemble(flags, site);
        let code = CodeCache::new(bytes, &shared_code)?;
        let chunks = code.chunks();
        Ok(TbCache {
            space: space.clone(),
            vcpu,
            code,
            shared,
            emitter: Host::boxed(flags, shared, flat),
            tbs: Vec::new(),
            free: Vec::new(),
            spare: Vec::new(),
            by_key: HashMap::new(),
            jumps: Default::default(),
            regimes: Regimes::default(),
            pages: PageTbs::default(),
            provisional: Vec::new(),
            chunk_tbs: vec![Vec::new(); chunks],
            ghosts: Ghosts::new(bytes),
            odd: Places::default(),
            beside: Places::default(),
            elsewhere: Places::default(),
            beside_run: Places::default(),
            beside_runs: 0,
            varied: Places::default(),
            scattered: false,
            hot: HotKeys::default(),
            kept: 0,
            live: 0,
            stats: TbStats::default(),
            flags,
            deaths: None,
            heat: Heat::new(bytes),
            #[cfg(any(test, feature = "testkit"))]
            checker: Default::default(),
        })
    }

    /// The TB for this key, and the second page it has bytes on: it is valid while that page is where it was.
    /// This process is the child of a fork: begins anew, in memory of its own. `false`: the host has none, and there can be no TBs.
    #[cold]
    pub(crate) fn part_from_parent(&mut self, ctx: &mut Context, site: SiteFn) -> bool {
        if self.code.part_from_parent().is_err() {
            return false;
        }
        self.clear(ctx);
        self.code.restart(&Host::assemble(self.flags, site).0);
        self.chunk_tbs.iter_mut().for_each(Vec::clear);
        true
    }

    pub(crate) fn find(&self, key: &TbKey) -> Option<(Found, Option<PageIndex>)> {
        let id = *self.by_key.get(key)?;
        let tb = self.get(id)?;
        Some((Found { id, entry: tb.entry }, tb.pages.1))
    }

    pub(crate) fn get(&self, id: TbId) -> Option<&Tb> {
        self.tbs.get(id as usize)?.as_deref()
    }

    /// The site with this number. Emitted code only names sites of its own TB, which is alive.
    #[inline]
    pub(crate) fn site(&self, number: u32) -> Option<&Site> {
        self.get(number >> LOCAL_BITS)?.sites.get(number as usize % (1 << LOCAL_BITS))
    }

    /// The exit with this number.
    pub(crate) fn exit(&self, number: u32) -> Option<Exit> {
        self.get(number >> LOCAL_BITS)?.exits.get(number as usize % (1 << LOCAL_BITS)).copied()
    }

    /// The executable address of code.
    pub(crate) fn address(&self, at: CodeOffset) -> *const u8 {
        self.code.address(at)
    }

    pub(crate) fn code_bytes(&self, id: TbId) -> Vec<u8> {
        self.get(id).map(|t| self.code.bytes(t.code.0, t.code.1 as usize)).unwrap_or_default()
    }

    pub(crate) fn code_address(&self, id: TbId) -> u64 {
        self.get(id).map_or(0, |t| self.code.address(t.code.0) as u64)
    }

    /// A region from `pc` on will be added soon.
    pub(crate) fn prepare(&self, pc: u64) {
        self.code.prepare();
        if !self.flags.tier0 {
            self.ghosts.prepare(pc);
        }
    }

    /// Emits a region and makes it findable. Its lines were announced by the translator, who gets memory for other `bytes`
    /// in return.
    pub(crate) fn add(
        &mut self,
        ctx: &mut Context,
        key: TbKey,
        pages: (PageIndex, Option<PageIndex>),
        region: &Region,
        bytes: &mut Vec<u8>,
        hot: bool,
    ) -> Found {
        let id = self.free.pop().unwrap_or_else(|| {
            self.tbs.push(None);
            (self.tbs.len() - 1) as TbId
        });
        // Listed before anybody is killed: a kill counts a page's lines again, and ours are announced already (CODE-1).
        for (n, page) in [Some(pages.0), pages.1].into_iter().enumerate() {
            if let Some(page) = page {
                self.pages.add(page, id, lines(&region.spans, n as u8));
            }
        }
        if let Some(&old) = self.by_key.get(&key) {
            // Its second page moved: it will not be found again.
            self.kill(old, ctx);
        }
        while self.tbs.len() >= MAX_TBS && self.free.is_empty() {
            self.reclaim(ctx);
        }
        let one_writer = self.space.vcpus().one_writer();
        self.keep_limit(ctx);
        let odd = if self.flags.aligned { self.odd.of(region) } else { Some(SiteSet::ALL) };
        let beside = if self.flags.beside { self.beside.of(region) } else { Some(SiteSet::ALL) };
        let elsewhere = if self.scattered { Some(SiteSet::ALL) } else { self.elsewhere.of(region) };
        let beside_run = if self.has_no_run() { Some(SiteSet::ALL) } else { self.beside_run.of(region) };
        let alone = self.flags.one_writer && one_writer;
        let known = self.emitter.known();
        known.alone = alone;
        known.strict = self.space.ram().reservations().is_some() && !one_writer;
        known.odd = odd.unwrap_or(SiteSet::NONE);
        known.beside = beside.unwrap_or(SiteSet::NONE);
        known.elsewhere = elsewhere.unwrap_or(SiteSet::NONE);
        known.beside_run = beside_run.unwrap_or(SiteSet::NONE);
        known.varied = self.varied.of(region).unwrap_or(SiteSet::NONE);
        let (mode, pages_on) = (key.mode(), 1 + u64::from(pages.1.is_some()));
        let regime = Regime { mode, translated: key.is_translated(), flat: key.is_flat(), pages: pages_on };
        self.emitter.enter_regime(regime);
        let (len, entry) = self.emitter.emit(region, id);
        let at = match self.code.reserve(len) {
            Some(at) => at,
            None => {
                self.reclaim(ctx);
                self.code.reserve(len).expect("a chunk takes the largest TB")
            }
        };
        let code = self.emitter.place(at);
        self.code.write(at, code);
        let exits =
            self.emitter.exits().iter().map(|e| Exit { way: e.way.at(at), refund: e.refund, to: None, place: 0 });
        let chunk = self.code.chunk_of(at);
        let mut tb = self.spare.pop().unwrap_or_else(|| Box::new(Tb::empty(key, pages)));
        tb.renew(region, exits);
        if let Some(set) = &odd {
            tb.knows(set, LETS_ODD);
        }
        if let Some(set) = &beside {
            tb.knows(set, TESTS_LINE);
        }
        if let Some(set) = &elsewhere {
            tb.knows(set, SEES_ADDEND);
        }
        if let Some(set) = &beside_run {
            tb.knows(set, SEES_ENTRY);
        }
        tb.sampled(hot);
        std::mem::swap(&mut tb.bytes, bytes);
        (tb.key, tb.pages) = (key, pages);
        (tb.entry, tb.code) = (at + entry, (at, len as u32));
        (tb.chunk, tb.place) = (chunk, self.chunk_tbs[chunk].len() as u32);
        (tb.born, tb.serial) = (ctx.cpu.retired, self.stats.translated);
        self.kept += tb.kept();
        self.live += place_bytes(len);
        if !self.flags.tier0 {
            self.ghosts.made(key.pc);
        }
        self.stats.translated += 1;
        self.stats.alone += u64::from(alone);
        self.stats.tier2 += u64::from(!region.frames.is_empty());
        self.stats.insns += u64::from(region.insns);
        self.stats.host_bytes += len as u64;
        self.stats.bytes = (self.code.in_use() + self.kept) as u64;
        self.chunk_tbs[chunk].push(id);
        self.by_key.insert(key, id);
        let found = Found { id, entry: tb.entry };
        self.tbs[id as usize] = Some(tb);
        #[cfg(any(test, feature = "testkit"))]
        self.checkpoint(ctx, "a translation");
        found
    }

    /// Notes a TB in the jump cache in use, which is that of its regime; one that is not new, and so was forgotten there, in the table
    /// behind it, too. `sizes`: see `noted`.
    pub(crate) fn remember(
        &mut self,
        ctx: &mut Context,
        key: &TbKey,
        found: Found,
        new: bool,
        sizes: (u8, Option<u8>),
    ) {
        if self.flags.jump_cache {
            let (set, pc) = (ctx.jump_set(), key.pc);
            let entry = JumpEntry { pc, host: self.code.address(found.entry) as u64 };
            let known = std::mem::replace(ctx.near_slot(pc), entry) == entry;
            if !known {
                self.noted(ctx, pc, sizes);
            }
            if !new && !known {
                self.jumps[set].insert(pc, entry.host);
                self.jumps[set].publish(ctx);
            }
        }
    }

    /// Host code for a pc, if emitted code would find it.
    #[inline]
    pub(crate) fn jump(&self, ctx: &mut Context, pc: u64) -> Option<*const u8> {
        // An empty entry's pc is odd, and only the host can set such a one.
        if pc & 1 != 0 {
            return None;
        }
        let slot = *ctx.near_slot(pc);
        if slot.pc == pc {
            return Some(slot.host as *const u8);
        }
        let host = self.jumps[ctx.jump_set()].find(pc)?;
        *ctx.near_slot(pc) = JumpEntry { pc, host };
        Some(host as *const u8)
    }
}

/// The 64-byte lines of page 0 or 1 that these spans touch.
pub(super) fn lines(spans: &[Span], page: u8) -> u64 {
    let spans = spans.iter().filter(|s| s.page == page);
    spans.fold(0, |m, s| m | lines_of(s.start.into(), u64::from(s.end - s.start)))
}
