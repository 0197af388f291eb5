//! The text of a region, as `-d ir` and `notdirty disas` show it.
use super::{FIRST_FLOAT, Float, FloatArgs, Ir, Kind, Operands, Region, Target, Term};
use crate::guest::{FLOAT_REGISTERS, REGISTERS};
use crate::tier2::{HOST, HOSTS};
use std::fmt;

fn register(n: u8) -> &'static str {
    match n {
        0..FIRST_FLOAT => REGISTERS[n as usize],
        FIRST_FLOAT..HOST => FLOAT_REGISTERS[n as usize & 31],
        HOST.. => HOST_REGISTERS[usize::from(n - HOST) % HOSTS],
    }
}

/// Of a region that tier 2 gave host registers, in the order of its `HOST` operands.
const HOST_REGISTERS: [&str; HOSTS] = ["h0", "h1", "h2", "h3", "h4", "h5", "h6", "h7", "h8", "h9"];

/// A number that is added: `0x10` or `-0x10`.
struct Signed(i64);

impl fmt::Display for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:#x}", if self.0 < 0 { "-" } else { "" }, self.0.unsigned_abs())
    }
}

impl fmt::Display for Ir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rd, a, b) = (register(self.rd), register(self.a), register(self.b));
        match self.kind {
            Kind::Li => write!(f, "{rd} = {:#x}", self.imm),
            Kind::Mov => write!(f, "{rd} = {a}"),
            Kind::Reg(op) => write!(f, "{rd} = {op:?} {a}, {b}"),
            Kind::Imm(op) => write!(f, "{rd} = {op:?} {a}, {}", Signed(self.imm)),
            Kind::NarrowRotate => write!(f, "{rd}:32 = Roriw {a}, {}", Signed(self.imm)),
            Kind::Bits(op) => match op.operands() {
                Operands::Two => write!(f, "{rd} = {op:?} {a}, {b}"),
                Operands::One => write!(f, "{rd} = {op:?} {a}"),
                Operands::Immediate => write!(f, "{rd} = {op:?} {a}, {}", Signed(self.imm)),
            },
            Kind::Load(m) => {
                let sign = if m.signed() { "s" } else { "u" };
                write!(f, "{rd} = load.{sign}{} [{a} + {}]  #{}", 8 * m.bytes(), Signed(self.imm), self.site)
            }
            Kind::Store(m) => {
                write!(f, "store.{} [{a} + {}] = {b}  #{}", 8 * m.bytes(), Signed(self.imm), self.site)
            }
            Kind::Check => write!(f, "check {a}, {}", Signed(self.imm)),
            Kind::LoadFast(m, n) => {
                let sign = if m.signed() { "s" } else { "u" };
                write!(f, "{rd} = load.{sign}{} [{a} + ", 8 * m.bytes())?;
                if self.b != 0 {
                    write!(f, "({b} << {n}) + ")?;
                }
                write!(f, "{}]", Signed(self.imm))
            }
            Kind::StoreFast(m) => write!(f, "store.{} [{a} + {}] = {b}", 8 * m.bytes(), Signed(self.imm)),
            Kind::ReadState => write!(f, "{rd} = state[{:#x}]", self.imm),
            Kind::SwapState => write!(f, "{rd}, state[{:#x}] = state[{:#x}], {a}", self.imm, self.imm),
            Kind::Amo(op, m) => write!(f, "{rd} = amo.{op:?}.{} [{a}], {b}  #{}", 8 * m.bytes(), self.site),
            Kind::LoadReserved(m) => write!(f, "{rd} = lr.{} [{a}]  #{}", 8 * m.bytes(), self.site),
            Kind::StoreConditional(m) => write!(f, "{rd} = sc.{} [{a}], {b}  #{}", 8 * m.bytes(), self.site),
            Kind::ReadCounter => write!(f, "{rd} = counter[{:#x}]  #{}", self.imm, self.site),
            Kind::FenceI => write!(f, "fence.i  #{}", self.site),
            Kind::Float(what) => {
                let args = FloatArgs::unpack(self.imm);
                write!(f, "{rd} = {what:?}.{} {a}", if args.double { "d" } else { "s" })?;
                if matches!(what, Float::MulAdd | Float::MulSub | Float::NegMulAdd | Float::NegMulSub) {
                    write!(f, ", {b}, {}", register(FIRST_FLOAT + args.third))?;
                } else if !matches!(
                    what,
                    Float::Sqrt
                        | Float::Convert
                        | Float::ToInt(_)
                        | Float::FromInt(_)
                        | Float::ToBits
                        | Float::FromBits
                ) {
                    write!(f, ", {b}")?;
                }
                write!(f, "  #{}", self.site)
            }
            Kind::FloatOn => write!(f, "fpu {}  #{}", if self.imm == 2 { "dirty" } else { "on" }, self.site),
            Kind::Cover => write!(f, "coverage[{}] += {}", self.imm, self.b as i8),
            Kind::Operands if self.rd == 0 => write!(f, "operands[{}] = {a}, {b}", self.site),
            Kind::Operands => write!(f, "operands[{}] = {a}, {}", self.site, self.imm),
            Kind::Hook => write!(f, "hook #{}", self.site),
            Kind::Tell => write!(f, "tell {}  #{}", self.imm, self.site),
            Kind::Box => write!(f, "{rd} = box {rd}"),
            Kind::Fence => write!(f, "fence"),
            Kind::Rust => write!(f, "rust #{}", self.site),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Block(b) => write!(f, "b{b}"),
            Target::Exit(pc) => write!(f, "exit {pc:#x}"),
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Term::Goto(t) => write!(f, "goto {t}"),
            Term::Branch { cond, a, b, word, taken, fall } => {
                let word = if word { ":32" } else { "" };
                write!(f, "if {cond:?}{word} {}, {} goto {taken} else {fall}", register(a), register(b))
            }
            Term::Again { cond, a, b, word, out, fast, head, .. } => {
                let word = if word { ":32" } else { "" };
                let (a, b) = (register(a), register(b));
                write!(f, "if {cond:?}{word} {a}, {b} goto {out} else b{fast} while checked, else b{head}")
            }
            Term::Count { turns, fast, once, cold } => {
                let (clock, bound) = (register(turns.clock), register(turns.bound));
                write!(f, "count turns by {clock}, {bound}: b{fast}, one b{once}, none b{cold}")
            }
            Term::Turn { clock, fast, last } => {
                write!(f, "b{fast} until {} is at the last turn, b{last}", register(clock))
            }
            Term::Fork { fast, cold, .. } => write!(f, "if checked goto b{fast} else b{cold}"),
            Term::Indirect { base, imm, link, .. } => {
                write!(f, "jump [{} + {}]", register(base), Signed(imm.into()))?;
                if let Some((rd, ret)) = link {
                    write!(f, ", {} = {ret:#x}", REGISTERS[rd as usize & 31])?;
                }
                Ok(())
            }
            Term::System { site } => write!(f, "system #{site}"),
        }
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "region {:#x}: {} instructions, entry b{}", self.pc, self.insns, self.entry)?;
        for (i, block) in self.blocks.iter().enumerate() {
            let poll = if block.poll { ", polls" } else { "" };
            writeln!(f, "b{i}: {:#x}, {} instructions{poll}", block.pc, block.insns)?;
            for op in &self.ops[block.first as usize..block.end as usize] {
                writeln!(f, "    {op}")?;
            }
            writeln!(f, "    {}", block.term)?;
        }
        Ok(())
    }
}
