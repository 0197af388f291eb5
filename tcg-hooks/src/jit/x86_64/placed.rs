//! An op computes the same wherever its registers live: each is emitted and run with its operands and its result in host
//! registers and in memory, apart and one another, and compared with what it gives where all are in host registers.
//! (That this is what the guest's instruction gives, `tests/values.rs` asks.)
use super::offsets::{BASE, JUMPS, LIMIT};
use super::regs::{PINS, RAX, RegMap};
use super::tests::nobody;
use super::{Emitter, Flat, thunks};
use crate::engine::JitFlags;
use crate::ir::{Alu, Bits, Cond, Ir, Kind, MemOp, Operands, Turns};
use crate::jit::code_cache::CodeCache;
use crate::jit::context::Context;
use crate::testkit::Rng;
use crate::tier2::HOST;
use dynasmrt::dynasm;
use std::mem::offset_of;

/// Where the host's registers are, in place of the context's jumps, and memory behind those.
const HOSTS_AT: usize = (JUMPS + BASE) as usize;
const BUFFER_AT: usize = HOSTS_AT + 128;
const WORDS: usize = BUFFER_AT / 8 + 32;
/// Three guest registers in memory, and three host registers: the first and the last of the map, and `rdi`.
const PLACES: [u8; 6] = [5, 15, 31, HOST, HOST + 3, HOST + 9];
const BUDGET: u64 = 1 << 20;

/// What emitted code works on: registers in memory, then the host's, then a few bytes to load and store.
struct State(Vec<u64>);

impl State {
    fn new(seed: u64) -> State {
        let mut rng = Rng::new(seed);
        let mut state = State(vec![0; WORDS]);
        for id in (1..32).chain(HOST..HOST + PINS.len() as u8) {
            *state.at(id) = rng.bits();
        }
        state.0[BUFFER_AT / 8..].fill_with(|| rng.bits());
        state.0[offset_of!(Context, budget) / 8] = BUDGET;
        state
    }

    fn at(&mut self, id: u8) -> &mut u64 {
        let word = if id < HOST { usize::from(id) } else { HOSTS_AT / 8 + usize::from(id - HOST) };
        &mut self.0[word]
    }

    /// The address in the middle of what is to be loaded and stored.
    fn buffer(&self) -> u64 {
        self.0[BUFFER_AT / 8 + 16..].as_ptr() as u64
    }
}

/// Code that loads the host registers from a state, does something, and stores them to it.
struct Bench {
    emitter: Emitter,
    cache: CodeCache,
}

impl Bench {
    fn new(flags: JitFlags) -> Bench {
        let (code, thunks) = thunks::assemble(flags, nobody);
        let mut emitter = Emitter::new(flags, thunks, Flat::default());
        emitter.map = RegMap::named();
        Bench { emitter, cache: CodeCache::new(CodeCache::MIN_BYTES, &code).unwrap() }
    }

    fn make(&mut self, emit: impl FnOnce(&mut Emitter)) -> *const u8 {
        let e = &mut self.emitter;
        e.ops.clear();
        e.counts_trips = false;
        dynasm!(e.ops; .arch x64
            ; push rbx; push rbp; push r12; push r13; push r14; push r15; push rdi
            ; lea rbp, [rdi + BASE]
            ; mov r15, QWORD BUDGET as i64);
        for (n, (_, host)) in PINS.into_iter().enumerate() {
            dynasm!(e.ops; .arch x64; mov Rq(host), [rbp + (HOSTS_AT + 8 * n) as i32 - BASE]);
        }
        // What no emitter may count on.
        dynasm!(e.ops; .arch x64; mov rax, QWORD -0x1234_5678_9abc; mov rcx, rax; mov rdx, rax);
        emit(e);
        for (n, (_, host)) in PINS.into_iter().enumerate() {
            dynasm!(e.ops; .arch x64; mov [rbp + (HOSTS_AT + 8 * n) as i32 - BASE], Rq(host));
        }
        dynasm!(e.ops; .arch x64
            ; mov [rbp + super::offsets::BUDGET], r15
            ; pop rdi; pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx
            ; ret);
        e.ops.finish();
        let code = e.ops.code();
        let at = self.cache.reserve(code.len()).unwrap_or_else(|| {
            // Nothing that was made before is run again.
            self.cache.next_chunk(false);
            self.cache.restart_chunk();
            self.cache.reserve(code.len()).expect("a chunk is larger")
        });
        self.cache.write(at, code);
        self.cache.address(at)
    }

