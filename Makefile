# notdirty: every command a developer needs. `make test` sets up what it needs and is what CI runs.
#
#   make test          deps, guest programs, lints, all tests, loom models, conformance where a corpus is at hand
#   make test-deep     the same in release with many more random programs (NOTDIRTY_PROGRAMS=n), ten minutes of RAM that
#                      comes and goes, and what valgrind can run
#   make bench         our JIT beside QEMU and Unicorn, the dirty memory beside what others do, programs of others beside
#                      QEMU and the host; ROW=name for one row or group (ROW=dirty: the second table, ROW=programs: the
#                      third, of SOURCES=dir), RUNS=n, JSON=1 for a machine: one object a table; the fourth table holds
#                      programs under page tables against themselves without, the fifth (ROW=fuzz) a fuzzer's loop
#                      beside Unicorn's; ROW=migrate: the sixth, guests that move to another process, beside QEMU's
#   make bench-against AGAINST=FILE   the rows of the first table on this build and on FILE, a notdirty of an earlier commit, each
#                      at most 1.03 times as long; ROW=name, RUNS=n
#   make bench-flags what each of the JIT's switches is worth; ROW=name, RUNS=n
#   make mutants       mutation testing of core: SHARD=k/n, FILES='core/src/ring/*.rs'; goes on where it stopped (.ci/mutants)
#   make conformance   C guests; CORPUS=dir: every ELF in dir on both engines (default ../corpora/programs); riscv-tests
#                      as built in ../corpora/riscv-tests/isa, riscv-arch-test as built below ../corpora/riscv-arch-test or
#                      ../corpora/arch-test, compared with Spike's signatures where ../corpora/riscv-isa-sim/build/spike
#                      is; MicroPython's tests on its port for this board, as built in ../corpora/micropython/ports/qemu, in QEMU
#                      too; QEMU's scripts/analyze-migration.py in ../corpora/qemu on our streams; CORPORA=dir for ../corpora, SWITCHES=1 for each of the JIT's switches off
#   make guests        the C guest programs, into guests/programs/build
#   make unicorn       the GPL-2.0-only package with Unicorn as another engine (slow: builds its C sources)
#   make deps          Debian packages for all of it, by name, when root
#   make lint | deny | clean

CARGO ?= cargo
CARGO_FLAGS ?=
RISCV_CC ?= riscv64-unknown-elf-gcc
CORPUS ?=
CORPORA ?=
SWITCHES ?=
NOTDIRTY_PROGRAMS ?= 1000000
# Members of the workspace that plain tests leave out, and why: Unicorn compiles minutes of C.
ALL := --workspace --exclude notdirty-unicorn
# What is left out by default, and its tests.
FEATURES := --features tls-tests

.PHONY: mutants all test test-deep valgrind bench bench-tables bench-migrate bench-flags bench-against conformance guests unicorn deps lint deny clean
all:
	$(CARGO) build --release $(CARGO_FLAGS)

deps:
	.ci/deps all

# Optional: without a cross compiler the tests of C guests say that they are skipped.
guests:
	@if command -v $(firstword $(RISCV_CC)) >/dev/null; then $(MAKE) --no-print-directory -C guests/programs -s RISCV_CC="$(RISCV_CC)"; \
	else echo "guests: no $(RISCV_CC), C guest programs are not built (make deps)"; fi

lint:
	@if $(CARGO) fmt --version >/dev/null 2>&1; then echo '$(CARGO) fmt --check' && $(CARGO) fmt --all --check; \
	else echo 'lint: no rustfmt here, formatting is not checked'; fi
	@if $(CARGO) clippy --version >/dev/null 2>&1; then echo '$(CARGO) clippy' && \
	$(CARGO) clippy $(CARGO_FLAGS) $(ALL) --all-targets -- -D warnings && \
	$(CARGO) clippy $(CARGO_FLAGS) -p notdirty $(FEATURES) --lib --test tls -- -D warnings; \
	else echo 'lint: no clippy here, lints are not checked'; fi

# A test that hangs fails after ten minutes, and the others run.
LIMIT := --config "target.'cfg(unix)'.runner=['timeout','-v','-s','ABRT','-k','9','600']"
test:
	.ci/deps test
	$(MAKE) --no-print-directory guests
	$(MAKE) --no-print-directory lint
	$(CARGO) test $(CARGO_FLAGS) $(LIMIT) --no-fail-fast $(ALL)
	$(CARGO) test $(CARGO_FLAGS) $(LIMIT) -p notdirty $(FEATURES) --test tls --lib
	$(CARGO) loom
	$(CARGO) loom-wide
	$(MAKE) --no-print-directory conformance

# Again, and seen: plain cargo test hides what passing tests print, and with it why something was skipped.
conformance:
	NOTDIRTY_CORPUS="$(abspath $(CORPUS))" NOTDIRTY_CORPORA="$(abspath $(CORPORA))" NOTDIRTY_SWITCHES="$(SWITCHES)" \
	$(CARGO) test $(CARGO_FLAGS) -p notdirty --test conformance -- --nocapture

