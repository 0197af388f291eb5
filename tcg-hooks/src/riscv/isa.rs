//! Which extensions a hart has. All that there are, unless a test or a user switches some off.
use super::decode::Insn;
use super::opcodes::Op;
use core::fmt::{self, Display, Formatter};

macro_rules! extensions {
    ($($name:ident $text:literal $doc:literal;)*) => {
        /// An extension that can be switched off. The base, Zicsr, and hints cannot.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Extension {
            $(#[doc = $doc] $name,)*
        }

        impl Extension {
            /// All of them, in the order in which they are written.
            pub const ALL: &'static [Extension] = &[$(Extension::$name),*];

            /// The name in an ISA string, in lower case.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Extension::$name => $text,)*
                }
            }
        }
    };
}

extensions! {
    M "m" "Multiplication and division.";
    A "a" "Atomics.";
    F "f" "Single precision.";
    D "d" "Double precision.";
    C "c" "Short instructions.";
    Zicbom "zicbom" "Cache-block management.";
    Zicboz "zicboz" "Cache-block zeroing.";
    Zicond "zicond" "Conditional zeroing.";
    Zifencei "zifencei" "`fence.i`.";
    Zba "zba" "Address generation.";
    Zbb "zbb" "Basic bit manipulation.";
    Zbc "zbc" "Multiplication without carries.";
    Zbs "zbs" "Single bits.";
}

/// A set of extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Isa(u32);

impl Default for Isa {
    fn default() -> Self {
        Isa::ALL
    }
}

impl Isa {
    /// Everything.
    pub const ALL: Isa = Isa((1 << Extension::ALL.len()) - 1);

    /// Has it that one?
    pub const fn has(self, extension: Extension) -> bool {
        self.0 >> extension as u8 & 1 != 0
    }

    /// A bit for each of [`Extension::ALL`].
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The set of these bits; others are not looked at. D comes with F.
    pub const fn from_bits(bits: u32) -> Isa {
        let isa = Isa(bits & Isa::ALL.0);
        if isa.has(Extension::D) { isa.with(Extension::D) } else { isa }
    }

    const fn with(self, extension: Extension) -> Isa {
        // D is worth nothing without F.
        let base = if matches!(extension, Extension::D) { 1 << Extension::F as u8 } else { 0 };
        Isa(self.0 | 1 << extension as u8 | base)
    }

    /// The value of `misa`: 64 bits, and the letters. B is there if all three of its parts are; the modes S and U always are.
    pub const fn misa(self) -> u64 {
        let b = self.has(Extension::Zba) && self.has(Extension::Zbb) && self.has(Extension::Zbs);
        2 << 62
            | 1 << 8
            | 1 << 18
            | 1 << 20
            | self.has(Extension::A) as u64
            | (b as u64) << 1
            | (self.has(Extension::C) as u64) << 2
            | (self.has(Extension::D) as u64) << 3
            | (self.has(Extension::F) as u64) << 5
            | (self.has(Extension::M) as u64) << 12
    }

    /// The set that an ISA string names: `rv64gc_zba`, `rv64imac`.
    ///
    /// # Errors
    /// The part that is not known: all of `text`, if it does not start with `rv64i` or `rv64g`.
    pub fn parse(text: &str) -> Result<Isa, String> {
        let lower = text.to_ascii_lowercase();
        let mut parts = lower.split('_');
        let first = parts.next().unwrap_or_default();
        let letters = first.strip_prefix("rv64").filter(|letters| letters.starts_with(['i', 'g']));
        let letters = letters.ok_or_else(|| text.to_owned())?;
        let mut isa = Isa(0);
        // A long name may follow the letters without an underscore.
        let long = letters.find('z').unwrap_or(letters.len());
        let names = letters[..long].chars().map(String::from).chain([letters[long..].to_owned()]);
        for name in names.chain(parts.map(str::to_owned)).filter(|name| !name.is_empty()) {
            let implied: &[Extension] = match name.as_str() {
                "i" | "zicsr" | "zicntr" | "zihpm" | "zihintpause" | "zihintntl" | "zicbop" => &[],
                "g" => &[Extension::M, Extension::A, Extension::F, Extension::D, Extension::Zifencei],
                "b" => &[Extension::Zba, Extension::Zbb, Extension::Zbs],
                _ => match Extension::ALL.iter().position(|e| e.name() == name) {
                    Some(at) => &Extension::ALL[at..=at],
                    None => return Err(name),
                },
            };
            isa = implied.iter().fold(isa, |isa, &extension| isa.with(extension));
        }
        Ok(isa)
    }

