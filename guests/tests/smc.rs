//! The self-modifying suite: each case ends well on the JIT, ends in the very state in which the oracle ends, and
//! drops as many translations as it must, or may.

use notdirty::programs::smc::{self, CacheModel, Form, Kills, Mode, POLL_FLAG, POLL_FUNCTION, SmcCase};
use notdirty::programs::{GuestImage, basic, minijit, sieve, timer};
use notdirty::{
    ClockKind, EngineKind, ExitBy, GuestExit, JitFlags, Machine, MachineExit, Program, RAM_BASE, RunLimits,
};
use std::time::{Duration, Instant};

const RAM: u64 = 4 << 20;
const PASS: MachineExit = MachineExit::Guest(GuestExit { code: 0, by: ExitBy::Finisher });
/// Far more than any case needs: a case that loops for ever fails in seconds.
const LIMIT: RunLimits = RunLimits { max_insns: Some(50_000_000), deadline: None };

fn machine(image: GuestImage, engine: EngineKind, flags: JitFlags) -> Machine {
    let builder = Machine::builder().ram_size(RAM).engine(engine).jit_flags(flags).clock(ClockKind::Insns);
    builder.program(Program::Image(image)).build().expect("the machine is built")
}

/// Translates what it runs at once, so that what dies can be counted; the default leaves cold and often patched code
/// to tier 0.
fn eager() -> JitFlags {
    JitFlags { tier0: false, ..JitFlags::default() }
}

fn ram(machine: &Machine) -> Vec<u8> {
    let mut bytes = vec![0; RAM as usize];
    machine.read(RAM_BASE, &mut bytes).expect("RAM is there");
    bytes
}

/// Everything a program can see of its end.
fn assert_same_end(name: &str, jit: &Machine, oracle: &Machine) {
    let (ours, theirs) = (jit.cpu(), oracle.cpu());
    assert_eq!(ours.x, theirs.x, "{name}: registers");
    assert_eq!(ours.pc, theirs.pc, "{name}: pc");
    assert_eq!(ours.retired, theirs.retired, "{name}: retired instructions");
    assert_eq!(ours.csr, theirs.csr, "{name}: CSRs");
    let (ours, theirs) = (ram(jit), ram(oracle));
    if let Some(at) = (0..ours.len()).find(|&at| ours[at] != theirs[at]) {
        panic!("{name}: RAM differs at {:#x}: {:#x}, the oracle has {:#x}", RAM_BASE + at as u64, ours[at], theirs[at]);
    }
}

fn built(case: &SmcCase, form: Form, engine: EngineKind, flags: JitFlags) -> Machine {
    let mut machine = machine((case.build)(form), engine, flags);
    if let Some(alias) = case.alias.filter(|_| form.mode == Mode::Machine) {
        machine.map_alias(alias.base, alias.target, alias.len).expect("the alias is mapped");
    }
    machine
}

/// Two harts have no common instruction count, so only their verdict is the same each time.
fn check_harts(case: &SmcCase, form: Form) {
    let without = |off: &'static str| {
        let mut flags = eager();
        assert!(flags.set(off, false));
        (off, flags)
    };
    // What finds code again, or does not.
    let some = ["chaining", "jump_cache", "regions", "tier2"].map(without);
    for (off, flags) in [("nothing", eager()), ("tier0", JitFlags::default())].into_iter().chain(some) {
        let builder = Machine::builder().ram_size(RAM).harts(case.harts).jit_flags(flags);
        let mut machine = builder.program(Program::Image((case.build)(form))).build().expect("the machine is built");
        let soon = RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_secs(60)) };
        assert_eq!(machine.run(&soon), PASS, "{} without {off}", case.name);
    }
}

fn check(name: &str) {
    let case = smc::case(name).expect("a case of the suite");
    for mode in [Mode::Machine, Mode::Supervisor] {
        let form = Form { cache: CacheModel::Coherent, mode };
        if !case.has(mode) {
            continue;
        } else if case.harts > 1 {
            check_harts(case, form);
        } else {
            check_in(case, form);
        }
    }
}

