# The source tarball, and what must hold before a release. docs/release.md has the steps.

DIST := $(BUILD)/dist/libhandoff-$(VERSION).tar.gz

.PHONY: dist check-dist

## dist        make the source tarball, with the crates that a build needs, in build/dist
dist: | need-git
	@CARGO='$(CARGO)' packaging/dist $(DIST)
	@echo "dist: $(DIST), $$(stat -c %s $(DIST)) bytes"

## check-dist  the tarball and its offline builds give the same bytes everywhere
check-dist: dist | need-python
	@MAKE='$(SUBMAKE)' CARGO='$(CARGO)' PYTHON='$(PYTHON)' SHARED='$(SHARED)' CC='$(CC)' AR='$(AR)' \
	    LD='$(LD)' OBJCOPY='$(OBJCOPY)' packaging/check-dist $(DIST) $(BUILD)/check-dist
