# Installing, and checking what is installed.

MAN_BUILD  := $(BUILD)/man
PKGCONFDIR := $(LIBDIR)/pkgconfig
CMAKEDIR   := $(LIBDIR)/cmake/handoff
# Where gdb(1) looks for the debug symbols of a library, by its debug link.
DEBUGDIR   := $(LIBDIR)/.debug
HERE       := $(abspath .)
# Examples, as documentation: the administrator puts them where systemd looks.
UNITS      := $(wildcard packaging/systemd/*)
UNITSDIR   := $(DOCDIR)/systemd
# Each goes where the tree has it, so that the links between them lead somewhere.
DOCS       := $(wildcard *.md docs/*.md integrations/*/*.md bindings/*/README.md \
    examples/*/README.md $(filter-out %/test_tokens.py,$(wildcard examples/python/tokens/*)) \
    examples/*.c examples/*.cc examples/python_peer.py examples/python/*_backend.py examples/go/* examples/node/* \
    bench/README.md bench/results/*.md bench/results/*.svg)

# Packages have a place of their own for these.
LICENSES   := $(wildcard LICENSE-*)

# The path to a directory from another one. realpath(1) can't do it everywhere: BusyBox.
RELATIVE = $(PYTHON) -c 'import os.path, sys; print(os.path.relpath(*sys.argv[1:]))'

# Fills in a template: the paths as a program at run time sees them, without DESTDIR.
SUBSTITUTE = sed -e 's|@PREFIX@|$(PREFIX)|' \
    -e 's|@LIBDIR@|$(patsubst $(PREFIX)/%,$${prefix}/%,$(LIBDIR))|' \
    -e 's|@INCLUDEDIR@|$(patsubst $(PREFIX)/%,$${prefix}/%,$(INCLUDEDIR))|' \
    -e "s|@INCLUDE_FROM_LIB@|$$($(RELATIVE) '$(INCLUDEDIR)' '$(LIBDIR)')|" \
    -e 's|@SHARED@|$(SHARED)|; s|@SONAME@|$(SONAME)|' \
    -e 's|@VERSION@|$(VERSION)|; s|@MAJOR@|$(firstword $(subst ., ,$(VERSION)))|' \
    -e 's|@MINOR@|$(word 2,$(subst ., ,$(VERSION)))|'

all: $(MAN_BUILD)/stamp

# A page for each call and each type, the overview, and the command.
$(MAN_BUILD)/stamp: $(HEADERS) docs/man/handoff.1 docs/man/handoff.7 tools/man.py tools/header.py Cargo.toml \
    | need-python
	@rm -rf $(MAN_BUILD) && mkdir -p $(addprefix $(MAN_BUILD)/man,1 3 7)
	$(PYTHON) tools/man.py include $(VERSION) $(MAN_BUILD)/man3
	@for section in 1 7; do sed 's|@VERSION@|$(VERSION)|' docs/man/handoff.$$section \
	    > $(MAN_BUILD)/man$$section/handoff.$$section || exit 1; done
	@touch $@

.PHONY: install install-docs install-paths uninstall

install-paths:
	@packaging/check-paths 'PREFIX=$(PREFIX)' 'BINDIR=$(BINDIR)' 'LIBDIR=$(LIBDIR)' \
	    'INCLUDEDIR=$(INCLUDEDIR)' 'MANDIR=$(MANDIR)' 'DOCDIR=$(DOCDIR)'

## install     install below PREFIX (/usr/local); also BINDIR, LIBDIR, INCLUDEDIR, MANDIR, DOCDIR, DESTDIR
install: install-paths all install-docs
	install -d '$(DESTDIR)$(BINDIR)' '$(DESTDIR)$(LIBDIR)' '$(DESTDIR)$(INCLUDEDIR)/handoff' '$(DESTDIR)$(PKGCONFDIR)' \
	    '$(DESTDIR)$(CMAKEDIR)' $(if $(KEEP_DEBUG),,'$(DESTDIR)$(DEBUGDIR)') \
	    '$(DESTDIR)$(MANDIR)/man1' '$(DESTDIR)$(MANDIR)/man3' '$(DESTDIR)$(MANDIR)/man7'
	install -m 755 $(COMMAND) '$(DESTDIR)$(BINDIR)'
	install -m 755 $(LIB)/$(SHARED) '$(DESTDIR)$(LIBDIR)'
	$(if $(KEEP_DEBUG),,install -m 644 $(LIB)/$(SHARED).debug '$(DESTDIR)$(DEBUGDIR)')
	ln -sf $(SHARED) '$(DESTDIR)$(LIBDIR)/$(SONAME)'
	ln -sf $(SONAME) '$(DESTDIR)$(LIBDIR)/libhandoff.so'
	install -m 644 $(LIB)/libhandoff.a '$(DESTDIR)$(LIBDIR)'
	install -m 644 $(wildcard include/*.h*) '$(DESTDIR)$(INCLUDEDIR)'
	install -m 644 $(wildcard include/handoff/*.h) '$(DESTDIR)$(INCLUDEDIR)/handoff'
	@set -e; for file in '$(PKGCONFDIR)/handoff.pc' '$(CMAKEDIR)/handoff-config.cmake' \
	    '$(CMAKEDIR)/handoff-config-version.cmake'; do \
	    echo "packaging/$${file##*/}.in > $(DESTDIR)$$file"; \
	    $(SUBSTITUTE) "packaging/$${file##*/}.in" | install -m 644 /dev/stdin "$(DESTDIR)$$file"; \
	done
	install -m 644 $(MAN_BUILD)/man1/handoff.1 '$(DESTDIR)$(MANDIR)/man1'
	install -m 644 $(MAN_BUILD)/man3/*.3 '$(DESTDIR)$(MANDIR)/man3'
	install -m 644 $(MAN_BUILD)/man7/handoff.7 '$(DESTDIR)$(MANDIR)/man7'
	install -m 644 $(LICENSES) '$(DESTDIR)$(DOCDIR)'
	install -d '$(DESTDIR)$(UNITSDIR)'
	@set -e; for unit in $(notdir $(UNITS)); do \
	    echo "packaging/systemd/$$unit > $(DESTDIR)$(UNITSDIR)/$$unit"; \
	    sed 's|/usr/local/bin/handoff|$(BINDIR)/handoff|' "packaging/systemd/$$unit" | \
	        install -m 644 /dev/stdin '$(DESTDIR)$(UNITSDIR)'/"$$unit"; \
	done

install-docs: install-paths
	@echo "documents > $(DESTDIR)$(DOCDIR)"
	@set -e; for doc in $(DOCS); do install -D -m 644 "$$doc" '$(DESTDIR)$(DOCDIR)'/"$$doc"; done

# Of the directories only the library's own go, and only if they are empty: whether somebody else
# wants the others, such as pkgconfig, cannot be known.
## uninstall   remove what `make install` with the same variables put there
uninstall: install-paths $(MAN_BUILD)/stamp
	rm -f '$(DESTDIR)$(BINDIR)/handoff' '$(DESTDIR)$(LIBDIR)/$(SHARED)' '$(DESTDIR)$(LIBDIR)/$(SONAME)' \
	    '$(DESTDIR)$(DEBUGDIR)/$(SHARED).debug' \
	    '$(DESTDIR)$(LIBDIR)/libhandoff.so' '$(DESTDIR)$(LIBDIR)/libhandoff.a' \
	    $(patsubst include/%,'$(DESTDIR)$(INCLUDEDIR)/%',$(wildcard include/*.h* include/handoff/*.h)) \
	    '$(DESTDIR)$(PKGCONFDIR)/handoff.pc' \
	    '$(DESTDIR)$(CMAKEDIR)/handoff-config.cmake' \
	    '$(DESTDIR)$(CMAKEDIR)/handoff-config-version.cmake' \
	    '$(DESTDIR)$(MANDIR)/man1/handoff.1' '$(DESTDIR)$(MANDIR)/man7/handoff.7' \
	    $(foreach file,$(DOCS) $(LICENSES),'$(DESTDIR)$(DOCDIR)/$(file)') \
	    $(patsubst packaging/systemd/%,'$(DESTDIR)$(UNITSDIR)/%',$(UNITS))
	@cd $(MAN_BUILD)/man3 && for page in *.3; do rm -f '$(DESTDIR)$(MANDIR)/man3/'"$$page"; done
	@[ ! -d '$(DESTDIR)$(DOCDIR)' ] || cd '$(DESTDIR)$(DOCDIR)' && for directory in \
	    $(filter-out ./,$(sort $(dir $(DOCS)))); do \
	    [ ! -d $$directory ] || rmdir -p --ignore-fail-on-non-empty $$directory; done
	@for directory in '$(DESTDIR)$(CMAKEDIR)' '$(DESTDIR)$(INCLUDEDIR)/handoff' \
	    '$(DESTDIR)$(DEBUGDIR)' '$(DESTDIR)$(UNITSDIR)' '$(DESTDIR)$(DOCDIR)'; do \
	    [ ! -d "$$directory" ] || rmdir --ignore-fail-on-non-empty "$$directory"; done

# ---- checks --------------------------------------------------------------------------------------

.PHONY: check-header check-symbols check-abi abi-baseline check-install check-man

## check-header    the header is fresh, whole, and clean in every C and C++ from C99 and C++11
check-header: all $(FRESH_HEADERS)/handoff.h | need-cxx need-clang need-python
	@cd $(FRESH_HEADERS) && for header in *.h */*.h; do cmp "$(HERE)/include/$$header" "$$header" || \
	    { echo 'error: include/ is not what cbindgen makes: run make header' >&2; exit 1; }; done
	@CC='$(CC)' CXX='$(CXX)' CLANG='$(CLANG)' PYTHON='$(PYTHON)' LIB=$(LIB) BUILD=$(BUILD) \
	    packaging/check-header

## check-symbols   what the built libraries export, need and hold
check-symbols: all
	@CC='$(CC)' packaging/check-symbols $(LIB)/$(SHARED) $(LIB)/libhandoff.a $(SONAME) $(HERE)

## check-abi       the C ABI against its baseline in packaging/abi: additions only
check-abi: all | need-abigail need-python
	@CC='$(CC)' $(PYTHON) packaging/check-abi $(LIB)/$(SHARED) $(SONAME)
	@CC='$(CC)' $(PYTHON) packaging/test-abi $(LIB)/$(SHARED) $(LIB)/libhandoff.a $(SONAME)

## abi-baseline    make that baseline anew; CHANGELOG.md says why
abi-baseline: all | need-abigail need-python
	@CC='$(CC)' $(PYTHON) packaging/check-abi --renew $(LIB)/$(SHARED) $(SONAME)

## check-man       the manual pages are there for every call, and without a warning
check-man: $(MAN_BUILD)/stamp | need-groff
	@packaging/check-man $(MAN_BUILD)

## check-install   an installed copy serves programs outside the tree, and uninstalls
check-install: all | need-cxx need-clang need-pkg-config need-cmake need-openssl
	@MAKE='$(SUBMAKE)' CC='$(CC)' CXX='$(CXX)' c-tests/installed/check.sh $(BUILD)/installed
