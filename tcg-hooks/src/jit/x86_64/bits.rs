//! Bit manipulation and Zicond: `a` in rax, `b` in rcx, the result in rax. What is asked of the host is what each has,
//! but for `popcnt`.
use super::Emitter;
use super::alu::with;
use super::encode::{MOV, MOVSX_BYTE, MOVSX_WORD, MOVZX_WORD, NARROW, Opcode, WIDE};
use super::regs::{RAX, RCX};
use crate::ir::{Bits, Ir, Operands};
use dynasmrt::dynasm;

impl Emitter {
    /// The 32 bits of `a`, rotated; above them is anything.
    pub(super) fn narrow_rotate(&mut self, ir: &Ir) {
        let d = self.target(ir.rd, RAX);
        let n = (ir.imm & 31) as i8;
        if self.bmi2 {
            let x = self.source(ir.a, RAX);
            dynasm!(self.ops; .arch x64; rorx Rd(d), Rd(x), n);
        } else {
            if self.map.host(ir.a) != Some(d) {
                with!(self, mov, Rd, d, ir.a);
            }
            dynasm!(self.ops; .arch x64; ror Rd(d), n);
        }
        self.done(ir.rd, d);
    }

    /// `a << n + b`; `uw`: of the low half of `a`.
    fn scaled(&mut self, ir: &Ir, n: u8, uw: bool) {
        let d = self.target(ir.rd, RAX);
        let y = self.source(ir.b, RCX);
        let x = match uw {
            true => {
                with!(self, mov, Rd, RAX, ir.a);
                RAX
            }
            false => self.source(ir.a, RAX),
        };
        self.ops.sum(d, y, (x, n));
        self.done(ir.rd, d);
    }

    /// One move that extends `a`.
    fn extend(&mut self, ir: &Ir, width: u8, op: Opcode) {
        let d = self.target(ir.rd, RAX);
        self.with(width, op, d, ir.a);
        self.done(ir.rd, d);
    }

