//! The registers as named values, for streams; what comes back is made legal first, as by a write, so that a stream cannot bring a
//! value that no hart has.
use super::table::{Rule, TABLE, Value as Held, Word};
use super::write::{pmp, status};
use super::{Csrs, fields::envcfg, fields::satp};
use notdirty_softmmu::Value;

/// The value that the register of this word would have after a write of `new`.
fn legal(word: Word, new: u64, has_f: bool) -> u64 {
    let row = TABLE.iter().find(|row| matches!(row.value, Held::Word(w) | Held::Pending(w) if w == word));
    let Some(row) = row else { return new };
    let new = new & row.mask | row.ones;
    match row.rule {
        Rule::Status => status(new, has_f),
        Rule::Pmp => pmp(0, new),
        Rule::Satp if satp::MODES >> (new >> satp::MODE_SHIFT) & 1 == 0 => 0,
        Rule::Envcfg if new & envcfg::CBIE == 2 << 4 => new & !envcfg::CBIE,
        _ => new,
    }
}

impl Csrs {
    /// Each register with its name. `has_f`: the hart has F.
    pub(crate) fn each(&mut self, has_f: bool, visit: &mut dyn FnMut(&'static str, Value<'_>)) {
        // All of it, so that a register that comes is not forgotten here.
        let Csrs {
            mstatus,
            mie,
            mtvec,
            mscratch,
            mepc,
            mcause,
            mtval,
            medeleg,
            mideleg,
            mip,
            mcounteren,
            menvcfg,
            stvec,
            sscratch,
            sepc,
            scause,
            stval,
            scounteren,
            senvcfg,
            stimecmp,
            satp,
            mcountinhibit,
            cycle,
            instret,
            pmpcfg0,
            pmpcfg2,
            pmpaddr,
            fflags,
            frm,
        } = self;
        let words = [
            ("mstatus", mstatus, Word::Mstatus),
            ("mie", mie, Word::Mie),
            ("mtvec", mtvec, Word::Mtvec),
            ("mscratch", mscratch, Word::Mscratch),
            ("mepc", mepc, Word::Mepc),
            ("mcause", mcause, Word::Mcause),
            ("mtval", mtval, Word::Mtval),
            ("medeleg", medeleg, Word::Medeleg),
            ("mideleg", mideleg, Word::Mideleg),
            ("mip", mip, Word::Mip),
            ("mcounteren", mcounteren, Word::Mcounteren),
            ("menvcfg", menvcfg, Word::Menvcfg),
            ("stvec", stvec, Word::Stvec),
            ("sscratch", sscratch, Word::Sscratch),
            ("sepc", sepc, Word::Sepc),
            ("scause", scause, Word::Scause),
            ("stval", stval, Word::Stval),
            ("scounteren", scounteren, Word::Scounteren),
            ("senvcfg", senvcfg, Word::Senvcfg),
            ("stimecmp", stimecmp, Word::Stimecmp),
            ("satp", satp, Word::Satp),
            ("mcountinhibit", mcountinhibit, Word::Mcountinhibit),
            ("cycle_offset", &mut cycle.0, Word::Cycle),
            ("instret_offset", &mut instret.0, Word::Instret),
            ("pmpcfg0", pmpcfg0, Word::Pmpcfg0),
            ("pmpcfg2", pmpcfg2, Word::Pmpcfg2),
        ];
        for (name, register, word) in words {
            visit(name, Value::U64(register));
            *register = legal(word, *register, has_f);
        }
        let mut addresses = pmpaddr.to_vec();
        visit("pmpaddr", Value::U64s(&mut addresses));
        for (n, register) in pmpaddr.iter_mut().enumerate() {
            *register = addresses.get(n).map_or(0, |address| legal(Word::Pmpaddr, *address, has_f));
        }
        visit("fflags", Value::U8(fflags));
        visit("frm", Value::U8(frm));
        (*fflags, *frm) = (*fflags & 31, *frm & 7);
    }
}