fn check_in(case: &SmcCase, form: Form) {
    let name = format!("{}, {:?}", case.name, form.mode);
    let mut oracle = built(case, form, EngineKind::Interp, JitFlags::default());
    assert_eq!(oracle.run(&LIMIT), PASS, "{name} on the oracle");
    let mut jit = built(case, form, EngineKind::Jit, eager());
    let before = jit.stats().tbs_invalidated;
    assert_eq!(jit.run(&LIMIT), PASS, "{name} on the JIT");
    assert_same_end(&name, &jit, &oracle);
    let killed = jit.stats().tbs_invalidated - before;
    match case.kills {
        Kills::AtLeast(least) => {
            assert!(killed >= least, "{name}: {killed} translations died, expected at least {least}")
        }
        Kills::AtMost(most) => assert!(killed <= most, "{name}: {killed} translations died, expected at most {most}"),
    }
    let mut tiered = built(case, form, EngineKind::Jit, JitFlags::default());
    assert_eq!(tiered.run(&LIMIT), PASS, "{name} with tier 0");
    assert_same_end(&name, &tiered, &oracle);
    if form.mode == Mode::Supervisor && case.has(Mode::Machine) {
        return;
    }
    // Each optimisation is only that: without it, the same.
    for off in JitFlags::NAMES {
        let mut flags = eager();
        assert!(flags.set(off, false));
        let mut jit = built(case, form, EngineKind::Jit, flags);
        assert_eq!(jit.run(&LIMIT), PASS, "{name} without {off}");
        assert_same_end(&name, &jit, &oracle);
    }
}

