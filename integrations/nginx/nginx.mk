# The nginx modules, built by nginx's own configure against the sources of Debian's nginx-dev.

NGINX_DEV     := /usr/share/nginx/src
NGINX_HERE    := $(abspath integrations/nginx)
NGINX_BUILD   := $(BUILD)/nginx
NGINX_MODULES := $(addprefix $(NGINX_BUILD)/,ngx_http_handoff_module.so ngx_stream_handoff_module.so)
# Where nginx looks for modules, and where Debian keeps the lines that load them.
NGINX_MODULESDIR ?= /usr/lib/nginx/modules
NGINX_CONFDIR    ?= /etc/nginx
NGINX_DOCDIR     ?= $(PREFIX)/share/doc/handoff

.PHONY: need-nginx
need-nginx:
	@$(NEED) nginx nginx -v
	@$(NEED) libnginx-mod-stream test -e /usr/lib/nginx/modules/ngx_stream_module.so
	@$(NEED) nginx-dev test -x $(NGINX_DEV)/configure

## nginx       build the nginx modules
.PHONY: nginx
nginx: $(NGINX_BUILD)/stamp

# In a copy: configure writes beside its own files, which belong to the system. Its flags, those
# that Debian's nginx was made with, are an array of bash's.
$(NGINX_BUILD)/configured: integrations/nginx/config integrations/nginx/nginx.mk | all need-nginx
	rm -rf $(NGINX_BUILD)/src && mkdir -p $(NGINX_BUILD) && cp -r $(NGINX_DEV) $(NGINX_BUILD)/src
	cd $(NGINX_BUILD)/src && HANDOFF_CFLAGS="$$($(PC) --cflags handoff)" \
	    HANDOFF_LIBS="$$($(PC) --libs handoff)" bash -c '. ./conf_flags && ./configure \
	    "$${NGX_CONF_FLAGS[@]}" --with-stream=dynamic --with-cc="$(CC)" \
	    --with-cc-opt="$(CFLAGS)" --with-ld-opt="$(LDFLAGS) -Wl,-z,relro,-z,now" \
	    --add-dynamic-module=$(NGINX_HERE)' > configure.log || \
	    { cat $(NGINX_BUILD)/src/configure.log; exit 1; }
	@touch $@

$(NGINX_BUILD)/stamp: $(NGINX_BUILD)/configured $(wildcard integrations/nginx/ngx_*) \
    include/handoff.h
	$(MAKE) -C $(NGINX_BUILD)/src --no-print-directory -f objs/Makefile \
	    $(addprefix objs/,$(notdir $(NGINX_MODULES)))
	install $(addprefix $(NGINX_BUILD)/src/objs/,$(notdir $(NGINX_MODULES))) $(NGINX_BUILD)
	@touch $@
