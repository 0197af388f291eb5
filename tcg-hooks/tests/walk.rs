//! Page-table walks against the steps of the privileged specification ("Virtual Address Translation Process"), done literally.

use notdirty_softmmu::{AccessKind, FaultCause, Rights};
use notdirty_tcg::riscv::walk::{Leaf, Regime, Scheme, Tables, walk};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Entries by their addresses; all others are zero.
#[derive(Clone, Default, PartialEq, Debug)]
struct Memory {
    entries: BTreeMap<u64, u64>,
    unreadable: BTreeSet<u64>,
    read_only: BTreeSet<u64>,
    /// At the next compare-and-swaps, what another hart stores there just before.
    rivals: Vec<u64>,
    written: Vec<(u64, u64)>,
}

impl Tables for Memory {
    fn read(&mut self, at: u64) -> Option<u64> {
        assert_eq!(at % 8, 0);
        assert_eq!(at >> 56, 0);
        (!self.unreadable.contains(&at)).then(|| self.entries.get(&at).copied().unwrap_or(0))
    }

    fn replace(&mut self, at: u64, old: u64, new: u64) -> Option<bool> {
        if self.unreadable.contains(&at) || self.read_only.contains(&at) {
            return None;
        }
        if let Some(rival) = self.rivals.pop() {
            self.entries.insert(at, rival);
        }
        let equal = self.entries.get(&at).copied().unwrap_or(0) == old;
        if equal {
            self.entries.insert(at, new);
            self.written.push((at, new));
        }
        Some(equal)
    }
}

/// Bits `hi` down to `lo`.
fn field(value: u64, hi: u32, lo: u32) -> u64 {
    ((u128::from(value) >> lo) & ((1u128 << (hi - lo + 1)) - 1)) as u64
}

fn flag(value: u64, bit: u32) -> bool {
    field(value, bit, bit) == 1
}

/// The ten steps. The physical address, and whether the mapping is global.
fn by_the_book(memory: &mut Memory, regime: Regime, va: u64, kind: AccessKind) -> Result<(u64, bool), FaultCause> {
    let (levels, va_bits) = match regime.scheme {
        Scheme::Bare => return Ok((va, false)),
        Scheme::Sv39 => (3u32, 39u32),
        Scheme::Sv48 => (4, 48),
        Scheme::Sv57 => (5, 57),
    };
    // Bits 63 to va_bits must all equal bit va_bits - 1.
    if (va_bits..64).any(|bit| flag(va, bit) != flag(va, va_bits - 1)) {
        return Err(FaultCause::Page);
    }
    let vpn = |i: u32| field(va, 12 + 9 * i + 8, 12 + 9 * i);
    // 1.
    let mut a = regime.root * 4096;
    let mut i = levels - 1;
    let mut global = false;
    loop {
        // 2.
        let at = a + vpn(i) * 8;
        let pte = memory.read(at).ok_or(FaultCause::Access)?;
        let (v, r, w, x, u, g) = (flag(pte, 0), flag(pte, 1), flag(pte, 2), flag(pte, 3), flag(pte, 4), flag(pte, 5));
        let (a_bit, d_bit, n) = (flag(pte, 6), flag(pte, 7), flag(pte, 63));
        // 3.
        if !v || (!r && w) || field(pte, 60, 54) != 0 {
            return Err(FaultCause::Page);
        }
        let pbmt = field(pte, 62, 61);
        let leaf = r || x;
        if pbmt == 3 || (pbmt != 0 && (!leaf || !regime.pbmte)) {
            return Err(FaultCause::Page);
        }
        if !leaf && (n || u || a_bit || d_bit) {
            return Err(FaultCause::Page);
        }
        // "If N is set in a PTE at a level above 0, or its low ppn bits are no encoding that is defined": reserved.
        if n && (i != 0 || field(pte, 13, 10) != 0b1000) {
            return Err(FaultCause::Page);
        }
        // 4.
        if !leaf {
            if i == 0 {
                return Err(FaultCause::Page);
            }
            i -= 1;
            a = field(pte, 53, 10) * 4096;
            // "The global setting implies that all mappings in the subsequent levels of the page table are global."
            global |= g;
            continue;
        }
        // 5. and 6.
        let by_mode = match (regime.user, u, kind) {
            (true, _, _) => u,
            (false, false, _) => true,
            (false, true, AccessKind::Fetch) => false,
            (false, true, _) => regime.sum,
        };
        let by_kind = match kind {
            AccessKind::Fetch => x,
            AccessKind::Load => r || (x && regime.mxr),
            AccessKind::Store => w,
        };
        if !by_mode || !by_kind {
            return Err(FaultCause::Page);
        }
        // 7.
        if i > 0 && field(pte, 10 + 9 * i - 1, 10) != 0 {
            return Err(FaultCause::Page);
        }
        // 9.
        if !a_bit || (kind == AccessKind::Store && !d_bit) {
            if !regime.adue {
                return Err(FaultCause::Page);
            }
            let mut updated = pte | 1 << 6;
            if kind == AccessKind::Store {
                updated |= 1 << 7;
            }
            if !memory.replace(at, pte, updated).ok_or(FaultCause::Access)? {
                continue;
            }
        }
        // 10.
        let mut pa = field(va, 11, 0);
        for level in 0..levels {
            let (lo, hi) = if level == 4 { (46, 53) } else { (10 + 9 * level, 10 + 9 * level + 8) };
            let part = if level < i { vpn(level) } else { field(pte, hi, lo) };
            pa += part << (12 + 9 * level);
        }
        // A ppn has 44 bits, whatever the number of levels.
        if levels < 5 {
            pa += field(pte, 53, 10 + 9 * levels) << (12 + 9 * levels);
        }
        if n {
            pa = pa & !0xffff | va & 0xffff;
        }
        return Ok((pa, global || g));
    }
}

