//! In and out of a region that names host registers: between its places and the fixed map.
//!
//! ```text
//!   entry:  what is not kept in a register ─▶ home ; the fixed map's registers and memory ─▶ its own
//!   exit:   its own ─▶ home, or the fixed map's registers, all at once ; what is at home ─▶ the rest of those
//!   site:   its own ─▶ home ; Rust ; what a call does not keep, and the result ─▶ its own
//! ```
use super::asm::CAPACITY;
use super::encode::{MOV, MOV_TO, WIDE};
use super::regs::{PINS, RegMap};
use super::{Emitter, off};
use crate::tier2::{HOSTS, Place};
use crate::translate::MAX_INSNS;
use dynasmrt::dynasm;

/// A border of the region.
#[derive(Debug, Clone, Copy)]
pub(super) enum Border {
    /// The head of a block.
    Head(u16),
    /// The end of a block.
    End(u16),
}

fn host_of(place: Place) -> u8 {
    PINS[usize::from(place.host)].1
}

/// The fixed map's register of a guest register.
fn pin(guest: u8) -> Option<u8> {
    PINS.iter().find(|p| p.0 == guest).map(|p| p.1)
}

/// Moves between registers, all at once: in an order in which none is overwritten before it was read. `Err` exchanges two.
fn in_turn(moves: &mut Vec<(u8, u8)>, mut emit: impl FnMut(Result<(u8, u8), (u8, u8)>)) {
    moves.retain(|(to, from)| to != from);
    while !moves.is_empty() {
        match moves.iter().position(|&(to, _)| moves.iter().all(|&(_, from)| from != to)) {
            Some(n) => emit(Ok(moves.swap_remove(n))),
            None => {
                // What is left are circles. What was in `to` is in `from` now.
                let (to, from) = moves.swap_remove(0);
                emit(Err((to, from)));
                for (_, other) in moves.iter_mut() {
                    if *other == to {
                        *other = from;
                    }
                }
                moves.retain(|(to, from)| to != from);
            }
        }
    }
}

impl Emitter {
    /// Does the region name host registers?
    pub(super) fn is_named(&self) -> bool {
        !self.frames.is_empty()
    }

    fn moves(&mut self, moves: &mut Vec<(u8, u8)>) {
        in_turn(moves, |step| match step {
            Ok((to, from)) => dynasm!(self.ops; .arch x64; mov Rq(to), Rq(from)),
            Err((a, b)) => dynasm!(self.ops; .arch x64; xchg Rq(a), Rq(b)),
        });
    }

    /// It counts as it was before.
    fn extend_place(&mut self, place: Place) {
        if place.narrow {
            let host = host_of(place);
            dynasm!(self.ops; .arch x64; movsxd Rq(host), Rd(host));
        }
    }

    fn write_home(&mut self, guest: u8, host: u8) {
        self.ops.slot(WIDE, MOV_TO, host, off(guest));
    }

    fn read_home(&mut self, guest: u8, host: u8) {
        self.ops.slot(WIDE, MOV, host, off(guest));
    }

    /// From the fixed map to the region's places.
    pub(super) fn come_in(&mut self) {
        self.map = RegMap::named();
        for n in 0..self.frames.home().len() {
            let place = self.frames.home()[n];
            self.write_home(place.guest, host_of(place));
        }
        let load = self.frames.load().to_vec();
        let mut moves = load.iter().filter_map(|&p| Some((host_of(p), pin(p.guest)?))).collect();
        self.moves(&mut moves);
        for place in load.into_iter().filter(|p| pin(p.guest).is_none()) {
            self.read_home(place.guest, host_of(place));
        }
    }

    /// From the region's places to the fixed map; rax, rcx, rdx and the flags survive. Of a region that names no host
    /// registers, what it exchanged goes back.
    pub(super) fn go_out(&mut self, border: Border) {
        if !self.is_named() {
            return self.swap_out();
        }
        let places = match border {
            Border::Head(block) => self.frames.head(block),
            Border::End(block) => self.frames.term(block),
        };
        let places = places.to_vec();
        places.iter().for_each(|&place| self.extend_place(place));
        for place in places.iter().filter(|p| pin(p.guest).is_none()) {
            self.write_home(place.guest, host_of(*place));
        }
        let mut moves = places.iter().filter_map(|&p| Some((pin(p.guest)?, host_of(p)))).collect();
        self.moves(&mut moves);
        for (guest, host) in PINS {
            if places.iter().all(|p| p.guest != guest) {
                self.read_home(guest, host);
            }
        }
    }

    /// Every register home, for Rust to see.
    pub(super) fn show(&mut self, site: u16) {
        for n in 0..self.frames.before(site).len() {
            let place = self.frames.before(site)[n];
            self.extend_place(place);
            self.write_home(place.guest, host_of(place));
        }
    }

    /// Behind Rust.
    pub(super) fn take_back(&mut self, site: u16) {
        for n in 0..self.frames.behind(site).len() {
            let place = self.frames.behind(site)[n];
            self.read_home(place.guest, host_of(place));
        }
    }
}

// What this adds to the longest TB: each site, twice, as cold copies have it again, or each of a branch's two ways out, extends
// a register, writes it home and reads it back, for all of them.
const _: () = assert!(2 * MAX_INSNS * HOSTS * (3 + 4 + 4) <= CAPACITY / 2, "as much room as the rest has");

#[cfg(test)]
mod tests {
    use super::*;

    /// All maps of four registers to four.
    #[test]
    fn moves_at_once_give_each_its_source_as_it_was() {
        for code in 0..5u32.pow(4) {
            let from: Vec<u8> = (0..4).map(|n| (code / 5u32.pow(n) % 5) as u8).collect();
            let mut moves: Vec<(u8, u8)> = (0..4).filter(|&n| from[n] < 4).map(|n| (n as u8, from[n])).collect();
            let wanted = moves.clone();
            let mut registers = [10, 11, 12, 13];
            in_turn(&mut moves, |step| match step {
                Ok((to, from)) => registers[usize::from(to)] = registers[usize::from(from)],
                Err((a, b)) => registers.swap(a.into(), b.into()),
            });
            for (to, from) in wanted {
                assert_eq!(registers[usize::from(to)], 10 + from, "{code}");
            }
        }
    }
}
