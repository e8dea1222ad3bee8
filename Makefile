# libhandoff. `make help` lists the targets.
#
# Here stand the variables that all makefiles share, how the library and its headers are built, and
# which checks there are. The rest is in one makefile for each subject, beside what it is about:
#
#   tools/needs.mk           what the targets need, and make deps
#   packaging/packaging.mk   manual pages, installing, and the checks of what is built
#   packaging/release.mk     the source tarball, and what must hold before a release
#   packaging/deb.mk         packages for Debian and others
#   c-tests/tests.mk         the C and C++ tests
#   c-tests/tls/tests.mk     those of TLS connections, in an emulated machine
#   examples/examples.mk     the examples and the demo
#   proofs/proofs.mk         loom, spin, fuzzing and ThreadSanitizer
#   bench/*.mk               the benchmarks
#   tools/handoff/           handoff(1) and its tests
#   tools/guide/             the recipes of docs/guide.md, run
#   tools/targets/           other processors and another C library
#   integrations/nginx/      the nginx modules and their tests
#   integrations/apache/     the Apache module and its tests
#   bindings/python/         the package for Python and its tests
#   bindings/go/             the binding for Go
#   bindings/node/           the binding for Node.js and its tests
#   bindings/tests/          what a binding of any language must do
#
# A line that begins with "## " documents the target that follows it: `make help` prints it.

# make(1) takes a blank in a name for the end of it.
$(if $(word 2,$(CURDIR)),$(error the path of this tree has a blank in it: $(CURDIR)))

PREFIX     ?= /usr/local
BINDIR     ?= $(PREFIX)/bin
LIBDIR     ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
MANDIR     ?= $(PREFIX)/share/man
DOCDIR     ?= $(PREFIX)/share/doc/handoff
DESTDIR    ?=

CC      ?= cc
CXX     ?= c++
CLANG   ?= clang
OBJCOPY ?= objcopy
CARGO   ?= cargo
PYTHON  ?= python3
CFLAGS  ?= -O2 -g
# Where the library is developed. A later compiler may warn of more.
WERROR  ?= $(if $(wildcard .git),-Werror)
WARN    := -Wall -Wextra -Wpedantic $(WERROR)

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
SONAME  := libhandoff.so.0
SHARED  := libhandoff.so.$(VERSION)

