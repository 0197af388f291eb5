//! Parsers of streams, files and channels take any bytes: no panic, and no allocation that the input's length does not pay for.
#![cfg(not(any(loom, miri)))]

use notdirty_core::migration::fuzz;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The largest allocation since the last look.
static LARGEST: AtomicUsize = AtomicUsize::new(0);

struct Watched;

// SAFETY: all of it is the system's.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: by the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: by the caller.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 11) as usize % end.max(1)
    }
}

/// One or several changes of a whole input, most of them where it has its numbers and names.
fn spoil(whole: &[u8], interesting: &[std::ops::Range<usize>], random: &mut Random) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for _ in 0..1 + random.below(4) {
        let part = &interesting[random.below(interesting.len())];
        let at = (part.start + random.below(part.len())).min(bytes.len().saturating_sub(1));
        match random.below(8) {
            0 | 1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            3 => {
                let word = [0u64, 1, 0xffff_ffff, u64::MAX, 1 << 63, 0x1000, 0x10_0000][random.below(7)].to_be_bytes();
                let end = bytes.len().min(at + 8);
                bytes[at..end].copy_from_slice(&word[..end - at]);
            }
            4 => bytes.truncate(at),
            5 => {
                drop(bytes.drain(at..(at + 1 + random.below(16)).min(whole.len().min(at + 16)).min(at.max(1)).max(at)))
            }
            6 => bytes.insert(at, random.next() as u8),
            _ => {
                let from = random.below(bytes.len());
                let len = random.below(64).min(bytes.len() - from.max(at));
                bytes.copy_within(from..from + len, at);
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

/// A parser, a whole input, and where that has its numbers.
type Target<'t> = (&'t str, fn(&[u8]) -> bool, &'t [u8], Vec<std::ops::Range<usize>>);

/// One after the other: the allocations of all threads are watched.
#[test]
fn no_input_makes_a_parser_panic_or_take_memory_that_is_not_paid_for() {
    let count: u64 = std::env::var("NOTDIRTY_STREAMS").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    let (stream, mapped, channel) = (fuzz::a_stream().unwrap(), fuzz::a_mapped_file().unwrap(), fuzz::a_channel());
    let (answers, commands) = (fuzz::a_return_path(), fuzz::some_commands());
    assert!(fuzz::stream(&stream) && fuzz::mapped(&mapped) && fuzz::channel(&channel));
    assert!(fuzz::answers(&answers) && fuzz::commands(&commands));
    // Beside pages, which may be anything.
    let find = |bytes: &[u8], text: &[u8]| bytes.windows(text.len()).position(|window| window == text).unwrap();
    let (cpu, cpu_mapped) = (find(&stream, b"\x03cpu"), find(&mapped, b"\x03cpu"));
    let json = |bytes: &[u8]| find(bytes, b"{\"configuration\"") - 6;
    let targets: [Target<'_>; 5] = [
        ("stream", fuzz::stream, &stream, vec![0..300, 0..stream.len(), cpu - 20..json(&stream) + 8]),
        ("mapped-ram", fuzz::mapped, &mapped, vec![0..300, 0..300, cpu_mapped - 20..json(&mapped) + 8]),
        ("multifd", fuzz::channel, &channel, vec![0..400, 0..64, channel.len() - 1344..channel.len()]),
        ("answers", fuzz::answers, &answers, vec![0..8, 0..answers.len()]),
        ("commands", fuzz::commands, &commands, vec![0..8, 0..commands.len()]),
    ];
    for (name, parse, whole, interesting) in targets {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        // A file of some MiB is made for each input.
        let count = if name == "mapped-ram" { count / 10 } else { count };
        let mut taken = 0u64;
        for n in 0..count {
            let input = spoil(whole, &interesting, &mut random);
            LARGEST.store(0, Ordering::Relaxed);
            taken += u64::from(parse(&input));
            let largest = LARGEST.load(Ordering::Relaxed);
            // The file is made as long as that, by a hole.
            let paid = if name == "mapped-ram" { input.len().max(3 << 20) } else { input.len() };
            assert!(largest <= (512 << 10) + 4 * paid, "{name} {n}: {largest:#x} bytes for {paid}");
        }
        println!("{name}: {count} inputs, {taken} of them whole");
        assert!(taken < count, "{name}");
    }
}