    pub(super) fn bits(&mut self, ir: &Ir, op: Bits) {
        match op {
            Bits::AddUw if ir.b == 0 => return self.extend(ir, NARROW, MOV),
            Bits::SextB => return self.extend(ir, WIDE, MOVSX_BYTE),
            Bits::SextH => return self.extend(ir, WIDE, MOVSX_WORD),
            Bits::ZextH => return self.extend(ir, NARROW, MOVZX_WORD),
            Bits::AddUw => return self.scaled(ir, 0, true),
            Bits::Sh1add => return self.scaled(ir, 1, false),
            Bits::Sh2add => return self.scaled(ir, 2, false),
            Bits::Sh3add => return self.scaled(ir, 3, false),
            Bits::Sh1addUw => return self.scaled(ir, 1, true),
            Bits::Sh2addUw => return self.scaled(ir, 2, true),
            Bits::Sh3addUw => return self.scaled(ir, 3, true),
            _ => {}
        }
        match op {
            Bits::SlliUw | Bits::Clzw | Bits::Ctzw | Bits::Cpopw | Bits::Rolw | Bits::Rorw | Bits::Roriw => {
                with!(self, mov, Rd, RAX, ir.a)
            }
            _ => with!(self, mov, Rq, RAX, ir.a),
        }
        if op.operands() == Operands::Two {
            with!(self, mov, Rq, RCX, ir.b);
        }
        let n = (ir.imm & 63) as i8;
        match op {
            Bits::SlliUw => dynasm!(self.ops; .arch x64; shl rax, n),
            Bits::Andn => dynasm!(self.ops; .arch x64; not rcx; and rax, rcx),
            Bits::Orn => dynasm!(self.ops; .arch x64; not rcx; or rax, rcx),
            Bits::Xnor => dynasm!(self.ops; .arch x64; xor rax, rcx; not rax),
            Bits::Max => dynasm!(self.ops; .arch x64; cmp rax, rcx; cmovl rax, rcx),
            Bits::Maxu => dynasm!(self.ops; .arch x64; cmp rax, rcx; cmovb rax, rcx),
            Bits::Min => dynasm!(self.ops; .arch x64; cmp rax, rcx; cmovg rax, rcx),
            Bits::Minu => dynasm!(self.ops; .arch x64; cmp rax, rcx; cmova rax, rcx),
            Bits::Rol => dynasm!(self.ops; .arch x64; rol rax, cl),
            Bits::Ror => dynasm!(self.ops; .arch x64; ror rax, cl),
            Bits::Rori => dynasm!(self.ops; .arch x64; ror rax, n),
            Bits::Rolw => dynasm!(self.ops; .arch x64; rol eax, cl; movsxd rax, eax),
            Bits::Rorw => dynasm!(self.ops; .arch x64; ror eax, cl; movsxd rax, eax),
            Bits::Roriw => dynasm!(self.ops; .arch x64; ror eax, n & 31; movsxd rax, eax),
            // Of zero the scan says that it is zero, and nothing else; 127 ^ 63 is 64, and 63 ^ 31 is 32.
            Bits::Clz => dynasm!(self.ops; .arch x64; mov ecx, 127; bsr rax, rax; cmovz rax, rcx; xor eax, BYTE 63),
            Bits::Clzw => dynasm!(self.ops; .arch x64; mov ecx, 63; bsr eax, eax; cmovz eax, ecx; xor eax, BYTE 31),
            Bits::Ctz => dynasm!(self.ops; .arch x64; mov ecx, 64; bsf rax, rax; cmovz rax, rcx),
            Bits::Ctzw => dynasm!(self.ops; .arch x64; mov ecx, 32; bsf eax, eax; cmovz eax, ecx),
            Bits::Cpop | Bits::Cpopw if self.popcnt => dynasm!(self.ops; .arch x64; popcnt rax, rax),
            // Counts of two bits, of four, of eight; the product's top byte is their sum.
            Bits::Cpop | Bits::Cpopw => dynasm!(self.ops; .arch x64
                ; mov rdx, QWORD 0x5555_5555_5555_5555
                ; mov rcx, rax
                ; shr rcx, 1
                ; and rcx, rdx
                ; sub rax, rcx
                ; mov rdx, QWORD 0x3333_3333_3333_3333
                ; mov rcx, rax
                ; and rax, rdx
                ; shr rcx, 2
                ; and rcx, rdx
                ; add rax, rcx
                ; mov rcx, rax
                ; shr rcx, 4
                ; add rax, rcx
                ; mov rdx, QWORD 0x0f0f_0f0f_0f0f_0f0f
                ; and rax, rdx
                ; mov rdx, QWORD 0x0101_0101_0101_0101
                ; imul rax, rdx
                ; shr rax, 56),
            Bits::Rev8 => dynasm!(self.ops; .arch x64; bswap rax),
            // The top bit of each byte that is not zero, moved to its bottom, times 255.
            Bits::OrcB => dynasm!(self.ops; .arch x64
                ; mov rdx, QWORD 0x7f7f_7f7f_7f7f_7f7f
                ; mov rcx, rax
                ; and rcx, rdx
                ; add rcx, rdx
                ; or rcx, rax
                ; not rdx
                ; and rcx, rdx
                ; shr rcx, 7
                ; mov rax, rcx
                ; shl rax, 8
                ; sub rax, rcx),
            Bits::Bclr => dynasm!(self.ops; .arch x64; btr rax, rcx),
            Bits::Binv => dynasm!(self.ops; .arch x64; btc rax, rcx),
            Bits::Bset => dynasm!(self.ops; .arch x64; bts rax, rcx),
            Bits::Bclri => dynasm!(self.ops; .arch x64; btr rax, BYTE n),
            Bits::Binvi => dynasm!(self.ops; .arch x64; btc rax, BYTE n),
            Bits::Bseti => dynasm!(self.ops; .arch x64; bts rax, BYTE n),
            Bits::Bext => dynasm!(self.ops; .arch x64; shr rax, cl; and eax, BYTE 1),
            Bits::Bexti => dynasm!(self.ops; .arch x64; shr rax, n; and eax, BYTE 1),
            Bits::CzeroEqz => dynasm!(self.ops; .arch x64; test rcx, rcx; cmovz rax, rcx),
            Bits::CzeroNez => dynasm!(self.ops; .arch x64; xor edx, edx; test rcx, rcx; cmovnz rax, rdx),
            Bits::AddUw | Bits::Sh1add | Bits::Sh2add | Bits::Sh3add => unreachable!("above"),
            Bits::Sh1addUw | Bits::Sh2addUw | Bits::Sh3addUw => unreachable!("above"),
            Bits::SextB | Bits::SextH | Bits::ZextH => unreachable!("above"),
        }
        self.put(ir.rd, RAX);
    }
}

const _: () = assert!(RCX == 1, "it is named above");
