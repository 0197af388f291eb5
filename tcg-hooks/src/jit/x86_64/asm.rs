//! Where `dynasm!` puts its bytes: a buffer that is used again for each TB, and labels that are numbers.
//!
//! ```text
//!   dynasm!(asm; …) ─▶ extend / push / push_i32          bytes, in order
//!                   ─▶ dynamic_label(l)                   places[l] = here
//!                   ─▶ dynamic_reloc(l, …)                bound: the field is written; else noted in `jumps`
//!   finish ─▶ every noted field gets its distance
//! ```
//!
//! The macro calls methods by name, so none of dynasmrt's traits is needed; its own assemblers keep each jump as a
//! relocation of any kind and size, which is more than jumps inside a TB need.

/// The longest TB, with room to spare: 512 instructions, a store with its way beside code twice for each (in line and in
/// a cold cluster). `CodeCache` has chunks of at least this size.
pub(super) const CAPACITY: usize = 240 << 10;
/// Places in the buffer, a power of two: a byte's place is masked, not compared, and what would be longer than
/// `CAPACITY` is found once, at the end.
const SIZE: usize = CAPACITY.next_power_of_two();
/// The most bytes that are written at once.
const ONCE: usize = 64;

/// A few instructions that were assembled before, without labels.
pub(super) struct Template {
    bytes: [u8; ONCE],
    len: usize,
}

/// A place in the code that is being emitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label(u32);

impl Label {
    /// Number `n` of those that were made first.
    #[inline(always)]
    pub(super) fn first(n: u16) -> Label {
        Label(n.into())
    }
}

const UNBOUND: u32 = u32::MAX;

/// A four-byte displacement, the last bytes of its instruction, that waits for its place: see [`Assembler::close`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hole(pub(super) u32);

/// A condition, as the host numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Flag {
    Below = 2,
    NotBelow = 3,
    Equal = 4,
    NotEqual = 5,
    Sign = 8,
    NotSign = 9,
    Parity = 10,
    Less = 12,
    NotLess = 13,
}

/// A displacement to be filled in.
#[derive(Debug, Clone, Copy)]
struct Jump {
    /// Where its field is.
    field: u32,
    /// What it counts from.
    from: u32,
    label: Label,
    /// One byte, or four.
    short: bool,
}

/// Code in the making. The bytes are in it, and not behind a pointer, so the compiler knows that to write one changes
/// neither the pointer nor the length: both stay in registers from one instruction to the next.
pub(super) struct Assembler {
    len: usize,
    places: Vec<u32>,
    jumps: Vec<Jump>,
    bytes: [u8; SIZE + ONCE],
}

impl Assembler {
    pub(super) fn new() -> Assembler {
        Assembler { len: 0, places: Vec::new(), jumps: Vec::new(), bytes: [0; SIZE + ONCE] }
    }

    /// A new one need not take memory yet: its bytes are zeroes, which are written when they are made.
    pub(super) fn give_back(&mut self) {
        let bytes = self.bytes.as_mut_ptr_range();
        let (start, end) = (bytes.start.addr().next_multiple_of(4096), bytes.end.addr() / 4096 * 4096);
        if start < end && self.len == 0 {
            // SAFETY: whole pages of our own array, of which nothing was written: they read as zeroes before and behind this, whether
            // the host takes them back or not.
            unsafe { libc::madvise(bytes.start.with_addr(start).cast(), end - start, libc::MADV_DONTNEED) };
        }
    }

    /// Empties it, keeping its memory.
    pub(super) fn clear(&mut self) {
        self.len = 0;
        self.places.clear();
        self.jumps.clear();
    }

    /// The next byte's offset.
    #[inline]
    pub(super) fn here(&self) -> u32 {
        self.len as u32
    }

    #[inline]
    pub(super) fn new_label(&mut self) -> Label {
        self.places.push(UNBOUND);
        Label(self.places.len() as u32 - 1)
    }

    /// So many labels, the first of all: see [`Label::first`].
    pub(super) fn first_labels(&mut self, count: usize) {
        debug_assert!(self.places.is_empty(), "the first of all");
        self.places.resize(count, UNBOUND);
    }

    /// Where a label is that was bound.
    pub(super) fn place(&self, label: Label) -> u32 {
        self.places[label.0 as usize]
    }

