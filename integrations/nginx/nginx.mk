# The nginx modules, built by nginx's own configure against the sources of Debian's nginx-dev.

NGINX_DEV     := /usr/share/nginx/src
NGINX_HERE    := $(abspath integrations/nginx)
NGINX_BUILD   := $(BUILD)/nginx
# The same for Debian 13's nginx, with which the tests run too.
NGINX_DEBIAN_13 := $(BUILD)/nginx-debian-13
NGINX_MODULES := $(addprefix $(NGINX_BUILD)/,ngx_http_handoff_module.so ngx_stream_handoff_module.so)
# Where nginx looks for modules, and where Debian keeps the lines that load them.
NGINX_MODULESDIR ?= /usr/lib/nginx/modules
NGINX_LOADDIR    ?= /usr/share/nginx/modules-available
DOCDIR           ?= $(PREFIX)/share/doc/handoff

## nginx       build the nginx modules
.PHONY: nginx
nginx: $(NGINX_BUILD)/stamp

# In a copy: configure writes beside its own files, which belong to the system. Its flags, those
# that Debian's nginx was made with, are an array of bash's.
$(NGINX_BUILD)/configured: integrations/nginx/config integrations/nginx/nginx.mk | need-nginx-dev all
	rm -rf $(NGINX_BUILD)/src && mkdir -p $(NGINX_BUILD) && cp -r $(NGINX_DEV) $(NGINX_BUILD)/src
	cd $(NGINX_BUILD)/src && HANDOFF_CFLAGS="$$($(PC) --cflags handoff)" \
	    HANDOFF_LIBS="$$($(PC) --libs handoff)" HANDOFF_HEADERS="$(abspath $(HEADERS))" \
	    bash -c '. ./conf_flags && ./configure "$${NGX_CONF_FLAGS[@]}" \
	    --with-stream=dynamic --with-stream_ssl_module \
	    --with-cc="$(CC)" --with-cc-opt="$(CFLAGS)" --with-ld-opt="$(LDFLAGS) -Wl,-z,relro,-z,now" \
	    --add-dynamic-module=$(NGINX_HERE)' > configure.log || \
	    { cat $(NGINX_BUILD)/src/configure.log; exit 1; }
	@touch $@

# What is set in the command, such as CFLAGS, is in what configure has written, and would replace it.
$(NGINX_BUILD)/stamp: private MAKEOVERRIDES =
$(NGINX_BUILD)/stamp: $(NGINX_BUILD)/configured $(wildcard integrations/nginx/ngx_*) \
    $(HEADERS)
	$(MAKE) -C $(NGINX_BUILD)/src --no-print-directory -f objs/Makefile \
	    $(addprefix objs/,$(notdir $(NGINX_MODULES)))
	install $(addprefix $(NGINX_BUILD)/src/objs/,$(notdir $(NGINX_MODULES))) $(NGINX_BUILD)
	@touch $@

## install-nginx  install the nginx modules, the lines that load them, and a sample configuration
.PHONY: install-nginx
install-nginx: install-paths nginx
	install -d '$(DESTDIR)$(NGINX_MODULESDIR)' '$(DESTDIR)$(NGINX_LOADDIR)' '$(DESTDIR)$(DOCDIR)'
	install -m 644 $(NGINX_MODULES) '$(DESTDIR)$(NGINX_MODULESDIR)'
	@set -e; for kind in http stream; do \
	    load="$(DESTDIR)$(NGINX_LOADDIR)/mod-$$kind-handoff.conf"; echo "install $$load"; \
	    echo "load_module modules/ngx_$${kind}_handoff_module.so;" | \
	        install -m 644 /dev/stdin "$$load"; \
	done
	install -m 644 integrations/nginx/handoff.conf.sample '$(DESTDIR)$(DOCDIR)/nginx.conf.sample'

## uninstall-nginx  remove what `make install-nginx` with the same variables put there
.PHONY: uninstall-nginx
uninstall-nginx: install-paths
	rm -f $(foreach kind,http stream,'$(DESTDIR)$(NGINX_MODULESDIR)/ngx_$(kind)_handoff_module.so' \
	    '$(DESTDIR)$(NGINX_LOADDIR)/mod-$(kind)-handoff.conf') \
	    '$(DESTDIR)$(DOCDIR)/nginx.conf.sample'
	@[ ! -d '$(DESTDIR)$(DOCDIR)' ] || rmdir --ignore-fail-on-non-empty '$(DESTDIR)$(DOCDIR)'
