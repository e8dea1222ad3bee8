# mod_handoff, the Apache module, built against Debian's apache2-dev.

APXS         ?= apxs
APACHE_BUILD := $(BUILD)/apache
APACHE_MODULE := $(APACHE_BUILD)/mod_handoff.so
# Where Apache looks for modules, and where Debian keeps the lines that load them.
APACHE_MODULESDIR ?= $(shell $(APXS) -q LIBEXECDIR)
APACHE_LOADDIR    ?= /etc/apache2/mods-available

## apache      build the Apache module
.PHONY: apache
apache: $(APACHE_MODULE)

# Apache's headers are the system's: what they would be warned about is not ours.
$(APACHE_MODULE): $(wildcard integrations/apache/*.[ch]) integrations/apache/apache.mk $(HEADERS) \
    | need-apache-dev need-pkg-config all
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -shared -fPIC $(CFLAGS) $(WARN) $$($(APXS) -q EXTRA_CPPFLAGS) \
	    -isystem $$($(APXS) -q INCLUDEDIR) -isystem $$($(APXS) -q APR_INCLUDEDIR) \
	    $(filter %.c,$^) -o $@ $(LDFLAGS) -Wl,-z,relro,-z,now $$($(PC) --cflags --libs handoff)

## install-apache  install the Apache module and the line that loads it
.PHONY: install-apache
install-apache: apache
	install -d '$(DESTDIR)$(APACHE_MODULESDIR)' '$(DESTDIR)$(APACHE_LOADDIR)'
	install -m 644 $(APACHE_MODULE) '$(DESTDIR)$(APACHE_MODULESDIR)'
	echo 'LoadModule handoff_module $(APACHE_MODULESDIR)/mod_handoff.so' | \
	    install -m 644 /dev/stdin '$(DESTDIR)$(APACHE_LOADDIR)/handoff.load'

## uninstall-apache  remove what `make install-apache` with the same variables put there
.PHONY: uninstall-apache
uninstall-apache:
	rm -f '$(DESTDIR)$(APACHE_MODULESDIR)/mod_handoff.so' \
	    '$(DESTDIR)$(APACHE_LOADDIR)/handoff.load'
