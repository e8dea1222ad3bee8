# libhandoff. `make help` lists the targets.

PREFIX     ?= /usr/local
LIBDIR     ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
MANDIR     ?= $(PREFIX)/share/man
DESTDIR    ?=

CC      ?= cc
CXX     ?= c++
CLANG   ?= clang
CARGO   ?= cargo
PYTHON  ?= python3
CFLAGS  ?= -O2 -g
WARN    := -Wall -Wextra -Wpedantic -Werror

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
SONAME  := libhandoff.so.0
SHARED  := libhandoff.so.$(VERSION)

BUILD   := $(abspath build)
TARGET  := $(abspath $(or $(CARGO_TARGET_DIR),target))
LIB     := $(BUILD)/lib
HEADERS := include/handoff.h $(wildcard include/handoff/*.h)
PC      := PKG_CONFIG_PATH=$(LIB)/pkgconfig pkg-config

.PHONY: all demo check bench install uninstall header clean help
.DEFAULT_GOAL := all
.DELETE_ON_ERROR:

## all         build the shared and the static library
all: $(LIB)/$(SHARED) $(LIB)/libhandoff.a $(LIB)/pkgconfig/handoff.pc

# ---- the library ---------------------------------------------------------------------------------

RUST := Cargo.toml Cargo.lock build.rs $(shell find src -type f)

# As a static library only: where Cargo also makes an rlib it leaves link-time optimisation out.
$(BUILD)/rust.stamp: $(RUST)
	$(CARGO) rustc --release --locked --lib --crate-type staticlib
	@mkdir -p $(LIB)/pkgconfig && touch $@

# One object with everything that a handoff_* call needs and nothing else, in which no other name
# is global: so the static library can stand beside other Rust code in one program.
$(BUILD)/handoff.o: $(BUILD)/rust.stamp src/ffi/symbols.txt
	ld -r --gc-sections $$(sed 's/^/-u /' src/ffi/symbols.txt) \
	    --whole-archive $(TARGET)/release/libhandoff.a -o $@.all
	objcopy --wildcard --keep-global-symbol='handoff_*' \
	    --remove-section=.llvmbc --remove-section=.llvmcmd $@.all $@
	@rm $@.all

# From the object and with a map of our own, because a Rust cdylib takes no version script.
$(LIB)/$(SHARED): $(BUILD)/handoff.o src/ffi/libhandoff.map
	$(CC) -shared -o $@ $< $(LDFLAGS) -Wl,-soname,$(SONAME) \
	    -Wl,--version-script=src/ffi/libhandoff.map -Wl,--gc-sections -Wl,--as-needed \
	    -Wl,-z,relro,-z,now,-z,defs,-z,nodelete,-z,noexecstack -lgcc_s -lpthread -lm
	objcopy --only-keep-debug $@ $@.debug
	objcopy --strip-unneeded --add-gnu-debuglink=$@.debug $@
	ln -sf $(SHARED) $(LIB)/$(SONAME)
	ln -sf $(SONAME) $(LIB)/libhandoff.so

$(LIB)/libhandoff.a: $(BUILD)/handoff.o
	objcopy --strip-debug $< $(BUILD)/libhandoff.o
	rm -f $@
	ar rcs $@ $(BUILD)/libhandoff.o

# For programs built against this tree, such as the examples.
$(LIB)/pkgconfig/handoff.pc: packaging/handoff.pc.in Makefile Cargo.toml $(BUILD)/rust.stamp
	@echo PC $@
	@sed -e 's|@PREFIX@|$(abspath .)|; s|@LIBDIR@|$(LIB)|; s|@INCLUDEDIR@|$(abspath include)|' \
	    -e 's|@VERSION@|$(VERSION)|' $< > $@

# What cbindgen makes, which only these need; include/ has the committed copies.
FRESH_HEADERS := $(TARGET)/headers

$(FRESH_HEADERS)/handoff.h: $(RUST) cbindgen.toml tools/header.rs
	@mkdir -p $(@D)
	HANDOFF_HEADERS=$(@D) $(CARGO) check --quiet --locked --lib --features header
	@touch -c $@

## header      make the C headers anew after a change to src/ffi
header: $(FRESH_HEADERS)/handoff.h
	cp -r $(FRESH_HEADERS)/handoff.h $(FRESH_HEADERS)/handoff include/

# ---- the rest ------------------------------------------------------------------------------------

include tools/needs.mk
include packaging/packaging.mk
include c-tests/tests.mk
include examples/examples.mk
include bench/bench.mk
include bench/micro.mk
include proofs/proofs.mk
include integrations/nginx/nginx.mk
include integrations/nginx/tests/tests.mk
include bench/nginx.mk

## check       run every test
check: check-rust check-header check-symbols check-c check-valgrind check-sanitizers \
       check-interop check-soak check-install check-man check-readme check-one-owner \
       check-claim check-model check-fuzz check-threads check-coverage check-python check-nginx \
       check-peers bench-check demo

## check-rust  rustfmt, clippy and the Rust tests
.PHONY: check-rust
check-rust: | need-rust-tools
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets --all-features -- -D warnings
	$(CARGO) test --locked --quiet

## check-readme  compile the programs in README.md
.PHONY: check-readme
check-readme: | need-python
	@set -e; for program in 1 2; do \
	    $(PYTHON) tools/readme_code.py README.md $$program | \
	        $(CC) -std=c11 $(WARN) -c -o /dev/null -Iinclude -xc -; \
	done; echo "check-readme: a broker and a backend"

## clean       remove what was built
clean:
	rm -rf build target bench/target fuzz/target

## help        list the targets
help:
	@sed -n 's/^## \([a-z-]*\) *\(.*\)/  make \1\t\2/p' Makefile packaging/packaging.mk \
	    c-tests/tests.mk examples/examples.mk bench/bench.mk bench/micro.mk bench/nginx.mk \
	    proofs/proofs.mk integrations/nginx/nginx.mk integrations/nginx/tests/tests.mk | \
	    expand -t 26