    fn run(&self, code: *const u8, state: &mut State) {
        // SAFETY: the code was made by `make`, of this signature; it touches the state, which is as large as it says, and keeps
        // what a caller relies on. It is the newest of the cache, so no other was written over it.
        unsafe {
            let enter = std::mem::transmute::<*const u8, unsafe extern "C" fn(*mut u64)>(code);
            enter(state.0.as_mut_ptr());
        }
    }
}

/// Emits something of `rd`, `a` and `b`.
type Emit = Box<dyn Fn(&mut Emitter, u8, u8, u8)>;

/// What is emitted, and what it has.
struct Subject {
    name: String,
    /// Bits of the result that count.
    counts: u64,
    /// Does it have an `a`, a `b`, and a result?
    has: [bool; 3],
    /// Does `a` hold an address?
    address: bool,
    emit: Emit,
}

impl Subject {
    fn of(kind: Kind, imm: i64, [rd, a, b]: [bool; 3]) -> Subject {
        Subject {
            name: format!("{kind:?} {imm:#x}"),
            counts: if kind == Kind::NarrowRotate { u64::from(u32::MAX) } else { u64::MAX },
            has: [rd, a, b],
            address: matches!(kind, Kind::LoadFast(..) | Kind::StoreFast(_)),
            emit: Box::new(move |e, rd, a, b| e.op(&Ir { kind, rd, a, b, site: 0, imm })),
        }
    }
}

const ALL: [Alu; 28] = {
    use Alu::*;
    [
        Add, Sub, Xor, Or, And, Sll, Srl, Sra, Slt, Sltu, AddW, SubW, SllW, SrlW, SraW, Mul, Mulh, Mulhsu, Mulhu, MulW,
        Div, Divu, Rem, Remu, DivW, DivuW, RemW, RemuW,
    ]
};

fn subjects() -> Vec<Subject> {
    const ALL_THREE: [bool; 3] = [true; 3];
    const ONE: [bool; 3] = [true, true, false];
    let mut all: Vec<Subject> = ALL.into_iter().map(|op| Subject::of(Kind::Reg(op), 0, ALL_THREE)).collect();
    for op in &ALL[..15] {
        let immediates: &[i64] = match op {
            Alu::Sub | Alu::SubW => continue,
            Alu::Sll | Alu::Srl | Alu::Sra => &[1, 31, 32, 63],
            Alu::SllW | Alu::SrlW | Alu::SraW => &[0, 1, 31],
            _ => &[0, 1, -1, 127, 128, 255, 2047, -2048],
        };
        all.extend(immediates.iter().map(|&imm| Subject::of(Kind::Imm(*op), imm, ONE)));
    }
    for n in [1, 7, 31] {
        all.push(Subject::of(Kind::NarrowRotate, n, ONE));
    }
    for &op in Bits::ALL {
        let two = op.operands() == Operands::Two;
        let immediates: &[i64] = if op.operands() == Operands::Immediate { &[1, 31, 63] } else { &[0] };
        all.extend(immediates.iter().map(|&imm| Subject::of(Kind::Bits(op), imm, [true, true, two])));
    }
    for imm in [0, 1, -1, i64::from(i32::MAX), 1 << 31, u32::MAX.into(), 1 << 32, i64::MIN] {
        all.push(Subject::of(Kind::Li, imm, [true, false, false]));
    }
    all.push(Subject::of(Kind::Mov, 0, ONE));
    all.push(Subject::of(Kind::ReadState, BUFFER_AT as i64, [true, false, false]));
    for low in [0, 1] {
        let imm = BUFFER_AT as i64;
        all.push(Subject {
            name: format!("SwapState {low}"),
            emit: Box::new(move |e, rd, a, _| e.op(&Ir { kind: Kind::SwapState, rd, a, b: low, site: 0, imm })),
            ..Subject::of(Kind::SwapState, imm, ONE)
        });
    }
    for mem in [0, 1, 2, 3, 4, 5, 6] {
        for imm in [0, -8, 24] {
            all.push(Subject::of(Kind::LoadFast(MemOp(mem), 0), imm, ONE));
            if mem < 4 {
                all.push(Subject::of(Kind::StoreFast(MemOp(mem)), imm, [false, true, true]));
            }
        }
    }
    all
}