fn scheme() -> impl Strategy<Value = Scheme> {
    prop_oneof![Just(Scheme::Sv39), Just(Scheme::Sv48), Just(Scheme::Sv57), Just(Scheme::Bare)]
}

fn kind() -> impl Strategy<Value = AccessKind> {
    prop_oneof![Just(AccessKind::Load), Just(AccessKind::Store), Just(AccessKind::Fetch)]
}

prop_compose! {
    fn regime()(scheme in scheme(), root in 0..1u64 << 44, bits in any::<[bool; 5]>()) -> Regime {
        let [user, sum, mxr, adue, pbmte] = bits;
        Regime { scheme, root, user, sum, mxr, adue, pbmte }
    }
}

/// An entry that is often good: a bit that spoils it is rare. `shape`: 0 to 4 another table, else a leaf.
fn entry() -> impl Strategy<Value = u64> {
    let low = prop_oneof![4 => Just(0x01u64), 6 => (0..0x100u64).prop_map(|bits| bits | 0x0b), 6 => Just(0xcf), 3 => 0..0x400u64];
    let ppn = prop_oneof![
        3 => 0..1u64 << 44,
        3 => (0..1u64 << 44).prop_map(|ppn| ppn & !0x1ff),
        3 => (0..1u64 << 44).prop_map(|ppn| ppn & !0x3ffff),
        2 => (0..1u64 << 44).prop_map(|ppn| ppn & !0x7ff_ffff | 8),
        2 => (0..1u64 << 44).prop_map(|ppn| ppn & !0xf_ffff_ffff),
        1 => (0..1u64 << 44).prop_map(|ppn| ppn & !0xf | 8),
    ];
    let high =
        prop_oneof![12 => Just(0u64), 2 => Just(1 << 63), 1 => Just(1 << 61), 1 => Just(1 << 62), 1 => any::<u64>()];
    (low, ppn, high).prop_map(|(low, ppn, high)| low | ppn << 10 | high & 0x3ff << 54)
}

/// A bit of a table's entry: G, which it may have, or one that it may not have.
fn of_table() -> impl Strategy<Value = u64> {
    let spoils = prop::sample::select(vec![4, 6, 7, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63]);
    prop_oneof![12 => Just(0u64), 3 => Just(1 << 5), 2 => spoils.prop_map(|bit: u32| 1 << bit)]
}

