# Packages for distributions. packaging/debian/README.source says how those of Debian are made.

DEBS     := $(BUILD)/deb
DEB_ROOT := $(BUILD)/deb-root

.PHONY: deb deb-root check-deb check-specs

## deb         build the Debian packages from the tarball of `make dist`, without a network, in build/deb
deb: dist | $(DEB_NEEDS)
	@packaging/deb $(DIST) $(DEBS)

# A root of this machine's Debian to install them into, once.
deb-root: | need-deb-tests
	@packaging/deb-root $(DEB_ROOT)

## check-deb   the Debian packages: lintian; installed, used, upgraded, purged; the guide with them
check-deb: deb deb-root | need-debs need-deb-tests need-systemd need-python
	@$(PYTHON) -B packaging/check-deb $(DEBS) $(DEB_ROOT)

## check-specs the RPM spec and the APKBUILD; PACKAGES_BUILD=1: also builds them
check-specs: dist | need-spec-tests
	@VERSION='$(VERSION)' packaging/check-specs $(DIST) $(BUILD)/check-specs
