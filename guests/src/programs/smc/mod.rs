//! The self-modifying suite: one program for each way code can change.
//!
//! ```text
//!   place.rs   where the patched code is: another page, this page, the next instruction, this very block, two pages
//!   flow.rs    how it is reached: chained jumps, returns, indirect jumps, loops, a trap
//!   store.rs   what wrote it: each width, page-crossing, AMO, SC, an alias, data turned into code and back
//! ```
//!
//! The model is the coherent one: the very next instruction sees the write. Each program checks what it computed; the
//! tests add what the host can see, namely how many translations died.

mod flow;
mod place;
mod store;

use super::GuestImage;

/// What a program does to the translations, as far as it is certain for any sensible translator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kills {
    /// At least so many die: that code had run before it was patched.
    AtLeast(u64),
    /// At most so many: the stores touch no code.
    AtMost(u64),
}

/// A second address for RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alias {
    /// Where RAM shows up again.
    pub base: u64,
    /// What of it.
    pub target: u64,
    /// How much.
    pub len: u64,
}

/// One case of the suite.
#[derive(Debug, Clone, Copy)]
pub struct SmcCase {
    /// Its name, unique.
    pub name: &'static str,
    /// Builds the program.
    pub build: fn() -> GuestImage,
    /// What dies.
    pub kills: Kills,
    /// RAM seen at a second place, when the case needs it.
    pub alias: Option<Alias>,
}

impl SmcCase {
    const fn new(name: &'static str, build: fn() -> GuestImage, kills: Kills) -> Self {
        SmcCase { name, build, kills, alias: None }
    }
}

/// All cases.
pub const CASES: &[SmcCase] = &[
    SmcCase::new("another_page", place::another_page, Kills::AtLeast(40)),
    SmcCase::new("same_page", place::same_page, Kills::AtLeast(40)),
    SmcCase::new("next_instruction", place::next_instruction, Kills::AtLeast(40)),
    SmcCase::new("later_in_own_block", place::later_in_own_block, Kills::AtLeast(40)),
    SmcCase::new("earlier_in_own_block", place::earlier_in_own_block, Kills::AtLeast(40)),
    SmcCase::new("the_store_itself", place::the_store_itself, Kills::AtLeast(1)),
    SmcCase::new("block_over_two_pages", place::block_over_two_pages, Kills::AtLeast(40)),
    SmcCase::new("instruction_over_two_pages", place::instruction_over_two_pages, Kills::AtLeast(2)),
    SmcCase::new("data_beside_code", place::data_beside_code, Kills::AtMost(4)),
    SmcCase::new("chained_target", flow::chained_target, Kills::AtLeast(1)),
    SmcCase::new("chained_jump", flow::chained_jump, Kills::AtLeast(1)),
    SmcCase::new("inner_loop", flow::inner_loop, Kills::AtLeast(1)),
    SmcCase::new("return_site", flow::return_site, Kills::AtLeast(40)),
    SmcCase::new("own_callee", flow::own_callee, Kills::AtLeast(40)),
    SmcCase::new("indirect_target", flow::indirect_target, Kills::AtLeast(2)),
    SmcCase::new("illegal_and_back", flow::illegal_and_back, Kills::AtLeast(10)),
    SmcCase::new("with_fence_i", flow::with_fence_i, Kills::AtLeast(40)),
    SmcCase::new("each_width", store::each_width, Kills::AtLeast(40)),
    SmcCase::new("page_crossing_store", store::page_crossing_store, Kills::AtLeast(40)),
    SmcCase::new("misaligned_store", store::misaligned_store, Kills::AtLeast(20)),
    SmcCase::new("amo_and_sc", store::amo_and_sc, Kills::AtLeast(40)),
    SmcCase::new("compressed", store::compressed, Kills::AtLeast(20)),
    SmcCase::new("data_code_data_code", store::data_code_data_code, Kills::AtLeast(8)),
    SmcCase::new("toggling", store::toggling, Kills::AtLeast(100)),
    SmcCase::new("packed", store::packed, Kills::AtLeast(10)),
    SmcCase { alias: Some(store::ALIAS), ..SmcCase::new("two_addresses", store::two_addresses, Kills::AtLeast(40)) },
];

pub use flow::{POLL_FLAG, POLL_FUNCTION, polling};

/// The case of that name.
pub fn case(name: &str) -> Option<&'static SmcCase> {
    CASES.iter().find(|case| case.name == name)
}
