//! The list.

use super::Kills::{AtLeast, AtMost};
use super::{Form, GuestImage, Kills, SmcCase};
use super::{edge, emit, flow, paged as pages, place, reach, shared, store};

const fn case(
    name: &'static str,
    build: fn(Form) -> GuestImage,
    patches: u32,
    kills: Kills,
    retells: &'static [&'static str],
    about: &'static str,
) -> SmcCase {
    SmcCase { name, about, retells, build, patches, kills, alias: None, paged: false, harts: 1 }
}

const fn paged(name: &'static str, build: fn(Form) -> GuestImage, patches: u32, about: &'static str) -> SmcCase {
    SmcCase { paged: true, ..case(name, build, patches, AtLeast(0), &[], about) }
}

/// All cases.
#[rustfmt::skip]
pub const CASES: &[SmcCase] = &[
    // Where.
    case("another_page", place::another_page, 1000, AtLeast(40), &[], "a function in the next page is patched between calls, with no fence.i at first"),
    case("same_page", place::same_page, 1000, AtLeast(40), &[], "a function in the page of the store is patched between calls"),
    case("far_page", place::far_page, 1000, AtLeast(40), &[], "a function 2 MiB away, reached by a register jump, is patched between calls"),
    case("next_instruction", place::next_instruction, 1000, AtLeast(40), &["unicorn#2029"], "a store overwrites the very next instruction: the running block is stale behind it"),
    case("later_in_own_block", place::later_in_own_block, 1000, AtLeast(40), &[], "a store overwrites a later instruction of its block; what stands between runs once"),
    case("two_patches_ahead", place::two_patches_ahead, 2000, AtLeast(40), &[], "two stores overwrite two later instructions of their block, the farther one first"),
    case("earlier_in_own_block", place::earlier_in_own_block, 100, AtLeast(40), &[], "a loop overwrites an instruction that its block has already passed"),
    case("the_store_itself", place::the_store_itself, 1, AtLeast(1), &[], "a store overwrites itself: it is done once, and is something else the next time"),
    case("block_over_two_pages", place::block_over_two_pages, 82, AtLeast(40), &[], "a block over two pages has to die by a store to either"),
    case("instruction_over_two_pages", place::instruction_over_two_pages, 3, AtLeast(2), &[], "an instruction over two pages is patched by its halves"),
    case("loop_over_two_pages", edge::loop_over_two_pages, 2, AtLeast(1), &[], "a hot loop over two pages patches its part on each"),
    case("large_region", edge::large_region, 3200, AtLeast(16), &["cva6#2972"], "16 pages are patched before one fence.i, then all are run"),
    // How it is reached.
    case("chained_target", flow::chained_target, 1, AtLeast(1), &[], "the target of a chained jump is patched: the chain has to be cut"),
    case("chained_jump", flow::chained_jump, 1, AtLeast(1), &[], "a chained jump is patched to go elsewhere"),
    case("inner_loop", flow::inner_loop, 1, AtLeast(1), &[], "a hot loop patches its own body and goes on in it"),
    case("back_edge", reach::back_edge, 1000, AtLeast(40), &[], "a loop ends by overwriting its own backward jump"),
    case("return_site", flow::return_site, 100, AtLeast(40), &[], "a callee patches the instruction it returns to: a predicted return is stale"),
    case("deep_return", reach::deep_return, 500, AtLeast(40), &[], "eight calls deep, the innermost patches where the outermost returns to"),
    case("own_callee", flow::own_callee, 100, AtLeast(40), &[], "a function patches its own entry before it returns"),
    case("indirect_target", flow::indirect_target, 2, AtLeast(2), &[], "the targets of two indirect calls are patched: an inline cache is stale"),
    case("many_targets", reach::many_targets, 1000, AtLeast(40), &[], "four targets of one indirect call are patched in turn; each keeps what it was given"),
    case("region_exits", reach::region_exits, 1000, AtLeast(40), &[], "a function with four ways out is patched at the one that is taken next"),
    case("trap_handler", reach::trap_handler, 500, AtLeast(40), &[], "the trap handler is patched between two traps"),
    case("illegal_and_back", flow::illegal_and_back, 40, AtLeast(10), &[], "code becomes illegal, traps, and is repaired by the handler"),
    case("with_fence_i", flow::with_fence_i, 50, AtLeast(40), &["libriscv#386", "XiangShan#6132"], "patch, fence.i, call: what every model promises"),
    // What writes.
    case("each_width", store::each_width, 200, AtLeast(40), &[], "sb, sh, sw and sd patch one function"),
    case("misaligned_half_word", edge::misaligned_half_word, 1000, AtLeast(40), &[], "sh at an odd address inside an instruction"),
    case("misaligned_store", store::misaligned_store, 40, AtLeast(20), &[], "sw at an odd address, over two instructions"),
    case("misaligned_double_word", edge::misaligned_double_word, 1000, AtLeast(40), &[], "sd that starts before a function and ends inside its second instruction"),
    case("line_crossing_store", edge::line_crossing_store, 1000, AtLeast(40), &[], "sd over two 64-byte lines, code in both"),
    case("half_data_half_code", edge::half_data_half_code, 1000, AtLeast(40), &[], "sd over two lines, data in the first and code in the second"),
    case("page_crossing_store", store::page_crossing_store, 80, AtLeast(40), &[], "sd and sw over two pages, code in both"),
    case("amo_and_sc", store::amo_and_sc, 160, AtLeast(40), &[], "AMO and SC are writers too"),
    case("every_amo", reach::every_amo, 1100, AtLeast(40), &[], "each AMO patches an immediate; the code has to agree with the word as it is loaded"),
    case("failed_sc", reach::failed_sc, 500, AtMost(8), &[], "an SC without a reservation writes nothing"),
    case("same_value", edge::same_value, 1000, AtLeast(0), &[], "code is overwritten with itself"),
    case("compressed", store::compressed, 93, AtLeast(20), &[], "two 16-bit instructions give way to one of 32 bits and come back"),
    case("two_readings", edge::two_readings, 1000, AtLeast(40), &[], "bytes that are read as two instruction streams, entered at both, are patched"),
    SmcCase { alias: Some(store::ALIAS), ..case("two_addresses", store::two_addresses, 80, AtLeast(40), &[], "code is written at one address and run at another, both ways") },
    // Data and code.
    case("data_beside_code", place::data_beside_code, 5000, AtMost(4), &[], "a counter in the page of hot code, in another line: nothing dies"),
    case("data_in_the_line", edge::data_in_the_line, 2000, AtLeast(0), &[], "a counter in the very line of hot code"),
    case("neighbours", edge::neighbours, 2000, AtLeast(0), &[], "the bytes right before and behind a function are data"),
    case("stack_beside_code", edge::stack_beside_code, 15000, AtMost(8), &[], "the stack lies in the page of the code that uses it"),
    case("data_code_data_code", store::data_code_data_code, 50, AtLeast(8), &[], "a page is data, then code, then data again"),
    case("function_in_data", emit::function_in_data, 128, AtLeast(1), &["unicorn#2041", "unicorn#2367"], "a page that was first written as data holds a function, and one byte of it is patched"),
    // Code that makes code.
    case("toggling", store::toggling, 4000, AtLeast(100), &[], "one word toggles between two versions"),
    case("toggling_kilobyte", emit::toggling_kilobyte, 200, AtLeast(1), &[], "a function of 1 KiB toggles between two versions"),
    case("emit_fresh", emit::emit_fresh, 1000, AtLeast(0), &[], "64 instructions at a fresh place, run once"),
    case("emit_same_place", emit::emit_same_place, 1000, AtLeast(20), &["unidbg#407"], "new code of another length at the same place, as after munmap and mmap"),
    case("packed", store::packed, 40, AtLeast(10), &[], "code is decrypted, run and encrypted again, with another key each time"),
    case("decoder_stub", emit::decoder_stub, 200, AtLeast(40), &["unicorn#820"], "a decoder's first word is its own loop's branch, two instructions ahead"),
    case("boot_loader", emit::boot_loader, 500, AtLeast(40), &["unicorn#2258"], "a first stage copies a loader away, which puts the second stage over the first"),
    case("walking_copy", emit::walking_copy, 1200, AtLeast(1), &["unicorn#608"], "code copies itself on, patches the copy, and goes on there"),
    // Page tables.
    paged("three_mappings", pages::three_mappings, 400, "a page is run at two addresses and written at a third, and where RAM is"),
    paged("loop_on_a_page_that_moves", pages::loop_on_a_page_that_moves, 312, "a hot loop maps another page at the address that it runs at"),
    paged("data_that_moves", pages::data_that_moves, 312, "a hot loop maps another page at the address that it loads from and stores to"),
    paged("with_and_without_a_fence", pages::with_and_without_a_fence, 800, "an entry is stored: either page until sfence.vma in any of its forms, the new one after it"),
    paged("superpage_split", pages::superpage_split, 600, "code in a page of 2 MiB, which is split and made whole again"),
    paged("user_code", pages::user_code, 400, "supervisor mode patches the code of user mode at an address of its own"),
    paged("rights_taken_away", pages::rights_taken_away, 800, "code takes away the right to run its own page: the very next instruction faults"),
    paged("store_right_taken_away", pages::store_right_taken_away, 624, "a hot loop takes away the right to store: that store faults, in that trip"),
    paged("two_address_spaces", pages::two_address_spaces, 400, "one address is two functions in two address spaces, with no fence between them"),
    paged("jump_to_a_page_that_moves", pages::jump_to_a_page_that_moves, 500, "the target of a direct jump to another page is mapped anew"),
    paged("border_of_a_page_that_moves", pages::border_of_a_page_that_moves, 800, "code and an instruction over two pages, each of which is mapped anew"),
    paged("one_address_two_modes", pages::one_address_two_modes, 400, "one address is two functions: in machine mode, and in supervisor mode by its tables"),
    SmcCase { harts: 2, ..paged("code_of_another_hart", shared::code_of_another_hart, 200, "a hart writes the code of another at another address, and interrupts it for a fence") },
    SmcCase { harts: 2, ..paged("page_of_another_hart", shared::page_of_another_hart, 200, "a hart maps another page where another runs, and interrupts it for a fence") },
];
