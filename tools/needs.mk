# What targets need beyond a Rust toolchain, gcc, make and Python, and `make deps`, which installs it.
#
# Each rule need-NAME probes for a tool, and fails with one line if it is missing. A target that uses
# the tool has need-NAME as an order-only prerequisite. Only `make deps` installs anything.

NEED  := tools/need
NEEDS := $(shell sed -n 's/^\(need-[a-z-]*\):.*/\1/p' tools/needs.mk)

.PHONY: deps $(NEEDS)

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

# ---- to compare with other ways ------------------------------------------------------------------

need-peers: need-pkg-config need-nginx
	@$(NEED) libuv1-dev pkg-config --exists libuv
	@$(NEED) libglib2.0-dev pkg-config --exists gio-unix-2.0
	@$(NEED) nodejs node --version
	@$(NEED) strace strace -V

# ---- all of it -----------------------------------------------------------------------------------

ASK_NEEDS = MAKEFLAGS= $(SUBMAKE) -s --no-print-directory $(MAKEOVERRIDES) $(NEEDS)

## deps        install what the tests need with apt-get, as root, and with rustup
deps:
	@set -e; missing=$$($(ASK_NEEDS) NEED='$(NEED) --name'); \
	    if [ -n "$$missing" ]; then tools/deps $$missing; $(ASK_NEEDS); fi; \
	    echo 'deps: everything that the tests need is installed'

# With -j, what `make deps check` tests waits for what it installs.
ifneq ($(filter deps,$(MAKECMDGOALS)),)
$(NEEDS): | deps
endif