/// The state behind it, in this order: the result, the limit, the budget, what lies in memory.
fn outcome(state: &mut State, rd: Option<u8>, counts: u64) -> Vec<u64> {
    let result = rd.map_or(0, |rd| *state.at(rd) & counts);
    let limit = state.0[(LIMIT + BASE) as usize / 8];
    let budget = state.0[offset_of!(Context, budget) / 8];
    [&[result, limit, budget], &state.0[BUFFER_AT / 8..]].concat()
}

/// Runs it in every way, with these operands.
fn try_all(bench: &mut Bench, subject: &Subject, operands: &[(u64, u64)]) {
    let [rd, a, b] = subject.has;
    let none = [0].as_slice();
    let with_zero: Vec<u8> = [0].into_iter().chain(PLACES).collect();
    let all_a: &[u8] = if subject.address { &PLACES } else { &with_zero };
    // Where all are apart, in host registers.
    let plain = bench.make(|e| {
        (subject.emit)(e, if rd { HOST + 4 } else { 0 }, if a { HOST + 5 } else { 0 }, if b { HOST + 6 } else { 0 });
    });
    let mut wanted = Vec::new();
    let operand = |state: &State, a: u64| if subject.address { state.buffer() } else { a };
    for &(x, y) in operands {
        // With one for both, and with zeros, too.
        for (x, y, same) in [(x, y, 0), (x, x, 1), (0, y, 2), (x, 0, 3), (0, 0, 4)] {
            let mut state = State::new(9);
            *state.at(HOST + 5) = operand(&state, x);
            *state.at(HOST + 6) = if same == 1 { operand(&state, x) } else { y };
            bench.run(plain, &mut state);
            wanted.push(outcome(&mut state, rd.then_some(HOST + 4), subject.counts));
        }
    }
    for &at_a in if a { all_a } else { none } {
        for &at_b in if b { with_zero.as_slice() } else { none } {
            for &at_rd in if rd { PLACES.as_slice() } else { none } {
                let code = bench.make(|e| (subject.emit)(e, at_rd, at_a, at_b));
                for (n, &(x, y)) in operands.iter().enumerate() {
                    let mut state = State::new(9);
                    for (at, value, has) in [(at_b, y, b), (at_a, operand(&state, x), a)] {
                        if has && at != 0 {
                            *state.at(at) = value;
                        }
                    }
                    let before = state.0.clone();
                    bench.run(code, &mut state);
                    let way = match (a && at_a == 0, b && at_b == 0) {
                        (true, true) => 4,
                        (true, false) => 2,
                        (false, true) => 3,
                        (false, false) => usize::from(a && b && at_a == at_b),
                    };
                    let want = &wanted[5 * n + way];
                    let got = outcome(&mut state, rd.then_some(at_rd), subject.counts);
                    let told = || format!("{}: rd {at_rd}, a {at_a}, b {at_b}, of {x:#x} and {y:#x}", subject.name);
                    // An address is none of the values: what was stored may differ by it.
                    assert!(
                        got == *want || subject.address && b && at_a == at_b,
                        "{}: {got:x?}, not {want:x?}",
                        told()
                    );
                    for id in (0..32).chain(HOST..HOST + PINS.len() as u8).filter(|&id| !rd || id != at_rd) {
                        let word = if id < HOST { usize::from(id) } else { HOSTS_AT / 8 + usize::from(id - HOST) };
                        assert_eq!(state.0[word], before[word], "{}: {id} was written", told());
                    }
                }
            }
        }
    }
}

fn operands() -> Vec<(u64, u64)> {
    let mut rng = Rng::new(4);
    let mut all = vec![(0x8000_0001, 33), (u64::MAX, 1 << 63), (1 << 63, u64::MAX)];
    all.extend([(); 3].map(|()| (rng.bits(), rng.bits())));
    all
}

fn flags() -> [JitFlags; 2] {
    let mut without = JitFlags::default();
    for name in ["bmi2", "popcnt"] {
        assert!(without.set(name, false));
    }
    [JitFlags::default(), without]
}

