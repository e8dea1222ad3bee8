# What targets need beyond a Rust toolchain, gcc, make and Python, and `make deps`, which installs it.
#
# Each rule need-NAME probes for a tool, and fails with one line if it is missing. A target that uses
# the tool has need-NAME as an order-only prerequisite. Only `make deps` installs anything.

NEED  := tools/need
NEEDS := $(shell sed -n 's/^\(need-[a-z-]*\):.*/\1/p' tools/needs.mk)
# Those that only `make check-all` has, and `make deps-all` installs.
ALL_NEEDS := $(filter need-all-%,$(NEEDS))
NEEDS     := $(filter-out need-all-%,$(NEEDS))

.PHONY: deps deps-all deps-deb $(NEEDS) $(ALL_NEEDS)

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

# ---- to test the bindings ------------------------------------------------------------------------

need-go:
	@$(NEED) golang-go $(GO) version

# Node's packages are younger than what names them.
need-node-packages:
	@$(NEED) nodejs $(NODE) --version
	@$(NEED) npm $(NPM) --version
	@$(NEED) npm:$(NODE_PACKAGE) test $(NODE_PACKAGE)/node_modules/.package-lock.json \
	    -nt $(NODE_PACKAGE)/package-lock.json

# ---- to test and to measure the nginx modules ----------------------------------------------------

need-nginx:
	@$(NEED) nginx nginx -v
	@$(NEED) libnginx-mod-stream test -e /usr/lib/nginx/modules/ngx_stream_module.so

need-nginx-dev: need-nginx
	@$(NEED) nginx-dev test -x $(NGINX_DEV)/configure

# ---- to build and to test the Apache module ------------------------------------------------------

need-apache:
	@$(NEED) apache2 test -x /usr/sbin/apache2

need-apache-dev: need-apache
	@$(NEED) apache2-dev sh -c 'command -v $(APXS)'

# ---- to test both --------------------------------------------------------------------------------

need-openssl:
	@$(NEED) libssl-dev test -e /usr/include/openssl/ssl.h
	@$(NEED) openssl openssl version

need-curl:
	@$(NEED) curl curl --version

need-wrk:
	@$(NEED) wrk sh -c 'command -v wrk'

# ---- to test the package for Python --------------------------------------------------------------

need-asgi:
	@set -e; for name in uvicorn fastapi httptools websockets wsproto; do \
	    $(NEED) python3-$$name $(DEBIAN_PYTHON) -c "import $$name"; done

need-mypy:
	@$(NEED) mypy $(DEBIAN_PYTHON) -m mypy --version

need-wheel:
	@$(NEED) python3-pip $(DEBIAN_PYTHON) -m pip --version
	@$(NEED) python3-wheel $(DEBIAN_PYTHON) -c 'import setuptools, wheel'
	@$(NEED) python3-venv $(DEBIAN_PYTHON) -c 'import ensurepip'

# ---- to test connections whose TLS the kernel does: tools/vm -------------------------------------

# Its busybox must be a static one, for there is nothing beside it in the machine.
need-vm:
	@$(NEED) qemu-system-x86 qemu-system-x86_64 --version
	@$(NEED) busybox-static sh -c 'test -x /bin/busybox && ! ldd /bin/busybox'
	@$(NEED) mmdebstrap mmdebstrap --version

# ---- to build and to test packages ---------------------------------------------------------------

# What `make deb` needs, and `make deps-deb` installs.
DEB_NEEDS := need-pkg-config need-python need-git need-debs

# dpkg-buildpackage(1) takes build-essential for granted, and asks for it.
need-debs: need-nginx-dev need-apache-dev
	@$(NEED) build-essential test -e /usr/share/build-essential/list
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

need-msrv:
	@$(NEED) rust-toolchain:$(MSRV) rustc +$(MSRV) --version

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

# ---- to compare with other ways ------------------------------------------------------------------

need-peers: need-pkg-config need-nginx need-strace
	@$(NEED) libuv1-dev pkg-config --exists libuv
	@$(NEED) libglib2.0-dev pkg-config --exists gio-unix-2.0
	@$(NEED) nodejs node --version

# ---- all of it -----------------------------------------------------------------------------------

ASK = MAKEFLAGS= $(SUBMAKE) -s --no-print-directory $(MAKEOVERRIDES)
# $(call install,NEEDS,WHO): what is missing of these.
install = @set -e; missing=$$($(ASK) $(1) NEED='$(NEED) --name'); \
    if [ -n "$$missing" ]; then tools/deps $$missing; $(ASK) $(1); fi; \
    echo '$@: everything that $(2) needs is installed'

## deps        install what the tests need with apt-get, as root, and with rustup and npm
deps:
	$(call install,$(NEEDS),make check)

## deps-all    and what only `make check-all` needs: compilers and machines of other processors
deps-all: deps
	$(call install,$(ALL_NEEDS),make check-all)

## deps-deb    only what `make deb` needs
deps-deb:
	$(call install,$(DEB_NEEDS),make deb)

# With -j, what `make deps check` tests waits for what it installs.
ifneq ($(filter deps deps-all,$(MAKECMDGOALS)),)
$(NEEDS): | deps
endif
ifneq ($(filter deps-all,$(MAKECMDGOALS)),)
$(ALL_NEEDS): | deps-all
endif
ifneq ($(filter deps-deb,$(MAKECMDGOALS)),)
$(DEB_NEEDS) need-nginx-dev need-nginx need-apache-dev need-apache: | deps-deb
endif
