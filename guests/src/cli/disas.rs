//! `disas FILE PLACE`: what a region becomes, without running it.

use std::path::Path;
use std::process::ExitCode;

use super::args::{Args, integer};
use super::{Code, complain, print, program, refuse};
use crate::machine::Machine;

/// Prints the listing of the region at `place`.
pub(super) fn list(file: &Path, place: &str, args: &Args) -> ExitCode {
    let name = file.display();
    let loaded = program(file.to_owned(), args.load_addr);
    let machine = match Machine::builder().ram_size(args.ram_size).jit_flags(args.jit_flags).program(loaded).build() {
        Ok(machine) => machine,
        Err(e) => return refuse(&name.to_string(), &e),
    };
    let Some(addr) = find(&machine, place) else {
        return complain(Code::Input, &format!("{name}: no symbol {place}"));
    };
    match machine.listing(addr, args.jit_flags) {
        Ok(listing) => print(&listing.to_string()),
        Err(e) => complain(Code::Input, &format!("{name}: {e}")),
    }
}

/// The address of a symbol, of `symbol+0x12`, or the number itself. A symbol that looks like a number wins.
pub(super) fn find(machine: &Machine, place: &str) -> Option<u64> {
    machine.symbol_address(place).or_else(|| integer(place)).or_else(|| {
        let (symbol, offset) = place.rsplit_once('+')?;
        machine.symbol_address(symbol)?.checked_add(integer(offset)?)
    })
}