# valgrind sees Rust and the oracle, not emitted code: core, and RAM that comes and goes under interpreted harts. Not here:
# ram, ram_changes (what a host refuses, valgrind refuses otherwise), model and migration (terabytes, too slow).
CHECKED := --lib --test dirty --test log --test ring --test ring_log --test ram_backing
VALGRIND := target.'cfg(unix)'.runner=['valgrind','-q','--error-exitcode=9','--fair-sched=yes']
test-deep: guests
	.ci/deps deep
	$(CARGO) loom
	$(CARGO) loom-wide
	NOTDIRTY_PROGRAMS=$(NOTDIRTY_PROGRAMS) NOTDIRTY_CHECKED=2000 NOTDIRTY_FUZZ_INPUTS=20000 NOTDIRTY_HOSTILE_INSNS=100000000 \
	NOTDIRTY_FLOATS=100000000 NOTDIRTY_SWITCHES=1 NOTDIRTY_STREAMS=1000000 NOTDIRTY_MOVES=15 NOTDIRTY_FAULTS=all NOTDIRTY_MIGRATIONS=20,256M \
	NOTDIRTY_STRESS_SECONDS=600 NOTDIRTY_KERNEL_CHECKPOINTS=10000 NOTDIRTY_SOAK_SECONDS=300 $(CARGO) test --release $(CARGO_FLAGS) $(ALL) -- --nocapture
	$(CARGO) test --release $(CARGO_FLAGS) -p notdirty --features zstd --test zstd --lib -- zstd packed
	@if command -v valgrind >/dev/null; then $(MAKE) --no-print-directory valgrind; \
	else echo "test-deep: no valgrind, its part is skipped (make deps)"; fi

valgrind:
	PROPTEST_CASES=8 $(CARGO) test $(CARGO_FLAGS) --config "$(VALGRIND)" -p notdirty-core $(CHECKED)
	NOTDIRTY_STRESS_ENGINE=interp NOTDIRTY_STRESS_BLOCKS=200 \
	$(CARGO) test $(CARGO_FLAGS) --config "$(VALGRIND)" -p notdirty --test stress -- --nocapture

bench-flags:
	$(MAKE) --no-print-directory guests
	$(CARGO) build --release $(CARGO_FLAGS) -p notdirty
	$(CARGO) run --release $(CARGO_FLAGS) -p notdirty-benches --bin flags -- $(if $(ROW),ROW=$(ROW)) $(if $(RUNS),RUNS=$(RUNS))

bench-against:
	$(MAKE) --no-print-directory guests
	$(CARGO) build --release $(CARGO_FLAGS) -p notdirty
	AGAINST="$(abspath $(AGAINST))" $(CARGO) run --release $(CARGO_FLAGS) -p notdirty-benches --bin against -- $(if $(ROW),ROW=$(ROW)) $(if $(RUNS),RUNS=$(RUNS))

bench: $(if $(filter migrate%,$(ROW)),bench-migrate,bench-tables)

bench-migrate: guests
	.ci/deps bench
	$(CARGO) build --release $(CARGO_FLAGS) -p notdirty
	$(CARGO) run --release $(CARGO_FLAGS) -p notdirty-benches --bin migrate -- $(if $(ROW),ROW=$(ROW)) $(if $(RUNS),RUNS=$(RUNS))

bench-tables:
	.ci/deps bench
	$(MAKE) --no-print-directory guests
	$(CARGO) build --release $(CARGO_FLAGS) -p notdirty
	$(CARGO) run --release $(CARGO_FLAGS) -p notdirty-benches --bin side_by_side -- $(if $(ROW),ROW=$(ROW)) $(if $(RUNS),RUNS=$(RUNS)) $(if $(JSON),--json)
	$(CARGO) run --release $(CARGO_FLAGS) -p notdirty-benches --bin dirty -- $(if $(ROW),ROW=$(ROW)) $(if $(RUNS),RUNS=$(RUNS)) $(if $(JSON),--json)
	-$(if $(JSON),,$(CARGO) run --release $(CARGO_FLAGS) -p notdirty-benches --bin paged -- $(if $(ROW),ROW=$(ROW)) $(if $(RUNS),RUNS=$(RUNS)))
	$(if $(JSON),,$(CARGO) run --release $(CARGO_FLAGS) -p notdirty-benches --bin fuzz -- $(if $(ROW),ROW=$(ROW)) $(if $(RUNS),RUNS=$(RUNS)))
	@$(MAKE) --no-print-directory -C guests/programs beside RISCV_CC="$(RISCV_CC)" $(if $(SOURCES),SOURCES="$(abspath $(SOURCES))") >&2
	$(CARGO) run --release $(CARGO_FLAGS) -p notdirty-benches --bin programs -- $(if $(ROW),ROW=$(ROW)) $(if $(RUNS),RUNS=$(RUNS)) $(if $(JSON),--json)

unicorn: guests
	.ci/deps unicorn
	$(CARGO) clippy $(CARGO_FLAGS) --release -p notdirty-unicorn --all-targets -- -D warnings
	$(CARGO) test $(CARGO_FLAGS) --release -p notdirty-unicorn
	$(CARGO) build $(CARGO_FLAGS) --release -p notdirty-unicorn

deny:
	@$(CARGO) deny --version >/dev/null 2>&1 || { echo 'deny: no cargo-deny here ($(CARGO) install --locked cargo-deny)'; exit 1; }
	$(CARGO) deny check licenses bans

clean:
	$(CARGO) clean
	$(MAKE) --no-print-directory -C guests/programs clean

mutants:
	SHARD="$(SHARD)" FILES="$(FILES)" .ci/mutants
