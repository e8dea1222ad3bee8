# What targets need beyond a Rust toolchain, gcc, make and Python, and `make deps`, which installs it.
#
# Each rule need-NAME probes for a tool, and fails with one line if it is missing. A target that uses
# the tool has need-NAME as an order-only prerequisite. Only `make deps` installs anything.

NEED  := tools/need
NEEDS := $(shell sed -n 's/^\(need-[a-z-]*\):.*/\1/p' tools/needs.mk)
# Those that only `make check-all` has, and `make deps-all` installs.
ALL_NEEDS := $(filter need-all-%,$(NEEDS))
NEEDS     := $(filter-out need-all-%,$(NEEDS))

.PHONY: deps deps-all $(NEEDS) $(ALL_NEEDS)

# ---- to build and to try -------------------------------------------------------------------------

need-pkg-config:
	@$(NEED) pkg-config pkg-config --version

need-python:
	@$(NEED) python3 $(PYTHON) --version

# ---- to test the library -------------------------------------------------------------------------

need-rust-tools:
	@$(NEED) rust:rustfmt $(CARGO) fmt --version
	@$(NEED) rust:clippy $(CARGO) clippy --version

# The source of the standard library, which ThreadSanitizer needs.
need-rust-src:
	@$(NEED) rust:rust-src sh -c 'test -d "$$(rustc --print sysroot)/lib/rustlib/src/rust"'

need-cxx:
	@$(NEED) g++ $(CXX) --version

need-clang:
	@$(NEED) clang $(CLANG) --version

need-sanitizers: need-clang
	@$(NEED) libclang-rt-dev sh -c \
	    'echo "int main(void){return 0;}" | $(CLANG) $(SANITIZE) -x c - -o /dev/null'

need-cmocka: need-pkg-config
	@$(NEED) libcmocka-dev pkg-config --exists cmocka

need-doctest: need-cxx
	@$(NEED) doctest-dev sh -c \
	    'echo "#include <doctest/doctest.h>" | $(CXX) -E -x c++ - -o /dev/null'

need-valgrind:
	@$(NEED) valgrind valgrind --version

need-strace:
	@$(NEED) strace strace -V

need-cmake:
	@$(NEED) cmake cmake --version

need-groff:
	@$(NEED) groff-base groff --version

need-abigail:
	@$(NEED) abigail-tools abidw --version

need-spin:
	@$(NEED) spin spin -V

need-git:
	@$(NEED) git git --version

# To run a machine with it, and its tools; to become users; to see sockets.
need-systemd:
	@$(NEED) systemd test -x /lib/systemd/systemd
	@$(NEED) util-linux sh -c 'command -v nsenter runuser setpriv unshare'
	@$(NEED) passwd sh -c 'command -v useradd'
	@$(NEED) iproute2 ss -V

# ---- to test and to measure the nginx modules ----------------------------------------------------

need-nginx:
	@$(NEED) nginx nginx -v
	@$(NEED) libnginx-mod-stream test -e /usr/lib/nginx/modules/ngx_stream_module.so

need-nginx-dev: need-nginx
	@$(NEED) nginx-dev test -x $(NGINX_DEV)/configure

need-openssl:
	@$(NEED) libssl-dev test -e /usr/include/openssl/ssl.h
	@$(NEED) openssl openssl version

need-curl:
	@$(NEED) curl curl --version

need-wrk:
	@$(NEED) wrk sh -c 'command -v wrk'

# ---- to test connections whose TLS the kernel does: tools/vm -------------------------------------

# Its busybox must be a static one, for there is nothing beside it in the machine.
need-vm:
	@$(NEED) qemu-system-x86 qemu-system-x86_64 --version
	@$(NEED) busybox-static sh -c 'test -x /bin/busybox && ! ldd /bin/busybox'
	@$(NEED) mmdebstrap mmdebstrap --version

# ---- to build and to test packages ---------------------------------------------------------------

need-debs: need-nginx-dev
	@$(NEED) dpkg-dev dpkg-buildpackage --version
	@$(NEED) debhelper sh -c 'command -v dh'
	@$(NEED) dh-python sh -c 'command -v dh_python3'