# CARGO_BUILD_TARGET is rustc's name of what to build for, if that is not this machine. CC, LD, AR
# and OBJCOPY are then to be that target's. Cargo has a directory for each target that is asked for
# by its name, and so has this.
BUILD   := $(abspath build$(CARGO_BUILD_TARGET:%=/%))
TARGET  := $(abspath $(or $(CARGO_TARGET_DIR),target))
RELEASE := $(TARGET)$(CARGO_BUILD_TARGET:%=/%)/release
LIB     := $(BUILD)/lib
HEADERS := include/handoff.h $(wildcard include/handoff/*.h)
PC      := PKG_CONFIG_PATH=$(LIB)/pkgconfig pkg-config
# A recipe that names $(MAKE) itself runs even with `make -n`.
SUBMAKE  = $(MAKE)

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:

## all         build the shared and the static library, handoff(1), and the manual pages
.PHONY: all
all: $(LIB)/$(SHARED) $(LIB)/libhandoff.a $(LIB)/pkgconfig/handoff.pc

# ---- the library ---------------------------------------------------------------------------------

RUST := Cargo.toml Cargo.lock build.rs $(shell find src -type f)

# Paths of this machine stay out of the library, so that a build elsewhere gives the same bytes:
# those of the tree, of Cargo's packages and, where rust-src is installed, of the standard library,
# which get the name that they have without it.
REMAP = $(foreach path,$(HERE)=. $(or $(CARGO_HOME),$(HOME)/.cargo)=cargo \
    $(shell rustc --print sysroot)/lib/rustlib/src/rust=/rustc/$(shell rustc -vV | \
        sed -n 's/^commit-hash: //p'),--remap-path-prefix=$(path))
# For musl, Rust takes a program for granted that is static, and puts the C library into the archive:
# not into ours, which a shared library is made of too.
DYNAMIC = $(if $(findstring -musl,$(or $(CARGO_BUILD_TARGET),$(shell rustc -vV | \
    sed -n 's/^host: //p'))),-Ctarget-feature=-crt-static)
OUR_FLAGS = $(strip $(REMAP) $(DYNAMIC))
# Flags that a configuration of Cargo has are kept, but RUSTFLAGS would hide these.
WITH_OUR_FLAGS = $(if $(RUSTFLAGS),RUSTFLAGS='$(RUSTFLAGS) $(OUR_FLAGS)',\
    CARGO_BUILD_RUSTFLAGS='$(OUR_FLAGS)')

# As a static library only: where Cargo also makes an rlib it leaves link-time optimisation out.
$(BUILD)/rust.stamp: $(RUST)
	@$(WITH_OUR_FLAGS) $(CARGO) rustc --release --locked --lib --crate-type staticlib
	@mkdir -p $(LIB)/pkgconfig && touch $@

# One object with everything that a handoff_* call needs and nothing else, in which no other name
# is global: so the static library can stand beside other Rust code in one program.
$(BUILD)/handoff.o: $(BUILD)/rust.stamp src/ffi/libhandoff.map tools/exports
	calls=$$(tools/exports '-u %s') && $(LD) -r --gc-sections $$calls \
	    --whole-archive $(RELEASE)/libhandoff.a -o $@.all
	$(OBJCOPY) --wildcard --keep-global-symbol='handoff_*' \
	    --remove-section=.llvmbc --remove-section=.llvmcmd $@.all $@
	@rm $@.all

# From the object and with a map of our own, because a Rust cdylib takes no version script. The
# compiler adds the unwinder itself: libgcc_s, or libgcc_eh where there is no shared one. With
# KEEP_DEBUG=1 the debug symbols stay in it, for the tools of packages, which take them out.
$(LIB)/$(SHARED): $(BUILD)/handoff.o src/ffi/libhandoff.map
	$(CC) -shared -o $@ $< $(LDFLAGS) -Wl,-soname,$(SONAME) \
	    -Wl,--version-script=src/ffi/libhandoff.map -Wl,--gc-sections -Wl,--as-needed \
	    -Wl,-z,relro,-z,now,-z,defs,-z,nodelete,-z,noexecstack -lpthread -lm
	$(if $(KEEP_DEBUG),,$(OBJCOPY) --only-keep-debug $@ $@.debug)
	$(if $(KEEP_DEBUG),,$(OBJCOPY) --strip-unneeded --add-gnu-debuglink=$@.debug $@)
	ln -sf $(SHARED) $(LIB)/$(SONAME)
	ln -sf $(SONAME) $(LIB)/libhandoff.so

$(LIB)/libhandoff.a: $(BUILD)/handoff.o
	$(OBJCOPY) --strip-debug $< $(BUILD)/libhandoff.o
	rm -f $@
	$(AR) rcsD $@ $(BUILD)/libhandoff.o

# For programs built against this tree, such as the examples.
$(LIB)/pkgconfig/handoff.pc: packaging/handoff.pc.in Makefile Cargo.toml $(BUILD)/rust.stamp
	@echo PC $@
	@sed -e 's|@PREFIX@|$(abspath .)|; s|@LIBDIR@|$(LIB)|; s|@INCLUDEDIR@|$(abspath include)|' \
	    -e 's|@VERSION@|$(VERSION)|' $< > $@

# What cbindgen makes, which only these need; include/ has the committed copies.
FRESH_HEADERS := $(TARGET)/headers

$(FRESH_HEADERS)/handoff.h: $(RUST) cbindgen.toml tools/header.rs | git-checkout
	@mkdir -p $(@D)
	HANDOFF_HEADERS=$(@D) $(CARGO) check --quiet --locked --lib --features header
	@touch -c $@

## header      make the C headers anew after a change to src/ffi
.PHONY: header
header: $(FRESH_HEADERS)/handoff.h
	cp -r $(FRESH_HEADERS)/handoff.h $(FRESH_HEADERS)/handoff include/

# ---- everything else -----------------------------------------------------------------------------

include tools/needs.mk
include packaging/packaging.mk
include packaging/release.mk
include packaging/deb.mk
include c-tests/tests.mk
include c-tests/tls/tests.mk
include bench/bench.mk
include bench/micro.mk
include proofs/proofs.mk
include tools/handoff/handoff.mk
include tools/guide/guide.mk
include tools/targets/targets.mk
include integrations/nginx/nginx.mk
include integrations/nginx/tests/tests.mk
include integrations/nginx/tests/versions.mk
include integrations/nginx/tests/tls.mk
include bindings/tests/tests.mk
include bindings/python/python.mk
include bindings/go/go.mk
include bindings/node/node.mk
include examples/examples.mk
include integrations/apache/apache.mk
include integrations/apache/tests/tests.mk
include bench/nginx.mk

# ---- the checks ----------------------------------------------------------------------------------

# From the quick to the slow, as far as that goes.
CHECKS := check-rust check-msrv-short check-crate check-layers check-header check-symbols \
    check-abi check-c check-libc check-cpp check-valgrind check-sanitizers check-interop \
    check-examples check-soak check-install check-man check-readme check-dist check-one-owner check-spread \
    check-faults check-limits check-claim check-model check-fuzz check-fuzz-abi check-threads \
    check-targets-short check-coverage check-python check-asgi check-go check-node check-command \
    check-guide check-nginx check-apache check-nginx-versions check-tls check-nginx-tls \
    check-python-tls check-bench-tls check-bench-streams check-peers check-specs check-deb \
    bench-check demo

# What these count or measure depends on what else the machine does.
ALONE := bench-check demo

# MAKEFLAGS names a jobserver with -j, which these makes do not get: they have their own.
RUN_CHECKS := MAKE='$(SUBMAKE)' tools/checks

## check       run every test, one on each processor; CHECKS='check-rust check-c': these
.PHONY: check
check: | check-needs
	@$(RUN_CHECKS) --alone '$(ALONE)' $(CHECKS)

# Before the first test: a tool that is missing shall not stop the last one after minutes.
.PHONY: check-needs
check-needs: git-checkout $(filter-out need-wrk,$(NEEDS))

## check-all   the same with more connections, handoffs and inputs, and with libFuzzer
.PHONY: check-all record-check
LONG := check-all record-check release-check
$(LONG): export ONE_OWNER_CONNECTIONS := 100000
$(LONG): export SPREAD_OFFERS := 400000
$(LONG): export HANDOFF_SEEDS := 20
$(LONG): export HANDOFF_SOAK_COUNT := 2000000
$(LONG): export FUZZ_RUNS := 100000
$(LONG): export FUZZ_SECONDS := 60
$(LONG): export FUZZ_ABI_RUNS := 100000
$(LONG): export HANDOFF_FAULTS_STEP := 1
$(LONG): export HANDOFF_FAULTS_OCCURRENCES := 1000
$(LONG): export HANDOFF_FAULTS_PAIRS := 10000
$(LONG): export TLS_LIMIT := 3600
$(LONG): export TLS_FULL := 1
$(LONG): export CPP_FULL := 1
$(LONG): export TLS_ROOTS := this-machine debian-13 debian-13+trixie-backports
$(LONG): export LIMITS_BYTES := 268435456
$(LONG): export NGINX_VERSIONS_TEST := $(NGINX_TEST) pass
$(LONG): export NGINX_POLL_TEST := copies failures http stream queue pass
$(LONG): export PACKAGES_BUILD := 1
$(LONG): export NGINX_TLS_FULL := 1
$(LONG): export APACHE_TESTS_REQUESTS := 10000
$(LONG): export APACHE_TESTS_MIXED := 3000
$(LONG): export APACHE_TESTS_LATE := 4000
check-all: | check-needs $(ALL_NEEDS)
	@$(RUN_CHECKS) --record $(RECORD) $(CHECKS) $(ONLY_ALL)

# What came out of it last.
RECORD   := docs/check-all.md
ONLY_ALL := fuzz check-targets check-msrv check-kernel check-python-new

## record-check  CHECK='fuzz check-msrv': these checks, as in check-all, and their rows in docs/check-all.md
record-check: | need-python need-git
	@$(RUN_CHECKS) --record $(RECORD) $(CHECK)

## check-layers  no module imports one that the architecture puts above it
.PHONY: check-layers
check-layers: | need-python
	@$(PYTHON) tools/check_layers.py

## check-rust  rustfmt, clippy and the Rust tests
.PHONY: check-rust
check-rust: | git-checkout need-rust-tools
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets --all-features -- -D warnings
	$(CARGO) test --locked --quiet

# In a directory of its own: in the usual one Cargo takes the library that it builds from the crate for
# the one of src, and sees no later change there.
## check-crate  the documentation of the Rust API, and the crate as crates.io would have it
.PHONY: check-crate
check-crate: | git-checkout
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --quiet --locked --no-deps
	$(CARGO) package --quiet --locked --allow-dirty --target-dir $(TARGET)/crate
	@echo "check-crate: $$($(CARGO) package --list --allow-dirty | wc -l) files"

## check-readme  compile the programs in README.md and docs/programming.md; follow the documents' links
.PHONY: check-readme
check-readme: | need-python need-cxx need-go need-node-packages all
	@$(PYTHON) tools/check_links.py $(filter %.md,$(DOCS))
	@set -e; for program in "README.md c 1" "README.md c 2" \
	    "docs/programming.md c 1" "docs/programming.md c 2" "docs/programming.md c 3"; do \
	    $(PYTHON) tools/readme_code.py $$program | \
	        $(CC) -std=c11 $(WARN) -c -o /dev/null -Iinclude -xc -; \
	done; \
	$(PYTHON) tools/readme_code.py docs/programming.md cpp 1 | \
	    $(CXX) -std=c++17 $(WARN) -c -o /dev/null -Iinclude -xc++ -
	@mkdir -p $(BUILD)/readme && cp examples/go/go.mod $(BUILD)/readme && cd $(BUILD)/readme && \
	    $(GO_RUN) mod edit -replace=libhandoff/handoff=$(HERE)/bindings/go
	@set -e; for program in "python app.py" "go main.go" "js server.js"; do set -- $$program; \
	    $(PYTHON) tools/readme_code.py README.md $$1 1 > $(BUILD)/readme/$$2; \
	done
	@cd $(BUILD)/readme && $(PYTHON) -m py_compile app.py && $(GO_RUN) vet . && node --check server.js
	@echo "check-readme: a broker and backends, in C and in C++; backends in Python, Go and JavaScript"

# ---- the tree ------------------------------------------------------------------------------------

## clean       remove what was built
.PHONY: clean
clean:
	rm -rf build target bench/target fuzz/target

## help        list the targets
.PHONY: help
help:
	@sed -n 's/^## \([a-z-]*\) *\(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | LC_ALL=C sort | expand -t 26
