# The source tarball, and what must hold before a release. docs/release.md has the steps.

DIST := $(BUILD)/dist/libhandoff-$(VERSION).tar.gz

.PHONY: dist check-dist git-checkout

# The tarball has the crates of the library, and no others.
git-checkout:
	@[ ! -d vendor ] || { echo 'error: this needs a git checkout, not the tarball' >&2; exit 1; }

## dist        make the source tarball, with the crates that a build needs, in build/dist
dist: | git-checkout need-git
	@CARGO='$(CARGO)' packaging/dist $(DIST)
	@echo "dist: $(DIST), $$(stat -c %s $(DIST)) bytes"

## check-dist  the tarball and its offline builds give the same bytes everywhere
check-dist: dist | need-python
	@MAKE='$(SUBMAKE)' CARGO='$(CARGO)' PYTHON='$(PYTHON)' SHARED='$(SHARED)' CC='$(CC)' AR='$(AR)' \
	    LD='$(LD)' OBJCOPY='$(OBJCOPY)' packaging/check-dist $(DIST) $(BUILD)/check-dist

## release-check  what must hold before a release, one line for each item that does not
.PHONY: release-check
release-check: check-needs $(ALL_NEEDS)
	@MAKE='$(SUBMAKE)' CARGO='$(CARGO)' CC='$(CC)' UNRELEASED='$(UNRELEASED)' \
	    LOGS=$(BUILD)/release-check packaging/release-check $(CHECKS) $(ONLY_ALL)