    /// `jcc`, to a place behind.
    #[inline]
    pub(super) fn jump_if(&mut self, flag: Flag) -> Hole {
        self.put(0x800f | u64::from(flag as u8) << 8, 6);
        Hole(self.len as u32 - 4)
    }

    /// `jmp`, to a place behind.
    #[inline]
    pub(super) fn jump(&mut self) -> Hole {
        self.put(0xe9, 5);
        Hole(self.len as u32 - 4)
    }

    /// `jmp`, to a place passed.
    #[inline]
    pub(super) fn jump_to(&mut self, place: u32) {
        let distance = place.wrapping_sub(self.len as u32 + 5);
        self.put(0xe9 | u64::from(distance) << 8, 5);
    }

    /// `jcc`, to a place passed.
    #[inline]
    pub(super) fn jump_back_if(&mut self, flag: Flag, place: u32) {
        let distance = place.wrapping_sub(self.len as u32 + 6);
        self.put(0x800f | u64::from(flag as u8) << 8 | u64::from(distance) << 16, 6);
    }

    /// The displacement emitted last.
    #[inline]
    pub(super) fn hole(&self) -> Hole {
        Hole(self.len as u32 - 4)
    }

    /// It leads here.
    #[inline]
    pub(super) fn close(&mut self, Hole(field): Hole) {
        self.fill(field, self.len as u32 - (field + 4));
    }

    /// It leads to a label.
    #[inline]
    pub(super) fn aim(&mut self, Hole(field): Hole, label: Label) {
        self.reach(Jump { field, from: field + 4, label, short: false });
    }

    /// What was emitted, to be emitted again.
    pub(super) fn to_template(&self) -> Template {
        self.part(0, self.len)
    }

    /// A part of it. Short jumps out of it are right if what is between is emitted as it was.
    pub(super) fn part(&self, from: usize, to: usize) -> Template {
        let mut bytes = [0; ONCE];
        bytes[..to - from].copy_from_slice(&self.code()[from..to]);
        Template { bytes, len: to - from }
    }

    /// All of its bytes are written, and those that it has are counted.
    #[inline]
    pub(super) fn template(&mut self, template: &Template) {
        let at = self.len % SIZE;
        self.bytes[at..at + ONCE].copy_from_slice(&template.bytes);
        self.len += template.len;
    }

    /// Fills in what is left.
    pub(super) fn finish(&mut self) {
        assert!(self.len <= CAPACITY, "a TB is not longer than the longest");
        for n in 0..self.jumps.len() {
            self.land(self.jumps[n]);
        }
        self.jumps.clear();
    }

    /// Fills up to an offset with traps.
    pub(super) fn skip_to(&mut self, to: usize) {
        self.bytes[self.len..to].fill(0xcc);
        self.len = to;
    }

    /// The lowest bytes of two words: sixteen are written, and so many counted.
    #[inline(always)]
    pub(super) fn put_two(&mut self, words: [u64; 2], len: usize) {
        debug_assert!(len <= 16, "two words have sixteen bytes");
        let at = self.len % SIZE;
        self.bytes[at..at + 8].copy_from_slice(&words[0].to_le_bytes());
        self.bytes[at + 8..at + 16].copy_from_slice(&words[1].to_le_bytes());
        self.len += len;
    }

    /// The lowest bytes of a word: eight are written, and so many counted.
    #[inline(always)]
    pub(super) fn put(&mut self, word: u64, len: usize) {
        debug_assert!(len <= 8, "a word has eight bytes");
        let at = self.len % SIZE;
        self.bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        self.len += len;
    }

    /// The code as it stands.
    pub(super) fn code(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The same, to fill in what depends on its place.
    pub(super) fn code_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }

    #[inline]
    fn fill(&mut self, field: u32, distance: u32) {
        let field = field as usize % SIZE;
        self.bytes[field..field + 4].copy_from_slice(&distance.to_le_bytes());
    }

    /// Now, or when its label is bound.
    #[inline]
    fn reach(&mut self, jump: Jump) {
        if self.places[jump.label.0 as usize] == UNBOUND {
            self.jumps.push(jump);
        } else {
            self.land(jump);
        }
    }