need-deb-tests:
	@$(NEED) lintian lintian --version
	@$(NEED) mmdebstrap mmdebstrap --version

need-spec-tests:
	@$(NEED) rpm rpmbuild --version
	@$(NEED) shellcheck shellcheck --version

# ---- to test other targets: tools/targets --------------------------------------------------------

# Whether a program of another processor or C library can be made.
CAN_MAKE = sh -c 'echo "int main(void){return 0;}" | $$1 -x c - -o /dev/null' sh
# Whether Rust has its standard library for a target.
CAN_MAKE_RUST = sh -c 'ls "$$(rustc --print target-libdir --target $$1)"/libstd-*' sh

# What the short form needs.
need-targets:
	@$(NEED) rust-target:x86_64-unknown-linux-musl $(CAN_MAKE_RUST) x86_64-unknown-linux-musl
	@$(NEED) rust-target:i686-unknown-linux-gnu $(CAN_MAKE_RUST) i686-unknown-linux-gnu
	@$(NEED) gcc-i686-linux-gnu i686-linux-gnu-gcc --version
	@$(NEED) libc6-dev-i386-cross $(CAN_MAKE) i686-linux-gnu-gcc
	@$(NEED) libc6-i386 test -e /lib/ld-linux.so.2
	@$(NEED) lib32gcc-s1 test -e /usr/lib32/libgcc_s.so.1

need-all-targets:
	@$(NEED) musl-tools musl-gcc --version
	@$(NEED) qemu-user qemu-s390x --version
	@$(NEED) qemu-system-arm qemu-system-aarch64 --version
	@set -e; for row in armv7-unknown-linux-gnueabihf/arm-linux-gnueabihf/armhf \
	    aarch64-unknown-linux-gnu/aarch64-linux-gnu/arm64 \
	    riscv64gc-unknown-linux-gnu/riscv64-linux-gnu/riscv64 \
	    s390x-unknown-linux-gnu/s390x-linux-gnu/s390x; do \
	    rust=$${row%%/*}; gnu=$${row#*/}; debian=$${gnu#*/}; gnu=$${gnu%/*}; \
	    $(NEED) rust-target:$$rust $(CAN_MAKE_RUST) $$rust; \
	    $(NEED) gcc-$$gnu $$gnu-gcc --version; \
	    $(NEED) libc6-dev-$$debian-cross $(CAN_MAKE) $$gnu-gcc; \
	done

need-all-msrv:
	@$(NEED) rust-toolchain:$(MSRV) rustc +$(MSRV) --version

# ---- to compare with other ways ------------------------------------------------------------------

need-peers: need-pkg-config need-nginx need-strace
	@$(NEED) libuv1-dev pkg-config --exists libuv
	@$(NEED) libglib2.0-dev pkg-config --exists gio-unix-2.0
	@$(NEED) nodejs node --version

# ---- all of it -----------------------------------------------------------------------------------

ASK_NEEDS = MAKEFLAGS= $(SUBMAKE) -s --no-print-directory $(MAKEOVERRIDES) $(NEEDS)

## deps        install what the tests need with apt-get, as root, and with rustup
deps:
	@set -e; missing=$$($(ASK_NEEDS) NEED='$(NEED) --name'); \
	    if [ -n "$$missing" ]; then tools/deps $$missing; $(ASK_NEEDS); fi; \
	    echo 'deps: everything that the tests need is installed'

## deps-all    and what only `make check-all` needs: compilers and machines of other processors
deps-all: deps
	@set -e; missing=$$($(ASK_NEEDS) $(ALL_NEEDS) NEED='$(NEED) --name'); \
	    if [ -n "$$missing" ]; then tools/deps $$missing; $(ASK_NEEDS) $(ALL_NEEDS); fi; \
	    echo 'deps-all: everything that check-all needs is installed'

# With -j, what `make deps check` tests waits for what it installs.
ifneq ($(filter deps deps-all,$(MAKECMDGOALS)),)
$(NEEDS): | deps
endif
ifneq ($(filter deps-all,$(MAKECMDGOALS)),)
$(ALL_NEEDS): | deps-all
endif
