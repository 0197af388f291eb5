//! Targets for fuzzers, each with a bug that was planted. A run of one:
//!
//! ```text
//!   start ─▶ ready: the input is at INPUT, its length (8 bytes), then its bytes ─▶ work ─┬─▶ done
//!            (here a fuzzer takes its checkpoint, and puts the input)                    └─▶ a fetch or a store where nothing is
//! ```
//!
//! By itself a target finds an empty input, and ends with code 0.

use dynasmrt::{DynasmApi, DynasmLabelApi};

mod called;
mod race;

use super::GuestImage;
use super::asm::{self, Asm, BASE, rv};
pub use called::called;
pub use race::race;

/// Where the input is: its length, then its bytes.
pub const INPUT: u64 = BASE + 0x9_0000;
/// It is no longer than this.
pub const MAX_INPUT: usize = 256;
/// What the targets keep apart from their code.
const HEAP: i32 = 0x8009_2000_u32 as i32;
/// Where one of them writes code.
const CODE: i32 = 0x8009_3000_u32 as i32;
/// Exceptions that a planted bug ends in, a bit for each cause: fetch, illegal instruction, load, store.
pub const CRASHES: u64 = 1 << 1 | 1 << 2 | 1 << 5 | 1 << 7;

/// What is wrong with a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// The first byte is a length, compared as a signed number: one of 128 or more overruns a buffer on the stack.
    Length,
    /// Commands allocate, free, write and use an object; to free it leaves a pointer behind.
    UseAfterFree,
    /// Eight bytes at once are the key to a wild store.
    Magic,
    /// Four messages in their order lead to an index that is not checked; any other one leads back to the start.
    Messages,
    /// The input is compiled; nothing but what is compiled can move the base of the stores, and then store.
    SelfModified,
}

impl Planted {
    /// All of them.
    pub const ALL: [Planted; 5] =
        [Planted::Length, Planted::UseAfterFree, Planted::Magic, Planted::Messages, Planted::SelfModified];

    /// An input that meets the bug.
    pub fn witness(self) -> &'static [u8] {
        match self {
            Planted::Length => &[0x80],
            Planted::UseAfterFree => &[0, 1, 2, 9, 9, 9, 9, 9, 9, 9, 9, 3],
            Planted::Magic => b"\x0dnotdirt",
            Planted::Messages => b"h\x03\x01E\x02",
            Planted::SelfModified => &[0, 5, 3, 1, 2, 0],
        }
    }
}

/// A target as a program.
#[derive(Debug, Clone)]
pub struct Target {
    /// The program.
    pub image: GuestImage,
    /// The input is read from here on.
    pub ready: u64,
    /// The input was worked on, and nothing was wrong.
    pub done: u64,
}

/// Assembles a target. Behind `ready` s0 is the address of the input's next byte, s1 that behind its last.
pub fn target(planted: Planted) -> Target {
    let mut ops = asm::start();
    rv!(ops ; li.43 sp, asm::STACK ; li.12 a0, 0);
    let ready = BASE + ops.offset().0 as u64;
    rv!(ops ; li.43 s0, INPUT as i64 ; ld s1, [s0] ; addi s0, s0, 8 ; add s1, s1, s0);
    let name = match planted {
        Planted::Length => length(&mut ops),
        Planted::UseAfterFree => use_after_free(&mut ops),
        Planted::Magic => magic(&mut ops),
        Planted::Messages => messages(&mut ops),
        Planted::SelfModified => self_modified(&mut ops),
    };
    rv!(ops ; ->done:);
    let done = BASE + ops.offset().0 as u64;
    asm::pass(&mut ops);
    Target { image: asm::finish(name, ops), ready, done }
}

fn length(ops: &mut Asm) -> &'static str {
    rv!(ops
        ; bgeu s0, s1, ->done
        ; call >copy
        ; j ->done
        ; copy:
        ; addi sp, sp, -32
        ; sd ra, [sp, 24]
        ; lb t0, [s0]
        ; li.12 t1, 16
        ; bgt t0, t1, >back // here: of 128 and more the sign says that it is small
        ; andi t0, t0, 0xff
        ; mv t2, sp
        ; byte:
        ; beqz t0, >back
        ; addi s0, s0, 1
        ; lbu t3, [s0]
        ; sb t3, [t2]
        ; addi t2, t2, 1
        ; addi t0, t0, -1
        ; j <byte
        ; back:
        ; ld ra, [sp, 24]
        ; addi sp, sp, 32
        ; ret
    );
    "length"
}

