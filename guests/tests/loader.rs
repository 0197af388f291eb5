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
fn each_bad_field_is_named_with_its_place() {
    type Spoil = fn(&mut Vec<u8>);
    let cases: &[(&str, Spoil)] = &[
        ("not an ELF file", |f| f[0] = b'#'),
        ("not an ELF file: it is empty", |f| f.clear()),
        ("not an ELF file: it is gzip-compressed", |f| f[..2].copy_from_slice(&[0x1f, 0x8b])),
        ("not an ELF file", |f| f.truncate(3)),
        ("e_ident", |f| f.truncate(10)),
        ("e_ident[EI_CLASS] at offset 0x4 is 1 (ELF32)", |f| f[4] = 1),
        ("e_ident[EI_DATA] at offset 0x5 is 2 (big-endian)", |f| f[5] = 2),
        ("e_ident[EI_VERSION] at offset 0x6", |f| f[6] = 9),
        ("e_type at offset 0x10 is 1 (relocatable: link it first)", |f| f[0x10] = 1),
        ("e_type at offset 0x10 is 4 (core dump)", |f| f[0x10] = 4),
        ("e_machine at offset 0x12 is 62 (x86-64)", |f| put(f, 0x12, &[62, 0])),
        ("e_machine at offset 0x12 is 40 (ARM)", |f| (f[4], f[0x12]) = (1, 40)),
        ("e_machine at offset 0x12 is 8 (MIPS)", |f| {
            f[5] = 2;
            put(f, 0x12, &[0, 8])
        }),
        ("e_version at offset 0x14", |f| f[0x14] = 0),
        ("e_entry at offset 0x18 is 0x80000001", |f| f[0x18] = 1),
        ("e_entry 0x1000 at offset 0x18 is outside RAM", |f| put(f, 0x18, &0x1000u64.to_le_bytes())),
        ("program header 0", |f| put(f, 0x20, &u64::MAX.to_le_bytes())),
        ("e_phentsize at offset 0x36 is 1", |f| put(f, 0x36, &[1, 0])),
        ("PT_LOAD", |f| put(f, 0x38, &[0, 0])),
        ("segment 0: p_paddr 0x40000000", |f| put(f, 64 + 24, &0x4000_0000u64.to_le_bytes())),
        ("segment 0: p_paddr 0xffffffffffffffff", |f| put(f, 64 + 24, &u64::MAX.to_le_bytes())),
        ("segment 0: p_paddr 0x80000000 + p_memsz 0xffffffffffffffff", |f| put(f, 64 + 40, &u64::MAX.to_le_bytes())),
        ("p_memsz of program header 0 at offset 0x68", |f| put(f, 64 + 40, &1u64.to_le_bytes())),
        ("truncated: segment 0", |f| put(f, 64 + 8, &0xffff_fff0u64.to_le_bytes())),
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

fn warnings(file: &[u8]) -> Vec<String> {
    elf::parse(file, WINDOW).expect("a file that runs").warnings
}

#[test]
fn a_file_that_asks_for_what_the_hart_lacks_is_loaded_with_one_warning() {
    assert!(warnings(&good().bytes()).is_empty());
    for (arch, flags, named) in [
        ("rv64imac_v1p0", 1, "V"),
        ("rv64imac_zvbb1p0_xthead1p0", 1, "Zvbb, Xthead"),
        ("rv32imac", 1, "the base of rv32imac"),
        ("rv64imac", 7, "Q"),
    ] {
        let mut elf = good();
        (elf.arch, elf.flags) = (Some(arch), flags);
        let warnings = warnings(&elf.bytes());
        let [line] = warnings.as_slice() else { panic!("{arch}: {warnings:?}") };
        assert!(line.contains(&format!("asks for {named}, ")), "{arch}: {line}");
    }
}

#[test]
fn attributes_and_sections_that_are_gone_or_damaged_refuse_no_file() {
    let mut without = good();
    without.arch = None;
    assert!(warnings(&without.bytes()).is_empty());
    // The section's first byte, its length, its text: nothing to be read from it.
    let file = good().bytes();
    let at = file.windows(6).position(|w| w == b"riscv\0").expect("attributes") - 5;
    for spoilt in [at, at + 4, at + 20] {
        let mut file = file.clone();
        file[spoilt] ^= 0xff;
        elf::parse(&file, WINDOW).expect("a file that runs");
    }
    // Section headers stripped, and section headers that lie elsewhere.
    let mut stripped = file.clone();
    put(&mut stripped, 0x28, &[0; 8]);
    put(&mut stripped, 0x3c, &[0; 4]);
    assert!(warnings(&stripped).is_empty());
    for (field, value) in [(0x28, u64::MAX), (0x28, 1 << 40)] {
        let mut file = file.clone();
        put(&mut file, field, &value.to_le_bytes());
        assert!(warnings(&file)[0].contains("sections"), "{:?}", warnings(&file));
    }
}

#[test]
fn a_file_cut_anywhere_is_refused_as_long_as_something_to_run_is_missing() {
    let file = good().bytes();
    let needed = 64 + 56 + good().segments[0].2.len();
    for cut in 0..file.len() {
        match elf::parse(&file[..cut], WINDOW) {
            Err(ElfError::Magic { .. } | ElfError::Truncated { .. }) if cut < needed => {}
            Ok(elf) if cut >= needed => assert_eq!(elf.warnings.len(), 1, "cut at {cut:#x}"),
            other => panic!("cut at {cut:#x}: {:?}", other.map(|elf| elf.warnings)),
        }
    }
}

#[test]
fn headers_that_a_linker_put_before_ram_are_left_out() {
    // As `ld -Ttext=0x80000000` does it: one segment from the header on, a page before the text.
    let mut file = good().bytes();
    let code = basic::exit_with(7).bytes;
    file.resize(0x1000, 0);
    file.extend(&code);
    let at = 64;
    put(&mut file, 0x28, &[0; 8]);
    put(&mut file, 64 + 56, &[0; 0x1000 - 64 - 56]);
    put(&mut file, at + 8, &0u64.to_le_bytes());
    put(&mut file, at + 16, &(RAM_BASE - 0x1000).to_le_bytes());
    put(&mut file, at + 24, &(RAM_BASE - 0x1000).to_le_bytes());
    for size in [32, 40] {
        put(&mut file, at + size, &(0x1000 + code.len() as u64).to_le_bytes());
    }
    let mut machine = build(file.clone()).expect("only headers are outside RAM");
    let exit = machine.run(&RunLimits { max_insns: Some(10_000), deadline: None });
    assert_eq!(exit, MachineExit::Guest(GuestExit { code: 7, by: ExitBy::Finisher }));
    // One byte of something else there, and it is a program for other RAM.
    file[0x800] = 1;
    let error = build(file).err().expect("not all of it is headers").to_string();
    assert!(error.contains("segment 0: p_paddr 0x7ffff000"), "{error}");
}

#[test]
fn ten_thousand_symbols_may_share_one_name_of_a_megabyte() {
    let mut elf = good();
    elf.symbols = (0..10_000).map(|n| ("", RAM_BASE + 0x2000 + 4 * n, 4)).collect();
    let mut file = elf.bytes();
    // The string table moves to the end of the file, and every symbol's name with it.
    let table = u64::from_le_bytes(file[0x28..0x30].try_into().unwrap()) as usize;
    let section = |n: usize| table + 64 * n;
    let field = |file: &[u8], at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap()) as usize;
    let (symtab, strtab) = (section(3), section(4));
    let (rows, names) = (field(&file, symtab + 24), file.len());
    for n in 0..=10_000 {
        put(&mut file, rows + 24 * n, &1u32.to_le_bytes());
    }
    file.push(0);
    file.resize(names + 1 + (1 << 20), b'a');
    file.push(0);
    let len = file.len() - names;
    put(&mut file, strtab + 24, &(names as u64).to_le_bytes());
    put(&mut file, strtab + 32, &(len as u64).to_le_bytes());
    let start = std::time::Instant::now();
    let machine = build(file).expect("a good file");
    assert!(start.elapsed().as_secs() < 20, "its names are copied or searched again and again");
    let name = machine.symbol(RAM_BASE + 0x2000 + 4 * 77 + 2).expect("a symbol");
    assert!(name.starts_with("aaaa") && name.ends_with("...+0x2") && name.len() < 2000);
}

#[test]
fn thousands_of_symbol_tables_may_claim_the_same_bytes() {
    let file = good().bytes();
    let table = u64::from_le_bytes(file[0x28..0x30].try_into().unwrap()) as usize;
    // Section 3 is the symbol table, 4 has its names: all others are the same table once more.
    let (row, names, count) = (table + 64 * 3, table + 64 * 4, 8_000);
    let mut many = file.clone();
    many.resize(table + 64 * count, 0);
    for n in 5..count {
        many.copy_within(row..row + 64, table + 64 * n);
    }
    put(&mut many, 0x3c, &(count as u16).to_le_bytes());
    // The names become a part of the file that is as large as the sections.
    let strings = u64::from_le_bytes(file[names + 24..][..8].try_into().unwrap());
    let all = many.len() as u64 - strings;
    put(&mut many, names + 32, &all.to_le_bytes());
    let start = std::time::Instant::now();
    let elf = elf::parse(&many, WINDOW).expect("a good file");
    assert!(start.elapsed().as_secs() < 5, "its names are copied again and again");
    assert_eq!(elf.symbols.address("start"), Some(RAM_BASE));
    assert_eq!(elf.symbols.len(), elf::parse(&file, WINDOW).unwrap().symbols.len(), "each once");
}

#[test]
fn thousands_of_segments_over_the_same_ram_are_refused_and_a_few_are_not() {
    let mut elf = good();
    // Its end may be another's, its start too: all in all no more than there is RAM.
    elf.segments.extend([(RAM_BASE, RAM_BASE, vec![0x13; 64], RAM / 2), (RAM_BASE, RAM_BASE, vec![], RAM / 2 - 4096)]);
    let file = elf.bytes();
    assert_eq!(elf::parse(&file, WINDOW).expect("they fit").segments.len(), 3);
    elf.segments.resize(5000, (RAM_BASE, RAM_BASE, vec![], RAM));
    match elf::parse(&elf.bytes(), WINDOW) {
        Err(ElfError::Field { field, found, .. }) => {
            assert!(field.starts_with("p_memsz of program header"), "{field}");
            assert!(found.contains("in all"), "{found}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn more_sections_and_segments_than_their_16_bit_fields_can_count_are_read() {
    let file = good().bytes();
    let table = u64::from_le_bytes(file[0x28..0x30].try_into().unwrap()) as usize;
    let mut many = file.clone();
    many.resize(table + 64 * 0x1_0005, 0);
    // Section 0 has the numbers: of sections in sh_size, of program headers in sh_info.
    put(&mut many, 0x3c, &[0, 0]);
    put(&mut many, table + 32, &0x1_0005u64.to_le_bytes());
    put(&mut many, 0x38, &0xffffu16.to_le_bytes());
    put(&mut many, table + 44, &1u32.to_le_bytes());
    let elf = elf::parse(&many, WINDOW).expect("a good file");
    assert_eq!((elf.segments.len(), elf.warnings.len()), (1, 0));
    assert_eq!(elf.symbols.address("start"), Some(RAM_BASE));
}

#[test]
fn absolute_symbols_are_found_by_name_and_name_no_code() {
    let mut elf = good();
    elf.symbols = vec![("start", RAM_BASE, 0), ("stack_size", RAM_BASE + 4, 0), ("late", RAM_BASE + 8, 0)];
    let mut file = elf.bytes();
    let table = u64::from_le_bytes(file[0x28..0x30].try_into().unwrap()) as usize;
    let rows = u64::from_le_bytes(file[table + 64 * 3 + 24..][..8].try_into().unwrap()) as usize;
    put(&mut file, rows + 24 * 2 + 6, &0xfff1u16.to_le_bytes());
    // The number of a section beyond 0xff00 is elsewhere, and it is a section.
    put(&mut file, rows + 24 * 3 + 6, &0xffffu16.to_le_bytes());
    let symbols = elf::parse(&file, WINDOW).expect("a good file").symbols;
    assert_eq!(symbols.resolve(RAM_BASE + 4).as_deref(), Some("start+0x4"));
    assert_eq!(symbols.resolve(RAM_BASE + 8).as_deref(), Some("late"));
    assert_eq!(symbols.address("stack_size"), Some(RAM_BASE + 4));
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
    // A sparse file of a terabyte: nothing of it is read that RAM would not hold, nor that is no program.
    std::fs::File::options().write(true).open(&file).and_then(|f| f.set_len(1 << 40)).expect("a sparse file");
    assert!(load(raw(RAM_BASE)).expect_err("it does not fit").to_string().contains("0x10000000000 bytes"));
    for program in [Program::File(file.clone()), Program::Elf(file.clone())] {
        assert!(load(program).expect_err("zeroes").to_string().contains("not an ELF file"));
    }
    std::fs::remove_dir_all(&dir).expect("the directory");
}

#[test]
fn intel_hex_and_s_records_are_loaded_and_run() {
    let dir = std::env::temp_dir().join(format!("notdirty-loader-hex-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let code = basic::exit_with(9).bytes;
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    let line = |start: &str, bytes: Vec<u8>, last: u8| {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
        format!("{start}{digits}{last:02X}\n")
    };
    let intel = |bytes: Vec<u8>| {
        let last = sum(&bytes).wrapping_neg();
        line(":", bytes, last)
    };
    let motorola = |kind: &str, rest: Vec<u8>| {
        let bytes = [vec![rest.len() as u8 + 1], rest].concat();
        let last = !sum(&bytes);
        line(kind, bytes, last)
    };
    let mut hex = intel(vec![2, 0, 0, 4, 0x80, 0]);
    let mut srec = motorola("S0", b"\0\0demo\xff".to_vec());
    for (n, part) in code.chunks(16).enumerate() {
        let at = 16 * n as u32;
        hex += &intel([vec![part.len() as u8, (at >> 8) as u8, at as u8, 0], part.to_vec()].concat());
        srec += &motorola("S3", [(RAM_BASE as u32 + at).to_be_bytes().to_vec(), part.to_vec()].concat());
    }
    hex += ":00000001FF\n";
    srec += &motorola("S7", (RAM_BASE as u32).to_be_bytes().to_vec());
    for (name, text) in [("guest.hex", hex), ("guest.srec", srec)] {
        let file = dir.join(name);
        std::fs::write(&file, &text).expect("a file");
        let mut machine = Machine::builder().ram_size(RAM).program(Program::File(file.clone())).build().expect(name);
        let exit = machine.run(&RunLimits { max_insns: Some(10_000), deadline: None });
        assert_eq!(exit, MachineExit::Guest(GuestExit { code: 9, by: ExitBy::Finisher }), "{name}");
        // A wrong digit is found by its line.
        let spoilt = text.replacen('9', "8", 1);
        std::fs::write(&file, &spoilt).expect("a file");
        let error = Machine::builder().ram_size(RAM).program(Program::File(file)).build().err().expect(name);
        assert!(error.to_string().contains(&format!("{name}: line ")), "{error}");
    }
    std::fs::remove_dir_all(&dir).expect("the directory");
}
