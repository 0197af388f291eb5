//! What the translator does with each operation, looked up rather than asked for: chains of matches are mispredicted. The
//! decoder has it in its rows of 32-bit forms.
use crate::ir::{Alu, Bits, Cond, MemOp};
use crate::riscv::Op;

/// What becomes of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// `lui`
    Upper,
    /// `auipc`
    UpperPc,
    Fence,
    Load(MemOp),
    Store(MemOp),
    /// Arithmetic with the immediate.
    Imm(Alu),
    /// Arithmetic on two registers.
    Reg(Alu),
    Csr,
    Float,
    Bits(Bits),
    /// Done in Rust, and on with the next one.
    Rust,
    Branch(Cond),
    /// `jal`
    Jump,
    /// `jalr`
    Indirect,
    /// Done in Rust, and control goes on elsewhere.
    System,
}

static PLANS: [Plan; Op::ALL.len() + 1] = {
    let mut plans = [Plan::System; Op::ALL.len() + 1];
    let mut i = 0;
    while i < Op::ALL.len() {
        plans[i] = plan(Op::ALL[i]);
        i += 1;
    }
    plans
};

/// The plan for an operation.
#[inline]
pub(crate) fn plan_of(op: Op) -> Plan {
    PLANS[op as usize]
}

/// The same, to make tables of.
pub(crate) const fn plan(op: Op) -> Plan {
    let size = MemOp(op.mem_bytes().trailing_zeros() as u8 & 3 | if op.is_signed_load() { 4 } else { 0 });
    match op {
        Op::Lui => Plan::Upper,
        Op::Auipc => Plan::UpperPc,
        Op::Fence => Plan::Fence,
        Op::Jal => Plan::Jump,
        Op::Jalr => Plan::Indirect,
        Op::Beq => Plan::Branch(Cond::Eq),
        Op::Bne => Plan::Branch(Cond::Ne),
        Op::Blt => Plan::Branch(Cond::Lt),
        Op::Bge => Plan::Branch(Cond::Ge),
        Op::Bltu => Plan::Branch(Cond::Ltu),
        Op::Bgeu => Plan::Branch(Cond::Geu),
        Op::Illegal => Plan::System,
        _ if op.is_system() => Plan::System,
        _ if op.is_float() => Plan::Float,
        _ if op.is_load() => Plan::Load(size),
        _ if op.is_store() => Plan::Store(size),
        _ if op.is_csr() => Plan::Csr,
        _ => match bits(op) {
            Some(bits) => Plan::Bits(bits),
            None => arithmetic(op),
        },
    }
}

/// The operation on bits that an instruction of Zba, Zbb, Zbs or Zicond is. Those of Zbc, which not each host has, are Rust's.
const fn bits(op: Op) -> Option<Bits> {
    macro_rules! alike {
        ($($name:ident)*) => {
            match op {
                $(Op::$name => Some(Bits::$name),)*
                _ => None,
            }
        };
    }
    alike! {
        AddUw Sh1add Sh2add Sh3add Sh1addUw Sh2addUw Sh3addUw SlliUw Andn Orn Xnor Max Maxu Min Minu Rol Ror Rolw Rorw Rori Roriw
        Clz Ctz Cpop Clzw Ctzw Cpopw SextB SextH ZextH OrcB Rev8 Bclr Bext Binv Bset Bclri Bexti Binvi Bseti CzeroEqz CzeroNez
    }
}

/// The operation of an arithmetic instruction, and where its second operand comes from. What is left is Rust's.
const fn arithmetic(op: Op) -> Plan {
    use Plan::{Imm, Reg};
    match op {
        Op::Addi => Imm(Alu::Add),
        Op::Slti => Imm(Alu::Slt),
        Op::Sltiu => Imm(Alu::Sltu),
        Op::Xori => Imm(Alu::Xor),
        Op::Ori => Imm(Alu::Or),
        Op::Andi => Imm(Alu::And),
        Op::Slli => Imm(Alu::Sll),
        Op::Srli => Imm(Alu::Srl),
        Op::Srai => Imm(Alu::Sra),
        Op::Addiw => Imm(Alu::AddW),
        Op::Slliw => Imm(Alu::SllW),
        Op::Srliw => Imm(Alu::SrlW),
        Op::Sraiw => Imm(Alu::SraW),
        Op::Add => Reg(Alu::Add),
        Op::Sub => Reg(Alu::Sub),
        Op::Sll => Reg(Alu::Sll),
        Op::Slt => Reg(Alu::Slt),
        Op::Sltu => Reg(Alu::Sltu),
        Op::Xor => Reg(Alu::Xor),
        Op::Srl => Reg(Alu::Srl),
        Op::Sra => Reg(Alu::Sra),
        Op::Or => Reg(Alu::Or),
        Op::And => Reg(Alu::And),
        Op::Addw => Reg(Alu::AddW),
        Op::Subw => Reg(Alu::SubW),
        Op::Sllw => Reg(Alu::SllW),
        Op::Srlw => Reg(Alu::SrlW),
        Op::Sraw => Reg(Alu::SraW),
        Op::Mul => Reg(Alu::Mul),
        Op::Mulh => Reg(Alu::Mulh),
        Op::Mulhsu => Reg(Alu::Mulhsu),
        Op::Mulhu => Reg(Alu::Mulhu),
        Op::Mulw => Reg(Alu::MulW),
        Op::Div => Reg(Alu::Div),
        Op::Divu => Reg(Alu::Divu),
        Op::Rem => Reg(Alu::Rem),
        Op::Remu => Reg(Alu::Remu),
        Op::Divw => Reg(Alu::DivW),
        Op::Divuw => Reg(Alu::DivuW),
        Op::Remw => Reg(Alu::RemW),
        Op::Remuw => Reg(Alu::RemuW),
        _ => Plan::Rust,
    }
}

impl Plan {
    /// Does control not simply go on behind it?
    #[inline]
    pub(crate) fn ends_block(self) -> bool {
        matches!(self, Plan::Branch(_) | Plan::Jump | Plan::Indirect | Plan::System)
    }
}
