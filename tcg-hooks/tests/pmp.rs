//! Physical memory protection against the rules of the privileged specification, byte by byte.

use notdirty_softmmu::AccessKind;
use notdirty_tcg::riscv::pmp::{ENTRIES, PageRights, Pmp, cfg};
use proptest::prelude::*;

const KINDS: [AccessKind; 3] = [AccessKind::Load, AccessKind::Store, AccessKind::Fetch];

type Registers = ([u8; ENTRIES], [u64; ENTRIES]);

/// Does entry `n` match the byte at `at`?
fn matches(&(config, addresses): &Registers, n: usize, at: u64) -> bool {
    let address = u128::from(addresses[n] & ((1 << 54) - 1));
    let at = u128::from(at);
    match config[n] >> 3 & 3 {
        0 => false,
        1 => {
            let bottom = if n == 0 { 0 } else { u128::from(addresses[n - 1] & ((1 << 54) - 1)) };
            bottom * 4 <= at && at < address * 4
        }
        2 => at / 4 == address,
        _ => {
            // yyyy...y011...1 with k ones is a range of 2^(k+3) bytes.
            let ones = (0..54).take_while(|bit| address >> bit & 1 == 1).count();
            let size = 1u128 << (ones + 3);
            at / size == address * 4 / size
        }
    }
}

fn by_the_book(registers: &Registers, machine: bool, at: u64, len: u64, kind: AccessKind) -> bool {
    // "The lowest-numbered PMP entry that matches any byte of an access determines whether that access succeeds or fails."
    let any = |n: &usize| (at..at + len).any(|byte| matches(registers, *n, byte));
    let Some(n) = (0..ENTRIES).find(any) else { return machine };
    let config = registers.0[n];
    // "The matching PMP entry must match all bytes of an access, or the access fails, irrespective of the L, R, W and X bits."
    if !(at..at + len).all(|byte| matches(registers, n, byte)) {
        return false;
    }
    let bit = match kind {
        AccessKind::Load => cfg::R,
        AccessKind::Store => cfg::W,
        AccessKind::Fetch => cfg::X,
    };
    config & bit != 0 || machine && config & cfg::L == 0
}

/// Near the page at 0x8000_0000, most often; sizes of all kinds.
fn address() -> impl Strategy<Value = u64> {
    let near = (0x1fff_fc00..0x2000_0800u64).prop_flat_map(|at| {
        prop_oneof![
            Just(at),
            (0..30u32).prop_map(move |ones| at >> ones << ones | ((1 << ones) - 1) >> 1),
            Just(at & !0x3ff)
        ]
    });
    prop_oneof![8 => near, 1 => any::<u64>(), 1 => Just(u64::MAX), 1 => Just(0)]
}

prop_compose! {
    fn registers()(
        config in prop::array::uniform16((any::<u8>(), 0..3u8).prop_map(|(byte, dice)| if dice == 0 { byte } else { byte & !cfg::A })),
        addresses in prop::array::uniform16(address()),
    ) -> Registers {
        (config, addresses)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn an_access_is_decided_by_the_first_entry_that_matches_a_byte_of_it(
        registers in registers(),
        accesses in prop::collection::vec((0x7fff_f000..0x8000_2000u64, 0..4u32, any::<bool>()), 40),
    ) {
        let pmp = Pmp::new(&registers.0, &registers.1);
        for (at, size, machine) in accesses {
            for kind in KINDS {
                let wanted = by_the_book(&registers, machine, at, 1 << size, kind);
                prop_assert_eq!(pmp.allows(machine, at, 1 << size, kind), wanted, "{:#x} {} {:?}", at, size, kind);
            }
        }
    }

    #[test]
    fn the_answer_for_a_page_is_that_of_each_access_in_it(
        registers in registers(),
        machine in any::<bool>(),
        accesses in prop::collection::vec((0..4096u64, 0..4u32), 40),
    ) {
        let pmp = Pmp::new(&registers.0, &registers.1);
        let borders = |page: u64| (0..ENTRIES).any(|n| {
            // A border within the page shows between neighbouring words.
            (page..page + 4092).step_by(4).any(|at| matches(&registers, n, at) != matches(&registers, n, at + 4))
        });
        for page in [0x7fff_f000u64, 0x8000_0000, 0x8000_1000] {
            match pmp.page(machine, page) {
                PageRights::Whole(rights) => {
                    for &(at, size) in &accesses {
                        let at = page + at.min(4096 - (1 << size));
                        for kind in KINDS {
                            prop_assert_eq!(rights.has(kind), by_the_book(&registers, machine, at, 1 << size, kind));
                        }
                    }
                }
                PageRights::Ask => prop_assert!(borders(page), "{:#x}", page),
            }
        }
    }
}

#[test]
fn machine_mode_is_bound_by_locked_entries_only() {
    let mut config = [0; ENTRIES];
    let mut addresses = [0; ENTRIES];
    assert!(Pmp::new(&config, &addresses).leaves_machine_alone());
    assert!(!Pmp::new(&config, &addresses).allows(false, 0, 1, AccessKind::Load), "no entry matches");
    (config[3], addresses[3]) = (cfg::NAPOT | cfg::R, u64::MAX);
    let pmp = Pmp::new(&config, &addresses);
    assert!(pmp.leaves_machine_alone() && pmp.allows(true, 0x8000_0000, 8, AccessKind::Store));
    assert!(pmp.allows(false, (1 << 56) - 8, 8, AccessKind::Load) && !pmp.allows(false, 0, 8, AccessKind::Store));
    config[3] |= cfg::L;
    let pmp = Pmp::new(&config, &addresses);
    assert!(!pmp.leaves_machine_alone() && !pmp.allows(true, 0x8000_0000, 8, AccessKind::Store));
    // A locked entry that matches nothing binds nothing.
    assert!(Pmp::new(&[cfg::L; ENTRIES], &addresses).leaves_machine_alone());
}
