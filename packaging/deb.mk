# Packages for distributions. packaging/debian/README.source says how the Debian packages are made.

DEBS := $(BUILD)/deb

.PHONY: deb check-deb

## deb         build the Debian packages, from the tarball of `make dist`, in build/deb
deb: dist | need-debs need-nginx-dev need-python
	@packaging/deb $(DIST) $(DEBS)
