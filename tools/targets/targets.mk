# Other processors and another C library: which there are, how they are tested, and what is left out
# stands in check.py. All of them need `make deps-all`; the short form needs `make deps`.

CHECK_TARGETS := MAKE='$(SUBMAKE)' CARGO='$(CARGO)' $(PYTHON) tools/targets/check.py

.PHONY: check-targets check-targets-short check-msrv check-msrv-short check-kernel

## check-targets  musl, i686, armv7, aarch64, riscv64 and s390x: built, and tested as far as that goes here; TARGETS=s390x
check-targets: | git-checkout need-python need-vm need-cmocka $(ALL_NEEDS)
	@$(CHECK_TARGETS) $(TARGETS)

## check-targets-short  the Rust tests with musl and on i686
check-targets-short: | git-checkout need-python need-targets
	@$(CHECK_TARGETS) --short

# Debian 13's.
MSRV := 1.85.1

## check-msrv  the Rust tests with the oldest Rust that will do
check-msrv check-msrv-short: export RUSTUP_TOOLCHAIN := $(MSRV)
check-msrv check-msrv-short: export CARGO_TARGET_DIR := $(TARGET)/msrv
check-msrv: | git-checkout need-msrv
	@grep -qx 'rust-version = "$(basename $(MSRV))"' Cargo.toml || \
	    { echo 'error: Cargo.toml has another rust-version than $(MSRV)' >&2; exit 1; }
	@$(CARGO) test --locked --quiet
	@$(SUBMAKE) BUILD=$(BUILD)/msrv check-symbols

## check-msrv-short  that the oldest Rust that will do compiles the library and its Rust tests
check-msrv-short: | git-checkout need-msrv
	@$(CARGO) check --locked --quiet --all-targets

# What the kernel has a part in, and an emulator does not take too long for.
KERNEL_TESTS ?= $(addprefix test_,supported missing channel backend broker directory descriptors \
    preread wake raw_transport)

## check-kernel  some C tests with Debian 11's kernel, 5.10, in an emulated machine
check-kernel: $(KERNEL_TESTS:%=$(C_BUILD)/%) | need-python need-vm
	@$(VM) --kernel bullseye --limit 1800 -- env $(TEST) c-tests/run_all.sh $@ $^
