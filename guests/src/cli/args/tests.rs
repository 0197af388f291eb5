//! What words are taken for, and which are refused, with which line.

use super::*;

fn args(line: &str) -> Result<Args, String> {
    match parse(line.split_whitespace().map(OsString::from))? {
        Request::Run(args) => Ok(*args),
        Request::Print(text) => Err(format!("printed {text}")),
    }
}

#[test]
fn nothing_means_the_demo() {
    let parsed = args("").unwrap();
    assert_eq!((parsed.command, parsed.ram_size), (Command::Demo, 128 << 20));
    assert_eq!(args("--engine interp").unwrap().engine, EngineKind::Interp);
}

#[test]
fn flags_are_taken_with_one_dash_or_two_before_or_after_the_file() {
    for line in [
        "run a.elf -m 1G --max-insns 1_000 --timeout 2.5 --engine interp --clock insns --stats -d int,mmu -D log",
        "-m=1G run --max-insns=1000 --timeout=2.5 --engine=interp -clock=insns a.elf -stats -d int -d mmu -D=log",
        "--m 1024 -max-insns 0x3e8 -timeout 2.5 -engine interp -clock insns --stats -d mmu,int, -D log -- run a.elf",
    ] {
        let parsed = args(line).unwrap();
        assert_eq!(parsed.command, Command::Run("a.elf".into()), "{line}");
        assert_eq!((parsed.ram_size, parsed.max_insns), (1 << 30, Some(1000)), "{line}");
        assert_eq!(parsed.timeout, Some(Duration::from_millis(2500)), "{line}");
        assert_eq!((parsed.engine, parsed.clock, parsed.stats), (EngineKind::Interp, ClockKind::Insns, true));
        assert_eq!(parsed.trace, TraceMask::INT | TraceMask::MMU, "{line}");
        assert_eq!(parsed.trace_file, Some("log".into()), "{line}");
    }
}

