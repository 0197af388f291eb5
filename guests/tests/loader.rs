//! What a file may do to the loader: be loaded, or be refused with the field and the place. Never anything else.

mod common;

use common::{Elf, put};
use notdirty::load::elf::{self, ElfError};
use notdirty::programs::basic;
use notdirty::{BuildError, ExitBy, GuestExit, LoadError, Machine, MachineExit, Program, RAM_BASE, RunLimits};

const RAM: u64 = 1 << 20;
const WINDOW: std::ops::Range<u64> = RAM_BASE..RAM_BASE + RAM;

fn good() -> Elf {
    let mut elf = Elf::new(RAM_BASE, basic::exit_with(7).bytes);
    elf.symbols = vec![("start", RAM_BASE, 16), ("table", RAM_BASE + 0x40, 0), ("tohost", RAM_BASE + 0x1000, 8)];
    elf.arch = Some("rv64i2p1_m2p0_a2p1_c2p0_zicsr2p0_zifencei2p0");
    elf
}

fn build(bytes: Vec<u8>) -> Result<Machine, BuildError> {
    Machine::builder().ram_size(RAM).program(Program::ElfBytes("test.elf".into(), bytes)).build()
}

#[test]
fn a_good_file_is_loaded_with_its_entry_symbols_and_zeroes() {
    let mut elf = good();
    let (_, _, code, memsz) = &mut elf.segments[0];
    *memsz = code.len() as u64 + 100;
    elf.segments.push((0x4000_0000, RAM_BASE + 0x2001, vec![1, 2, 3], 3));
    let mut machine = build(elf.bytes()).expect("a good file");
    assert_eq!(machine.cpu().pc, RAM_BASE);
    assert_eq!((machine.cpu().x[10], machine.cpu().x[11]), (0, 0));
    assert_eq!(machine.symbol(RAM_BASE + 4).as_deref(), Some("start+0x4"));
    let mut bytes = [9; 5];
    machine.read(RAM_BASE + 0x2000, &mut bytes).expect("RAM is there");
    assert_eq!(bytes, [0, 1, 2, 3, 0], "by physical address, wherever it starts");
    let exit = machine.run(&RunLimits { max_insns: Some(10_000), deadline: None });
    assert_eq!(exit, MachineExit::Guest(GuestExit { code: 7, by: ExitBy::Finisher }));

    // Loaded again over memory that is no longer zero.
    let end = RAM_BASE + elf.segments[0].2.len() as u64;
    machine.write(end, &[0xff; 100]).expect("RAM is there");
    machine.load(&Program::ElfBytes("again".into(), elf.bytes())).expect("a good file");
    let mut bss = [9; 100];
    machine.read(end, &mut bss).expect("RAM is there");
    assert_eq!(bss, [0; 100]);
}

#[test]
fn a_file_linked_for_virtual_addresses_starts_where_its_code_was_put() {
    let mut elf = good();
    elf.segments[0].0 = 0xffff_ffff_8000_0000;
    elf.entry = 0xffff_ffff_8000_0004;
    assert_eq!(build(elf.bytes()).expect("a good file").cpu().pc, RAM_BASE + 4);
}

#[test]
fn a_soft_float_file_may_list_float_extensions_that_it_does_not_use() {
    let mut elf = good();
    elf.arch = Some("rv64i2p1_m2p0_a2p1_f2p2_d2p2_zicsr2p0");
    build(elf.bytes()).expect("no float instruction in it");
    // fadd.d fa0, fa0, fa1
    elf.segments[0].2.extend(0x02b5_7553u32.to_le_bytes());
    elf.segments[0].3 += 4;
    let error = build(elf.bytes()).err().expect("a float instruction in it").to_string();
    assert!(error.contains("extension D") && error.contains(".riscv.attributes"), "{error}");
}

#[test]
fn each_bad_field_is_named_with_its_place() {
    type Spoil = fn(&mut Vec<u8>);
    let cases: &[(&str, Spoil)] = &[
        ("not an ELF file", |f| f[0] = b'#'),
        ("not an ELF file", |f| f.clear()),
        ("not an ELF file", |f| f.truncate(3)),
        ("e_ident", |f| f.truncate(10)),
        ("e_ident[EI_CLASS] at offset 0x4 is 1 (ELF32)", |f| f[4] = 1),
        ("e_ident[EI_DATA] at offset 0x5 is 2 (big-endian)", |f| f[5] = 2),
        ("e_ident[EI_VERSION] at offset 0x6", |f| f[6] = 9),
        ("e_type at offset 0x10 is 1 (relocatable)", |f| f[0x10] = 1),
        ("e_type at offset 0x10 is 4 (core dump)", |f| f[0x10] = 4),
        ("e_machine at offset 0x12 is 62 (x86-64)", |f| put(f, 0x12, &[62, 0])),
        ("e_version at offset 0x14", |f| f[0x14] = 0),
        ("e_entry at offset 0x18 is 0x80000001", |f| f[0x18] = 1),
        ("e_entry 0x1000 at offset 0x18 is outside RAM", |f| put(f, 0x18, &0x1000u64.to_le_bytes())),
        ("program header 0", |f| put(f, 0x20, &u64::MAX.to_le_bytes())),
        ("e_phentsize at offset 0x36 is 1", |f| put(f, 0x36, &[1, 0])),
        ("PT_LOAD", |f| put(f, 0x38, &[0, 0])),
        ("extension F", |f| f[0x30] = 3),
        ("extension D", |f| f[0x30] = 5),
        ("extension Q", |f| f[0x30] = 7),
        ("extension RV64E", |f| f[0x30] = 9),
        ("segment 0: p_paddr 0x40000000", |f| put(f, 64 + 24, &0x4000_0000u64.to_le_bytes())),
        ("segment 0: p_paddr 0xffffffffffffffff", |f| put(f, 64 + 24, &u64::MAX.to_le_bytes())),
        ("segment 0: p_paddr 0x80000000 + p_memsz 0xffffffffffffffff", |f| put(f, 64 + 40, &u64::MAX.to_le_bytes())),
        ("p_memsz of program header 0 at offset 0x68", |f| put(f, 64 + 40, &1u64.to_le_bytes())),
        ("truncated: segment 0", |f| put(f, 64 + 8, &0xffff_fff0u64.to_le_bytes())),
        ("e_shentsize at offset 0x3a", |f| put(f, 0x3a, &[8, 0])),
        ("section header", |f| f.truncate(f.len() - 1)),
    ];
    for (named, spoil) in cases {
        let mut file = good().bytes();
        spoil(&mut file);
        let error = build(file).err().unwrap_or_else(|| panic!("{named}: was loaded"));
        assert!(matches!(error, BuildError::Load(LoadError::Elf { .. })), "{named}: {error:?}");
        let text = error.to_string();
        assert!(text.starts_with("test.elf: ") && text.contains(named), "wanted {named:?}, got {text:?}");
        assert!(!text.contains('\n'), "one line: {text}");
    }
}