#[test]
fn a_rotation_of_32_bits_whose_value_lives_in_memory_is_written_home() {
    for flags in flags() {
        let mut bench = Bench::new(flags);
        for a in [5, 6, HOST + 1] {
            let code = bench.make(|e| e.op(&Ir { kind: Kind::NarrowRotate, rd: 5, a, b: 0, site: 0, imm: 8 }));
            let mut state = State::new(1);
            *state.at(a) = 0xffff_ffff_1234_5678;
            bench.run(code, &mut state);
            assert_eq!(*state.at(5) as u32, 0x7812_3456, "of {a}");
        }
    }
}

#[test]
fn an_op_computes_the_same_wherever_its_registers_live() {
    let (subjects, operands) = (subjects(), operands());
    assert!(subjects.len() > 150, "{}", subjects.len());
    for flags in flags() {
        let mut bench = Bench::new(flags);
        for subject in &subjects {
            try_all(&mut bench, subject, &operands);
        }
    }
}

/// The index of a load that was checked is no address.
#[test]
fn a_load_with_an_index_finds_its_bytes_wherever_its_registers_live() {
    let mut bench = Bench::new(JitFlags::default());
    for (shift, index) in (0..4u8).flat_map(|shift| [-2i64, 1, 5].map(|index| (shift, index))) {
        for mem in [0, 1, 2, 3, 4, 5, 6].map(MemOp) {
            for rd in [0].into_iter().chain(PLACES) {
                for (a, b) in PLACES.iter().flat_map(|&a| PLACES.map(|b| (a, b))).filter(|(a, b)| a != b) {
                    let ir = Ir { kind: Kind::LoadFast(mem, shift), rd, a, b, site: 0, imm: 16 };
                    let code = bench.make(|e| e.op(&ir));
                    let mut state = State::new(2);
                    *state.at(b) = index as u64;
                    *state.at(a) = state.buffer();
                    bench.run(code, &mut state);
                    let at = (BUFFER_AT as i64 + 128 + 16 + (index << shift)) as usize;
                    let bytes: Vec<u8> = state.0.iter().flat_map(|word| word.to_le_bytes()).skip(at).take(8).collect();
                    let low = u64::from_le_bytes(bytes.try_into().unwrap());
                    let up = 64 - 8 * mem.bytes();
                    let want = if mem.signed() { ((low << up) as i64 >> up) as u64 } else { low << up >> up };
                    assert_eq!(*state.at(rd), if rd == 0 { 0 } else { want }, "{ir:?}");
                }
            }
        }
    }
}

#[test]
fn turns_are_counted_and_compared_alike_wherever_clock_and_bound_live() {
    let mut operands = operands();
    operands.extend([(0, 100), (100, 0), (7, 7), (5, 0x7fff_fff0), (u64::MAX - 3, 9), (0x7fff_ffff, 0x8000_0010)]);
    let mut subjects = Vec::new();
    let subject =
        |name: String, rd, emit| Subject { name, counts: u64::MAX, has: [rd, true, true], address: false, emit };
    for cond in [Cond::Ne, Cond::Lt, Cond::Ge, Cond::Ltu, Cond::Geu] {
        for step in [1, -1, 3, 8, -24] {
            for word in [false, true] {
                let count: Emit = Box::new(move |e, _, clock, bound| {
                    let (end, cold) = (e.ops.new_label(), e.ops.new_label());
                    e.count_turns(&Turns { clock, step, bound, cond, word, insns: 7 }, None, cold);
                    dynasm!(e.ops; .arch x64; jmp =>end; =>cold; mov QWORD [rbp + LIMIT], -1; =>end);
                });
                subjects.push(subject(format!("{cond:?} {step} {word}"), false, count));
            }
        }
    }
    for word in [false, true] {
        let compare: Emit = Box::new(move |e, rd, a, b| {
            e.compare_integers(a, b, word);
            // Below, less and equal; the other flags are not asked for.
            dynasm!(e.ops; .arch x64
                ; setb al; setl cl; sete dl
                ; movzx eax, al; movzx ecx, cl; movzx edx, dl
                ; lea eax, [rax + 2 * rcx]; lea eax, [rax + 4 * rdx]);
            e.put(rd, RAX);
        });
        subjects.push(subject(format!("compare {word}"), true, compare));
    }
    let mut bench = Bench::new(JitFlags::default());
    for subject in &subjects {
        try_all(&mut bench, subject, &operands);
    }
}