    /// The instruction, or, if it is of an extension that is not there, an illegal one with these bits.
    #[inline(always)]
    pub fn filter(self, insn: Insn, bits: u32) -> Insn {
        if self == Isa::ALL || self.admits(insn.op, insn.len) {
            return insn;
        }
        Insn::illegal(if insn.len == 2 { bits & 0xffff } else { bits }, insn.len)
    }

    /// By values: a reference would keep each decoded instruction in memory, written in bytes and read back in words.
    #[cold]
    #[inline(never)]
    fn admits(self, op: Op, len: u8) -> bool {
        (len != 2 || self.has(Extension::C)) && extension(op).is_none_or(|e| self.has(e))
    }
}

/// As an ISA string.
impl Display for Isa {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("rv64i")?;
        let on = || Extension::ALL.iter().filter(|&&e| self.has(e)).map(|e| e.name());
        on().filter(|name| name.len() == 1).try_for_each(|name| f.write_str(name))?;
        f.write_str("_zicsr")?;
        on().filter(|name| name.len() > 1).try_for_each(|name| write!(f, "_{name}"))
    }
}

/// What an operation belongs to; the base and Zicsr are nothing. The rows of the table are in this order.
const fn extension(op: Op) -> Option<Extension> {
    const fn within(op: Op, first: Op, last: Op) -> bool {
        first as u8 <= op as u8 && op as u8 <= last as u8
    }
    let ranges = [
        (Op::Mul, Op::Remuw, Extension::M),
        (Op::LrW, Op::AmomaxuD, Extension::A),
        (Op::FenceI, Op::FenceI, Extension::Zifencei),
        (Op::Flw, Op::FmvWX, Extension::F),
        (Op::Fld, Op::FmvDX, Extension::D),
        (Op::AddUw, Op::SlliUw, Extension::Zba),
        (Op::Andn, Op::Rev8, Extension::Zbb),
        (Op::Clmul, Op::Clmulr, Extension::Zbc),
        (Op::Bclr, Op::Bseti, Extension::Zbs),
        (Op::CzeroEqz, Op::CzeroNez, Extension::Zicond),
        (Op::CboInval, Op::CboFlush, Extension::Zicbom),
        (Op::CboZero, Op::CboZero, Extension::Zicboz),
    ];
    let mut i = 0;
    while i < ranges.len() {
        let (first, last, extension) = ranges[i];
        if within(op, first, last) {
            return Some(extension);
        }
        i += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::riscv::decode_any;

    #[test]
    fn a_string_names_a_set_and_a_set_its_string() {
        let isa = Isa::parse("rv64imac").unwrap();
        assert_eq!(isa.to_string(), "rv64imac_zicsr");
        assert_eq!(isa.misa(), 2 << 62 | 1 | 1 << 2 | 1 << 8 | 1 << 12 | 1 << 18 | 1 << 20);
        assert_eq!(Isa::parse("rv64gc_zba_Zbb_zbs").unwrap().misa() & 0x3f, 0x2f);
        assert_eq!(Isa::parse("rv64gczicond").unwrap(), Isa::parse("RV64imafdc_zicsr_zifencei_zicond").unwrap());
        assert!(Isa::parse("rv64id").unwrap().has(Extension::F));
        assert_eq!(Isa::parse(&Isa::ALL.to_string()), Ok(Isa::ALL));
        for (text, unknown) in [("rv32gc", "rv32gc"), ("rv64", "rv64"), ("rv64gcv", "v"), ("rv64gc_zfh", "zfh")] {
            assert_eq!(Isa::parse(text), Err(unknown.to_owned()));
        }
    }

    #[test]
    fn what_is_off_is_illegal_and_the_rest_is_not() {
        let small = Isa::parse("rv64im").unwrap();
        // c.nop; fadd.d; sh1add; amoadd.w; fence.i; clmul; czero.eqz; cbo.zero
        for bits in [1u32, 0x0220_f1d3, 0x20b5_2533, 0x00b5_252f, 0x100f, 0x0ab5_1533, 0x0eb5_5533, 0x0045_200f] {
            let insn = decode_any(bits as u16, bits);
            assert_ne!(insn.op, Op::Illegal, "{bits:#x}");
            assert_eq!(Isa::ALL.filter(insn, bits), insn);
            assert_eq!(small.filter(insn, bits), Insn::illegal(bits, insn.len));
        }
        for bits in [0x02b5_0533u32, 0x0000_0013, 0x3020_0073, 0x3000_2573] {
            let insn = decode_any(bits as u16, bits);
            assert_eq!(small.filter(insn, bits), insn, "{bits:#x}");
        }
    }
}