#[test]
fn extensions_that_are_not_there_are_named() {
    for (arch, named) in [
        ("rv64imac_v1p0", "extension V"),
        ("rv64imac_zba1p0_zbb1p0", "extension Zba"),
        ("rv32imac", "rv32"),
        ("rv64gcv", "extension V"),
        ("rv64imac_xthead", "extension Xthead"),
    ] {
        let mut elf = good();
        elf.arch = Some(arch);
        let error = build(elf.bytes()).err().expect(arch).to_string();
        assert!(error.contains(named), "{arch}: {error}");
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let file = good().bytes();
    for cut in 0..file.len() {
        let error = elf::parse(&file[..cut], WINDOW).expect_err("it is not whole");
        let expected = matches!(error, ElfError::Magic { .. } | ElfError::Truncated { .. });
        assert!(expected, "cut at {cut:#x}: {error}");
    }
}

#[test]
fn no_flipped_bit_and_no_pair_of_them_makes_the_loader_panic() {
    let file = good().bytes();
    let mut refused = 0;
    for bit in 0..file.len() * 8 {
        let mut flipped = file.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        refused += u32::from(elf::parse(&flipped, WINDOW).is_err());
        // A second one, anywhere (a multiplicative hash of the first).
        let other = bit.wrapping_mul(0x9e37_79b9) % (file.len() * 8);
        flipped[other / 8] ^= 1 << (other % 8);
        if let Ok(elf) = elf::parse(&flipped, WINDOW) {
            assert!(WINDOW.contains(&elf.entry));
            for segment in &elf.segments {
                assert!(segment.base >= WINDOW.start && segment.base + segment.memory <= WINDOW.end);
                assert!(segment.bytes.len() as u64 <= segment.memory);
            }
        }
    }
    assert!(refused > 300, "only {refused} flips were noticed");
}

#[test]
fn random_bytes_behind_a_good_header_never_make_the_loader_panic() {
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..20_000 {
        let mut file = good().bytes();
        for _ in 0..1 + random() % 6 {
            // Fields, eight bytes at a time, with values that are small, huge, or anything.
            let at = (random() as usize % (file.len() - 8)) & !7;
            let value = match random() % 4 {
                0 => random() % 0x200,
                1 => u64::MAX - random() % 0x200,
                2 => RAM_BASE + random() % (2 * RAM),
                _ => random(),
            };
            put(&mut file, at, &value.to_le_bytes());
        }
        let _ = elf::parse(&file, WINDOW);
    }
}

#[test]
fn tohost_of_the_file_ends_the_program_it_belongs_to() {
    // lui t0, 0x80001 (sign-extended); slli, srli: zero-extended; li t1, 2 * 5 + 1; sd t1, 0(t0); j .
    let words = [0x8000_12b7u32, 0x0202_9293, 0x0202_d293, 0x00b0_0313, 0x0062_b023, 0x0000_006f];
    let mut elf = good();
    let mut code: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    code.resize(0x1010, 0);
    elf.segments[0].2 = code;
    elf.segments[0].3 = 0x1010;
    let mut machine = build(elf.bytes()).expect("a good file");
    let exit = machine.run(&RunLimits { max_insns: Some(10_000), deadline: None });
    assert_eq!(exit, MachineExit::Guest(GuestExit { code: 5, by: ExitBy::Tohost }));
}

#[test]
fn raw_images_have_to_fit_ram_too() {
    let dir = std::env::temp_dir().join(format!("notdirty-loader-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let file = dir.join("image.bin");
    let raw = |load_addr| Program::Raw { file: file.clone(), load_addr };
    let load = |program| Machine::builder().ram_size(RAM).program(program).build().map(|m| m.cpu().pc);
    std::fs::write(&file, basic::exit_with(1).bytes).expect("a file");
    assert_eq!(load(raw(RAM_BASE + 0x100)).expect("it fits"), RAM_BASE + 0x100);
    for bad in [0, RAM_BASE - 1, RAM_BASE + RAM - 4, u64::MAX] {
        let error = load(raw(bad)).expect_err("it does not fit").to_string();
        assert!(error.contains("image.bin") && error.contains("load address"), "{error}");
    }
    std::fs::write(&file, []).expect("a file");
    assert!(load(raw(RAM_BASE)).expect_err("nothing in it").to_string().contains("empty"));
    std::fs::remove_dir_all(&dir).expect("the directory");
}
