//! The text of `--help`.

/// All of it.
pub(super) const USAGE: &str = "\
notdirty runs bare-metal RISC-V guests (RV64GC with B, Zbc, Zicond, Zicbom, Zicboz and Zicbop; M, S and U;
Sv39, Sv48 and Sv57).

usage: notdirty                       the embedded demo, with a summary
       notdirty run FILE [options]    an ELF64 file, or a raw image with --load-addr
       notdirty replay FILE INPUT --checkpoint-at FUNCTION [options]
                                      run up to FUNCTION(bytes, room), give it the bytes of INPUT, run on until it
                                      returns; as a fuzzer of FUNCTION(bytes, length) would
       notdirty disas FILE PLACE [options]
                                      the code at a symbol or address: guest, IR, host
       notdirty smc-test [options]    the suite of self-modifying guests (smc-test --help)
       notdirty snapshot FILE --at AFTER -o SNAPSHOT [options]
                                      run it until then, and write all of the machine to a file (QEMU's mapped-ram);
                                      each further --at AFTER adds SNAPSHOT.1, SNAPSHOT.2, ... with what changed since
       notdirty squash SNAPSHOT.N -o SNAPSHOT
                                      one file of that one and those that it builds on
       notdirty restore SNAPSHOT [options]
                                      go on from there, with this engine, limits and traces
       notdirty info SNAPSHOT [--json]
                                      what is in it

  -m SIZE               RAM at 0x80000000: bytes with K, M, G, T, else MiB (default 128M)
  --maxmem SIZE         RAM there may ever be, what is plugged included (default: no bound)
  --migrate URI@AFTER   move the machine while it runs: URI is tcp:HOST:PORT, unix:PATH, fd:N, exec:COMMAND or
                        file:PATH[,offset=N]; --json tells how it went
  --bandwidth SIZE      bytes a second that it sends, at most (default: what the channel takes)
  --downtime TIME       how long the guest may stand still for it (default 300ms)
  --multifd N           by N channels more (tcp:, unix:); with --postcopy as long as it runs here
  --multifd-compression zstd
                        their pages packed by Zstandard (a build with the feature zstd, on both sides)
  --mapped-ram          to a file with a home for each page, for `restore` (file:PATH)
  --direct-io           pages of snapshot, squash, restore and --mapped-ram go around the host's cache (O_DIRECT)
  --sync                a file counts as written once it and its name are on the disk
  --xbzrle SIZE         keep so many bytes of pages that were sent, and send what differs
  --auto-converge       make the guest slower if it dirties more than goes out
  --dirty-limit SIZE    the same, but each hart by itself is held to so many bytes of pages that it dirties a second
  --postcopy[=AFTER]    run it there first, and send its pages as it waits for them (tcp:, unix:): at once, or after AFTER
                        rounds, or 300ms, of sending while it runs here; --json of the other side tells what was waited for
  --postcopy-bandwidth SIZE
                        bytes a second of pages that nothing waits for (default: what the channel takes)
  --release-ram         memory of pages that are there goes back to the host while others are sent
  --postcopy-faults software|userfaultfd
                        of --incoming: what notices pages that are yet to come; userfaultfd for what reaches RAM by pointer,
                        refused with the reason where the host does not allow it (default: software)
  --recover TIME        how long it looks for the other side again if the channel breaks then (default 60s)
  --tls-cert FILE --tls-key FILE --tls-ca FILE [--tls-name NAME]
                        of --migrate and --incoming by tcp: or unix: TLS; both sides have a certificate (PEM) of an
                        authority that the other one is given; the target's is of NAME (default: the host of the URI)
  --take-back FILE      if the other side was told to run and did not answer, write the machine there: `restore` runs it on
                        here, which is right only if it does not run there
  --incoming URI        instead of FILE: a machine that comes from there, to go on with
  --symbols FILE        the ELF file of what is restored or comes, for traces and crash reports
  --dirty-rate AFTER[,for=TIME][,by=bits|rings[:ENTRIES]|samples[:PAGES]]
                        tell then how fast RAM becomes dirty, watched for TIME (1s)
  --plug SIZE@ADDR:AFTER
                        plug RAM while the guest runs: AFTER is 100ms, 2s, or insns:N; may be given again
  --smp N               harts that run side by side (default 1)
  --turns SEED          harts take turns on one thread, as this number has it: with --clock insns a run repeats exactly
  --checkpoint-at PLACE take a checkpoint before the instruction at this symbol or address, and go on
  --repeat N            run from there N times, or until an exit code is not 0; with --turns a run's seed is one more than
                        that of the run before
  --load-addr ADDR      FILE is a raw image for this address
  --entry ADDR          start here (default: what the ELF file says; the load address)
  --engine jit|interp   translate, or interpret one instruction at a time (default jit)
  --isa STRING          only these extensions, as rv64imac_zba; what is left out traps (default: all)
  --clock host|insns    mtime is the host's time, or 1 tick per 100 instructions (default host)
  --icache coherent|fencei
                        the next instruction sees what the guest wrote (default), or at the latest fence.i does
  --lrsc cas|strict     sc.w and sc.d fail if the value is another than lr saw (default), or if anything else stored there
                        (of several harts a store of its own, too)
  --semihosting on|off  answer semihosting calls, known by their sequence: print, read, time, exit; no files (default on)
  --framebuffer WxH     so many pixels at 0x50000000, 0x00RRGGBB each; registers (width, height, stride) at 0x4ffff000
  --screenshot FILE     write its image there at the end, as PPM
  --signature FILE      write the words between begin_signature and end_signature there at the end, in hexadecimal
  --signature-granularity N
                        bytes of such a word, one a line (default 16)
  --max-insns N         stop after exactly N instructions (of one hart, if there are several)
  --timeout SECONDS     stop after this time
  --stats               print a summary to standard error at the end
  -d ITEM[,ITEM..]      trace (`-d help` lists the items), to standard error or to
  -D FILE               this file
  --log LEVEL           off, error, warn, info, debug or trace: what is said on standard error besides (default warn,
                        or RUST_LOG; also MODULE=LEVEL, in a list)
  --perf-map            name translated code for `perf report`, in /tmp/perf-PID.map
  --jitdump DIR         the same for `perf record -k mono` and `perf inject --jit`, in DIR/jit-PID.dump
  --jit-off NAME[,..]   turn off an optimisation of the JIT (`--jit-off help` lists them)
  -h, --help            this text
  -V, --version         the version

The UART is on standard input and output. Exit code: the guest's (above 255: 255), or
  2 bad usage or input   3 hung (wfi), or an unhandled trap   124 timeout   125 instruction limit   126 host error
  130 Ctrl-C   143 SIGTERM
";