fn use_after_free(ops: &mut Asm) -> &'static str {
    // s2: the only cell of the heap, a pointer to a function; s3: is it taken; s4: the object.
    rv!(ops
        ; li.32 s2, HEAP
        ; slli s2, s2, 32 ; srli s2, s2, 32
        ; li.12 s3, 0
        ; li.12 s4, 0
        ; next:
        ; bgeu s0, s1, ->done
        ; lbu t0, [s0]
        ; addi s0, s0, 1
        ; andi t0, t0, 3
        ; li.12 t1, 1
        ; beqz t0, >new
        ; beq t0, t1, >free
        ; li.12 t1, 2
        ; beq t0, t1, >write
        ; beqz s4, <next
        ; ld t2, [s4] // use
        ; jalr ra, t2, 0
        ; j <next
        ; new:
        ; bnez s3, <next
        ; li.12 s3, 1
        ; mv s4, s2
        ; la t2, >function
        ; sd t2, [s4]
        ; j <next
        ; free:
        ; li.12 s3, 0 // here: s4 stays
        ; j <next
        ; write:
        ; bnez s3, <next
        ; addi t2, s0, 8
        ; bltu s1, t2, ->done
        ; li.12 s3, 1
        ; li.12 t3, 0
        ; eight:
        ; lbu t4, [s0]
        ; add t5, s2, t3
        ; sb t4, [t5]
        ; addi s0, s0, 1
        ; addi t3, t3, 1
        ; andi t4, t3, 8
        ; beqz t4, <eight
        ; j <next
        ; function:
        ; addi s5, s5, 1
        ; ret
    );
    "use-after-free"
}

fn magic(ops: &mut Asm) -> &'static str {
    let key = i64::from_le_bytes(*b"\x0dnotdirt");
    rv!(ops
        ; addi t0, s0, 8
        ; bltu s1, t0, ->done
        ; ld t1, [s0]
        ; li t2, key
        ; bne t1, t2, ->done
        ; sd t1, [zero, 8]
    );
    "magic"
}

fn messages(ops: &mut Asm) -> &'static str {
    // Of each message the first byte; s2: how many came in their order.
    rv!(ops
        ; li.12 s2, 0
        ; li.43 s3, INPUT as i64 + 0x1000
        ; next:
        ; bgeu s0, s1, ->done
        ; lbu t0, [s0]
        ; addi s0, s0, 1
        ; li.12 t1, 1
        ; beqz s2, >hello
        ; beq s2, t1, >version
        ; li.12 t1, 2
        ; beq s2, t1, >name
        ; li.12 t1, 3
        ; beq s2, t1, >sum
        ; slli t0, t0, 32 // here: the index of a table
        ; add t0, t0, s3
        ; sb t1, [t0]
        ; start:
        ; li.12 s2, 0
        ; j <next
        ; hello:
        ; li.12 t1, 0x68
        ; bne t0, t1, <start
        ; j >good
        ; version:
        ; addi t0, t0, -1
        ; li.12 t1, 4
        ; bgeu t0, t1, <start
        ; j >good
        ; name:
        ; xori t0, t0, 0x55
        ; li.12 t1, 0x54
        ; bne t0, t1, <start
        ; j >good
        ; sum:
        ; slli t1, t0, 1
        ; add t0, t0, t1
        ; andi t0, t0, 0xff
        ; li.12 t1, 0xcf
        ; bne t0, t1, <start
        ; good:
        ; addi s2, s2, 1
        ; j <next
    );
    "messages"
}

fn self_modified(ops: &mut Asm) -> &'static str {
    // Pairs of an operation and a byte become instructions, then `ret`; s2: where they store to.
    rv!(ops
        ; li.32 s3, CODE
        ; slli s3, s3, 32 ; srli s3, s3, 32
        ; li.32 s2, HEAP
        ; slli s2, s2, 32 ; srli s2, s2, 32
        ; mv s4, s3
        ; next:
        ; addi t0, s0, 1
        ; bgeu t0, s1, >run
        ; lbu t0, [s0]
        ; lbu t1, [s0, 1]
        ; addi s0, s0, 2
        ; andi t0, t0, 3
        ; li.12 t2, 1
        ; beqz t0, >add
        ; beq t0, t2, >xor
        ; li.12 t2, 2
        ; beq t0, t2, >store
        ; andi t1, t1, 31
        ; li.32 t3, asm::word!(slli s2, s2, 0) // here: an operation that was left in
        ; j >emit
        ; add:
        ; li.32 t3, asm::word!(addi a0, a0, 0)
        ; j >emit
        ; xor:
        ; li.32 t3, asm::word!(xori a0, a0, 0)
        ; j >emit
        ; store:
        ; andi t1, t1, 31
        ; slli t1, t1, 7 // bits 0 to 4 of where it stores to
        ; li.32 t3, asm::word!(sb a0, [s2, 0])
        ; or t3, t3, t1
        ; j >put
        ; emit:
        ; slli t1, t1, 20
        ; or t3, t3, t1
        ; put:
        ; sw t3, [s4]
        ; addi s4, s4, 4
        ; j <next
        ; run:
        ; li.32 t3, asm::word!(ret)
        ; sw t3, [s4]
        ; fence.i
        ; jalr ra, s3, 0
    );
    "self-modified"
}