prop_compose! {
    fn case()(
        regime in regime(), va in any::<u64>(), sign in 0..12u32, kind in kind(),
        path in prop::collection::vec((entry(), 0..40u8, of_table()), 5), rivals in prop::collection::vec(entry(), 0..3), race in 0..6u32,
    ) -> (Memory, Regime, u64, AccessKind) {
        let levels = regime.scheme.levels();
        let unused = 64 - (12 + 9 * levels);
        // Mostly an address that there is.
        let va = if sign != 0 && levels != 0 { ((va << unused) as i64 >> unused) as u64 } else { va };
        let mut memory = Memory { rivals: if race == 0 { rivals } else { Vec::new() }, ..Memory::default() };
        let mut table = regime.root << 12;
        for (n, &(entry, dice, more)) in path.iter().enumerate().take(levels as usize) {
            let level = levels - 1 - n as u32;
            // Nine of ten tables lead on where they may.
            let entry = if level > 0 && dice % 3 != 0 { entry & 0x3f_ffff_ffff_fc00 | 1 | more } else { entry };
            let at = table + (va >> (12 + 9 * level) & 0x1ff) * 8;
            memory.entries.insert(at, entry);
            match dice {
                39 => { memory.unreadable.insert(at); }
                35..=38 => { memory.read_only.insert(at); }
                _ => {}
            }
            table = (entry >> 10 & ((1 << 44) - 1)) << 12;
        }
        // Below the last level is none: what lies where one would be looked for is not read.
        memory.entries.entry(table + (va >> 3 & 0x1ff) * 8).or_insert(0xcf);
        (memory, regime, va, kind)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn a_walk_finds_changes_and_refuses_what_the_specification_says((memory, regime, va, kind) in case()) {
        let (mut ours, mut theirs) = (memory.clone(), memory);
        let found = walk(&mut ours, regime, va, kind);
        let wanted = by_the_book(&mut theirs, regime, va, kind);
        prop_assert_eq!(found.map(|leaf| (leaf.page | va & 0xfff, leaf.global)), wanted);
        prop_assert_eq!(&ours, &theirs);
        let Ok(Leaf { page, size_log2, rights, .. }) = found else { return Ok(()) };
        // What may be kept: the accesses that would come to the same place and change nothing.
        ours.rivals.clear();
        for kind in [AccessKind::Load, AccessKind::Store, AccessKind::Fetch] {
            let mut after = ours.clone();
            let again = by_the_book(&mut after, regime, va, kind);
            prop_assert_eq!(rights.has(kind), again.is_ok() && after == ours, "{:?}", kind);
        }
        // All that one leaf maps lies together. (16 pages have 16 leaves, of which there is one here.)
        if regime.scheme != Scheme::Bare && size_log2 != 16 {
            let size = 1u64 << size_log2;
            for other in [va & !(size - 1), va | (size - 1)] {
                let leaf = walk(&mut ours.clone(), regime, other, kind).unwrap();
                prop_assert_eq!(leaf.page.wrapping_sub(page), (other & !0xfff).wrapping_sub(va & !0xfff));
            }
        }
    }
}

#[test]
fn the_cases_of_the_walk_come_up() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
    let seed = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), seed);
    let mut seen = BTreeMap::new();
    for _ in 0..5_000 {
        let (mut memory, regime, va, kind) = case().new_tree(&mut runner).unwrap().current();
        let what = match walk(&mut memory, regime, va, kind) {
            Ok(leaf) => format!("{} bits, {} writes", leaf.size_log2, memory.written.len()),
            Err(cause) => format!("{cause:?}"),
        };
        *seen.entry(what).or_insert(0) += 1;
    }
    for what in [
        "12 bits, 0 writes",
        "12 bits, 1 writes",
        "16 bits, 0 writes",
        "21 bits, 0 writes",
        "30 bits, 1 writes",
        "39 bits, 0 writes",
        "48 bits, 0 writes",
        "Access",
        "Page",
    ] {
        assert!(seen.get(what).is_some_and(|&n| n >= 3), "{what}: {seen:?}");
    }
}

#[test]
fn a_page_that_was_only_loaded_from_is_walked_for_again_before_it_is_stored_to() {
    let regime = Regime { scheme: Scheme::Sv39, root: 1, adue: true, ..Regime::default() };
    let mut memory = Memory::default();
    memory.entries.insert(0x1000, 2 << 10 | 1);
    memory.entries.insert(0x2000, 3 << 10 | 1);
    memory.entries.insert(0x3000, 0x80000 << 10 | 7);
    let leaf = walk(&mut memory, regime, 0x10, AccessKind::Load).unwrap();
    assert_eq!(leaf.rights, Rights { load: true, store: false, fetch: false });
    let leaf = walk(&mut memory, regime, 0x10, AccessKind::Store).unwrap();
    assert_eq!(leaf.rights, Rights { load: true, store: true, fetch: false });
    assert_eq!(memory.written, [(0x3000, 0x80000 << 10 | 0x47), (0x3000, 0x80000 << 10 | 0xc7)]);
    // By fault: nothing is written, and the entry is refused.
    let mut memory = Memory { entries: [(0x1000, 0x4_0000_0007 << 10 & !0x1ff << 28 | 7)].into(), ..Memory::default() };
    let regime = Regime { adue: false, ..regime };
    assert_eq!(walk(&mut memory, regime, 0x10, AccessKind::Load), Err(FaultCause::Page));
    assert_eq!(memory.written, []);
}