    fn land(&mut self, Jump { field, from, label, short }: Jump) {
        let place = self.places[label.0 as usize];
        debug_assert_ne!(place, UNBOUND, "every label that is jumped to is bound");
        let distance = place.wrapping_sub(from);
        if short {
            debug_assert!(i8::try_from(distance as i32).is_ok(), "a short jump is short");
            self.bytes[field as usize % SIZE] = distance as u8;
        } else {
            self.fill(field, distance);
        }
    }
}

/// What `dynasm!` expands to.
impl Assembler {
    #[inline(always)]
    pub(super) fn extend<const N: usize>(&mut self, bytes: &[u8; N]) {
        const { assert!(N <= ONCE) };
        let at = self.len % SIZE;
        self.bytes[at..at + N].copy_from_slice(bytes);
        self.len += N;
    }

    #[inline(always)]
    pub(super) fn push(&mut self, byte: u8) {
        self.bytes[self.len % SIZE] = byte;
        self.len += 1;
    }

    #[inline(always)]
    pub(super) fn push_i8(&mut self, value: i8) {
        self.push(value as u8);
    }

    #[inline(always)]
    pub(super) fn push_i16(&mut self, value: i16) {
        self.extend(&value.to_le_bytes());
    }

    #[inline(always)]
    pub(super) fn push_i32(&mut self, value: i32) {
        self.extend(&value.to_le_bytes());
    }

    #[inline(always)]
    pub(super) fn push_i64(&mut self, value: i64) {
        self.extend(&value.to_le_bytes());
    }

    #[inline]
    pub(super) fn dynamic_label(&mut self, label: Label) {
        debug_assert_eq!(self.places[label.0 as usize], UNBOUND, "a label is bound once");
        self.places[label.0 as usize] = self.len as u32;
    }

    /// `field_offset` and `ref_offset` count back from here; `kind` is 0 for a byte, 2 for four.
    #[inline]
    pub(super) fn dynamic_reloc(&mut self, label: Label, _: isize, field_offset: u8, ref_offset: u8, kind: u8) {
        let here = self.len as u32;
        let jump =
            Jump { field: here - u32::from(field_offset), from: here - u32::from(ref_offset), label, short: kind == 0 };
        self.reach(jump);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dynasmrt::dynasm;

    /// Both directions, both sizes, and an address, against offsets counted by hand.
    #[test]
    fn labels_are_reached_from_before_and_behind() {
        let mut asm = Assembler::new();
        for _ in 0..2 {
            asm.clear();
            let (back, on) = (asm.new_label(), asm.new_label());
            dynasm!(asm; .arch x64
                ; =>back
                ; jmp =>on
                ; jne BYTE =>back
                ; lea rdx, [=>on]
                ; =>on
                ; jl =>back);
            asm.finish();
            assert_eq!(
                asm.code(),
                [
                    [0xe9, 9, 0, 0, 0].as_slice(),
                    &[0x75, 0xf9],
                    &[0x48, 0x8d, 0x15, 0, 0, 0, 0],
                    &[0x0f, 0x8c, 0xec, 0xff, 0xff, 0xff]
                ]
                .concat()
            );
        }
    }

    #[test]
    fn a_hole_leads_where_it_is_closed_or_aimed() {
        let mut asm = Assembler::new();
        let label = asm.new_label();
        let (on, aimed) = (asm.jump_if(Flag::Less), asm.jump());
        asm.close(on);
        asm.jump_to(0);
        asm.dynamic_label(label);
        dynasm!(asm; .arch x64; lea rdx, [rip + 0]);
        let back = asm.hole();
        asm.aim(aimed, label);
        asm.aim(back, label);
        asm.finish();
        assert_eq!(
            asm.code(),
            [
                [0x0f, 0x8c, 5, 0, 0, 0].as_slice(),
                &[0xe9, 5, 0, 0, 0],
                &[0xe9, 0xf0, 0xff, 0xff, 0xff],
                &[0x48, 0x8d, 0x15, 0xf9, 0xff, 0xff, 0xff]
            ]
            .concat()
        );
    }

    #[test]
    #[should_panic(expected = "a TB is not longer than the longest")]
    fn code_that_is_too_long_is_found_at_the_end() {
        let mut asm = Assembler::new();
        while asm.here() as usize <= 2 * SIZE {
            let hole = asm.jump();
            asm.push(0x90);
            asm.close(hole);
        }
        asm.finish();
    }
}