macro_rules! cases {
    ($($test:ident: $case:literal,)*) => {
        $(#[test] fn $test() { check($case); })*

        #[test]
        fn every_case_of_the_suite_has_its_test() {
            let tested = [$($case),*];
            for case in smc::CASES {
                assert!(tested.contains(&case.name), "{} is not tested", case.name);
            }
        }
    };
}

cases! {
    code_in_another_page_is_seen_as_patched: "another_page",
    code_in_the_same_page_is_seen_as_patched: "same_page",
    the_very_next_instruction_is_seen_as_patched: "next_instruction",
    a_later_instruction_of_the_own_block_is_seen_as_patched: "later_in_own_block",
    an_earlier_instruction_of_the_own_block_is_seen_as_patched: "earlier_in_own_block",
    a_store_may_overwrite_itself: "the_store_itself",
    a_block_over_two_pages_dies_by_either: "block_over_two_pages",
    an_instruction_over_two_pages_is_patched_by_halves: "instruction_over_two_pages",
    data_beside_hot_code_kills_nothing: "data_beside_code",
    the_target_of_a_chained_jump_is_seen_as_patched: "chained_target",
    a_chained_jump_that_is_patched_goes_elsewhere: "chained_jump",
    a_loop_sees_the_patch_it_makes: "inner_loop",
    a_callee_may_patch_where_it_returns_to: "return_site",
    a_callee_may_patch_itself: "own_callee",
    the_target_of_an_indirect_jump_is_seen_as_patched: "indirect_target",
    code_may_become_illegal_and_legal_again: "illegal_and_back",
    a_fence_i_changes_nothing_for_a_coherent_model: "with_fence_i",
    stores_of_each_width_are_seen: "each_width",
    a_store_over_two_pages_kills_on_both: "page_crossing_store",
    a_misaligned_store_is_seen: "misaligned_store",
    amo_and_sc_are_stores_too: "amo_and_sc",
    compressed_instructions_are_patched_like_others: "compressed",
    a_page_turns_from_data_to_code_and_back: "data_code_data_code",
    code_that_toggles_is_right_every_time: "toggling",
    packed_code_runs_once_unpacked: "packed",
    code_is_reached_through_two_addresses: "two_addresses",
    code_two_mib_away_is_seen_as_patched: "far_page",
    two_patches_in_one_block_are_both_seen: "two_patches_ahead",
    a_loop_over_two_pages_sees_its_patches_on_both: "loop_over_two_pages",
    many_pages_may_be_patched_at_once: "large_region",
    a_loop_may_overwrite_its_back_edge: "back_edge",
    a_return_site_far_up_is_seen_as_patched: "deep_return",
    one_call_site_sees_each_of_its_targets_patched: "many_targets",
    each_exit_of_a_region_is_seen_as_patched: "region_exits",
    a_trap_handler_is_seen_as_patched: "trap_handler",
    a_half_word_at_an_odd_address_is_seen: "misaligned_half_word",
    a_double_word_that_starts_before_the_code_is_seen: "misaligned_double_word",
    a_store_over_two_lines_is_seen_in_both: "line_crossing_store",
    a_store_that_is_code_in_its_second_half_is_seen: "half_data_half_code",
    every_amo_is_a_store_too: "every_amo",
    an_sc_that_fails_changes_nothing: "failed_sc",
    code_overwritten_with_itself_stays: "same_value",
    bytes_with_two_readings_are_patched_in_both: "two_readings",
    data_in_the_line_of_hot_code_is_exact: "data_in_the_line",
    the_bytes_around_code_are_data: "neighbours",
    a_stack_beside_its_code_kills_nothing: "stack_beside_code",
    a_page_that_was_data_first_is_seen_as_patched: "function_in_data",
    a_kilobyte_that_toggles_is_right_every_time: "toggling_kilobyte",
    fresh_code_is_run_as_emitted: "emit_fresh",
    code_emitted_over_code_is_run_as_emitted: "emit_same_place",
    a_decoder_that_decodes_its_own_loop_is_right: "decoder_stub",
    a_second_stage_over_the_first_is_run: "boot_loader",
    code_that_walks_through_memory_is_right: "walking_copy",
    code_is_run_through_two_mappings_and_written_through_a_third: "three_mappings",
    a_loop_goes_on_in_the_page_that_it_maps_under_itself: "loop_on_a_page_that_moves",
    a_loop_loads_and_stores_in_the_page_that_it_maps: "data_that_moves",
    a_page_table_store_holds_at_the_latest_after_its_fence: "with_and_without_a_fence",
    a_superpage_is_split_under_its_code: "superpage_split",
    user_code_is_seen_as_the_kernel_patched_it: "user_code",
    a_page_that_may_not_be_run_any_more_faults_at_the_next_instruction: "rights_taken_away",
    a_page_that_may_not_be_written_any_more_faults_at_that_store: "store_right_taken_away",
    an_address_is_what_its_address_space_says: "two_address_spaces",
    a_direct_jump_goes_to_the_page_that_is_mapped_now: "jump_to_a_page_that_moves",
    code_over_two_pages_is_what_each_is_mapped_to: "border_of_a_page_that_moves",
    an_address_is_what_the_mode_makes_of_it: "one_address_two_modes",
    a_hart_runs_what_another_wrote_elsewhere_once_it_was_fenced: "code_of_another_hart",
    a_hart_runs_the_page_that_another_mapped_once_it_was_fenced: "page_of_another_hart",
}

/// `addi a0, zero, value; ret`.
fn returns(value: u32) -> [u8; 8] {
    let words = [(value << 20 | 0x513).to_le_bytes(), 0x8067u32.to_le_bytes()];
    words.concat().try_into().expect("two words")
}

#[test]
fn code_written_by_the_host_is_seen_at_once_and_the_report_says_what_died() {
    for engine in [EngineKind::Jit, EngineKind::Interp] {
        let mut machine = machine(smc::polling(Form::PLAIN), engine, eager());
        let limit = |insns| RunLimits { max_insns: Some(insns), deadline: None };
        // 13 instructions to set up, seven a call: every limit falls between two calls.
        assert_eq!(machine.run(&limit(13 + 7_000)), MachineExit::InsnLimit);
        assert_eq!(machine.cpu().x[8], 1_000, "calls");
        for round in 2..20 {
            let (calls, sum) = (machine.cpu().x[8], machine.cpu().x[18]);
            // Every other time in one write that starts on the page before, in padding.
            let bytes = [&[0; 4][..], &returns(round)].concat();
            let skip = if round % 2 == 0 { 4 } else { 0 };
            let report = machine.write(POLL_FUNCTION - 4 + skip as u64, &bytes[skip..]).expect("RAM is there");
            assert_eq!(machine.run(&limit(13 + u64::from(round) * 7_000)), MachineExit::InsnLimit);
            assert_eq!(machine.cpu().x[8] - calls, 1_000, "{engine:?}");
            assert_eq!(machine.cpu().x[18] - sum, u64::from(round) * 1_000, "{engine:?}");
            if engine == EngineKind::Jit {
                assert!(report.tbs_killed >= 1, "the function had been translated");
                // The next line of data, in the same page: nothing dies.
                assert_eq!(machine.write(POLL_FUNCTION + 0x800, &[1; 8]).expect("RAM is there").tbs_killed, 0);
            }
        }
        machine.write(POLL_FLAG, &[1]).expect("RAM is there");
        assert_eq!(machine.run(&LIMIT), MachineExit::Guest(GuestExit { code: 19, by: ExitBy::Finisher }));
    }
}

#[test]
fn code_written_by_the_loader_replaces_what_ran_there() {
    for engine in [EngineKind::Jit, EngineKind::Interp] {
        let mut machine = machine(smc::polling(Form::PLAIN), engine, eager());
        for round in 1..5 {
            assert_eq!(machine.run(&RunLimits { max_insns: Some(1_000), deadline: None }), MachineExit::InsnLimit);
            let entry = machine.load(&Program::Image(basic::exit_with(round))).expect("it fits");
            machine.start_at(entry).expect("RAM is there");
            let code = u64::from(round);
            assert_eq!(machine.run(&LIMIT), MachineExit::Guest(GuestExit { code, by: ExitBy::Finisher }));
            let entry = machine.load(&Program::Image(smc::polling(Form::PLAIN))).expect("it fits");
            machine.start_at(entry).expect("RAM is there");
        }
    }
}

#[test]
fn ram_added_at_run_time_holds_code_at_both_of_its_addresses() {
    let mut machine = machine(smc::polling(Form::PLAIN), EngineKind::Jit, eager());
    let (one, two) = (0x2_0000_0000, 0x3_0000_0000);
    let ram = machine.add_ram("dimm1", one, 1 << 20).expect("it fits");
    machine.map_again(&ram, two).expect("it fits");
    for round in 1..10 {
        machine.write(one + 0x1000, &returns(round)).expect("RAM is there");
        for base in [one, two] {
            let cpu = machine.cpu_mut();
            cpu.pc = base + 0x1000;
            cpu.x[1] = RAM_BASE;
            let until = RunLimits { max_insns: Some(machine.cpu().retired + 2), deadline: None };
            assert_eq!(machine.run(&until), MachineExit::InsnLimit);
            assert_eq!((machine.cpu().x[10], machine.cpu().pc), (u64::from(round), RAM_BASE));
        }
    }
}

/// Programs that are no case of the suite, but have to give the same on both engines.
fn same_on_both(image: fn() -> GuestImage) {
    let mut oracle = machine(image(), EngineKind::Interp, JitFlags::default());
    assert_eq!(oracle.run(&LIMIT), PASS);
    for flags in [eager(), JitFlags::default()] {
        let mut jit = machine(image(), EngineKind::Jit, flags);
        assert_eq!(jit.run(&LIMIT), PASS);
        assert_same_end("program", &jit, &oracle);
    }
}

#[test]
fn a_guest_that_is_a_jit_runs_what_it_emits() {
    same_on_both(|| minijit::minijit(3_000));
}

#[test]
fn a_sieve_counts_its_primes() {
    same_on_both(|| sieve::sieve(100_000, 9_592));
}

#[test]
fn a_guest_lives_on_interrupts() {
    same_on_both(|| timer::timer_irq(50, 1_000));
    same_on_both(|| timer::timer_irq(500, 1));
    // And by the host's clock, where nothing can be compared but the end.
    for engine in [EngineKind::Jit, EngineKind::Interp] {
        let image = Program::Image(timer::timer_irq(20, 5_000));
        let mut machine = Machine::builder().ram_size(RAM).engine(engine).program(image).build().expect("it is built");
        assert_eq!(machine.run_to_end(), PASS, "{engine:?}");
    }
}