#[test]
fn every_bad_flag_is_named_in_its_error() {
    for (line, named) in [
        ("run", "FILE"),
        ("walk a.elf", "walk"),
        ("replay a", "replay needs an INPUT"),
        ("replay a b", "replay needs --checkpoint-at"),
        ("run a --repeat 3", "--repeat needs --checkpoint-at"),
        ("run a --checkpoint-at main --repeat 0", "--repeat 0: at least once"),
        ("run a --checkpoint-at main --plug 1M@0x100000000:1s", "--plug changes what"),
        ("run a --turns often", "--turns often"),
        ("disas", "FILE"),
        ("disas a.elf", "symbol or address"),
        ("disas a main b", "unexpected argument b"),
        ("run a --jitdump", "--jitdump needs a value"),
        ("snapshot a -o s", "snapshot needs --at AFTER"),
        ("snapshot a --at 1s", "snapshot needs -o SNAPSHOT"),
        ("snapshot a --at soon -o s", "--at soon: must be 100ms, 2s or insns:N"),
        ("run a --at 1s", "--at is for snapshot FILE"),
        ("run a -o s", "-o is for snapshot FILE and squash SNAPSHOT"),
        ("run a --dirty-rate soon", "--dirty-rate soon: must be AFTER"),
        ("run a --dirty-rate 1s --plug 64M@0x100000000:1s", "--dirty-rate goes without"),
        ("run a --postcopy", "--postcopy needs --migrate"),
        ("run a --migrate tcp::1@1s --postcopy=soon", "--postcopy=soon: must be a number of rounds"),
        ("run a --migrate file:f@1s --postcopy", "--postcopy is for tcp: and unix:"),
        ("run a --migrate tcp::1@1s --postcopy --mapped-ram", "--postcopy and --mapped-ram exclude"),
        ("run --incoming tcp::1 --postcopy-faults kvm", "--postcopy-faults kvm: must be software or userfaultfd"),
        ("run a --postcopy-faults software", "--postcopy-faults is for run --incoming"),
        ("run a --migrate tcp::1@1s --release-ram", "--release-ram needs --postcopy"),
        ("run a --migrate tcp::1@1s --postcopy --release-ram --take-back f", "exclude each other"),
        ("run a --migrate tcp::1@1s --recover 5s", "--recover needs --postcopy"),
        ("squash s", "squash needs -o SNAPSHOT"),
        ("squash s -o t --at 1s", "--at is for snapshot FILE"),
        ("squash", "squash needs a SNAPSHOT"),
        ("run a --recover 5s", "--recover needs --migrate"),
        ("run a --postcopy", "--postcopy needs --migrate"),
        ("run --incoming tcp:1 --recover 5s", "--recover is for the side that sends"),
        ("run --incoming tcp:1 --release-ram", "--release-ram is for the side that sends"),
        ("run a --migrate tcp:1@1s --postcopy 2", "a =: --postcopy=2"),
        ("run --postcopy 300ms a --migrate tcp:1@1s", "a =: --postcopy=300ms"),
        ("run a --migrate tcp:1@1s --postcopy b", "unexpected argument b"),
        ("run a --json", "--json is for info, snapshot, squash, --incoming and --migrate"),
        ("run a --migrate tcp:1", "must be URI@AFTER"),
        ("run a --migrate rdma:1@1s", "must be URI@AFTER"),
        ("run a --incoming rdma:1", "--incoming rdma:1: must be tcp:HOST:PORT"),
        ("run --incoming tcp:1 -m 1G", "-m: the machine that comes has its own"),
        ("run a --incoming tcp:1", "unexpected argument a"),
        ("run a --multifd 2", "--multifd needs --migrate"),
        ("run a --migrate tcp:1@1s --multifd 65", "--multifd 65: must be 1 to 64 channels"),
        ("run a --migrate file:a@1s --multifd 2", "--multifd is for tcp: and unix:"),
        ("run a --migrate tcp:1@1s --multifd-compression lz4", "--multifd-compression lz4: must be none or zstd"),
        ("run a --migrate tcp:1@1s --mapped-ram", "--mapped-ram is for file:PATH"),
        ("run a --dirty-limit 1M", "--dirty-limit needs --migrate"),
        ("run a --migrate tcp:1@1s --auto-converge --dirty-limit 1M", "exclude each other"),
        ("run a --migrate tcp:1@1s --tls-cert f", "TLS needs --tls-cert, --tls-key and --tls-ca"),
        ("run a --migrate file:a@1s --tls-cert f --tls-key f --tls-ca f", "by tcp: or unix:"),
        ("run --incoming tcp:1 --tls-cert f --tls-key f --tls-ca f --tls-name x", "--tls-name needs --migrate"),
        ("run a --migrate file:a@1s --direct-io", "--direct-io is for snapshot"),
        ("run a --migrate tcp:1@1s --sync", "--sync is for snapshot"),
        ("run a --take-back f", "--take-back needs --migrate"),
        ("run a --symbols f", "--symbols is for restore"),
        ("run a --xbzrle 1M", "--xbzrle needs --migrate"),
        ("run a --migrate tcp:1@1s --multifd 2 --xbzrle 1M", "--xbzrle goes with neither"),
        ("run a --mapped-ram", "--mapped-ram needs"),
        ("run a --auto-converge", "--auto-converge needs"),
        ("run a --downtime 1s", "--downtime needs --migrate"),
        ("run a --bandwidth 1G", "--bandwidth needs --migrate"),
        ("run a --migrate tcp:1@1s --downtime soon", "--downtime soon"),
        ("restore s -m 1G", "-m: a snapshot has its own"),
        ("restore", "restore needs a SNAPSHOT"),
        ("run a --framebuffer 640", "not a size such as 640x480"),
        ("run a --framebuffer 640x-1", "not a size such as 640x480"),
        ("run a --signature-granularity 0 --signature s", "--signature-granularity 0: must be 1 to 1024 bytes"),
        ("run a --signature-granularity 4", "--signature-granularity needs --signature"),
        ("demo --signature s", "--signature is for run FILE"),
        ("disas a main --signature s", "--signature is for run FILE"),
        ("disas a main --isa rv64imac", "--isa is for run FILE"),
        ("run a --screenshot b.ppm", "--screenshot needs --framebuffer"),
        ("run a -D log", "-D needs -d ITEM"),
        ("Cargo.toml", "unknown command Cargo.toml; a file is run by: notdirty run Cargo.toml"),
        ("run a --isa rv64gc_sstc", "sstc is not among what can be left out"),
        ("run a --perf-map=x", "--perf-map takes no value"),
        ("run a b", "unexpected argument b"),
        ("run a --frobnicate", "--frobnicate"),
        ("run a -m", "-m needs a value"),
        ("run a -m lots", "-m lots"),
        ("run a -m 0", "-m 0"),
        ("run a -m 99999999999G", "-m 99999999999G"),
        ("run a --max-insns -1", "--max-insns -1"),
        ("run a --max-insns 18446744073709551616", "18446744073709551616"),
        ("run a --timeout never", "--timeout never"),
        ("run a --timeout -1", "--timeout -1"),
        ("run a --timeout nan", "--timeout nan"),
        ("run a --smp many", "--smp many"),
        ("run a --maxmem much", "--maxmem much"),
        ("run a --plug 64M", "--plug 64M"),
        ("run a --plug 64M@0x100000000", "--plug 64M@0x100000000"),
        ("run a --plug 64M@here:1s", "--plug 64M@here:1s"),
        ("run a --plug 0M@0:1s", "--plug 0M@0:1s"),
        ("run a --plug 64M@0:soon", "AFTER"),
        ("run a --plug 64M@0:insns:x", "AFTER"),
        ("run a --engine fast", "--engine fast"),
        ("run a --clock sun", "--clock sun"),
        ("run a --icache wet", "--icache wet"),
        ("run a --lrsc weak", "--lrsc weak"),
        ("run a --isa rv64gcv", "--isa rv64gcv: v"),
        ("run a -d everything", "everything"),
        ("run a --jit-off everything", "everything"),
        ("run a --load-addr 0xg", "--load-addr 0xg"),
        ("run a --load-addr 0x", "--load-addr 0x"),
        ("run a --entry +1", "--entry +1"),
        ("run a --semihosting maybe", "--semihosting maybe"),
        ("run a --log loud", "--log loud"),
        ("run a --stats=yes", "--stats takes no value"),
        ("--load-addr 1", "--load-addr"),
    ] {
        let error = args(line).expect_err(line);
        assert!(error.contains(named), "{line}: {error}");
    }
}

#[test]
fn ram_may_be_plugged_at_a_time_or_after_instructions_and_more_than_once() {
    use plug::After;
    let line = "run a --maxmem 2G --plug 64M@0x100000000:100ms --plug 4K@4096:2s --plug 1G@0x2_0000_0000:insns:1_000";
    let parsed = args(line).unwrap();
    assert_eq!(parsed.max_ram, Some(2 << 30));
    let plugs: Vec<_> = parsed.plugs.iter().map(|p| (p.size, p.addr, p.after)).collect();
    assert_eq!(
        plugs,
        [
            (64 << 20, 1 << 32, After::Time(Duration::from_millis(100))),
            (4096, 4096, After::Time(Duration::from_secs(2))),
            (1 << 30, 2 << 32, After::Insns(1000)),
        ]
    );
}

#[test]
fn sizes_have_the_letters_of_other_tools() {
    for (text, bytes) in [("1", 1 << 20), ("4K", 4096), ("4096B", 4096), ("2m", 2 << 20), ("0x10K", 16 << 10)] {
        assert_eq!(size(text), Some(bytes), "{text}");
    }
    for text in ["", "K", "1.5G", "-1", "1GG", "\u{e9}"] {
        assert_eq!(size(text), None, "{text}");
    }
}
