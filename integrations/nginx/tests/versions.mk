# The tests of the nginx modules with other versions of nginx than this machine's.

# What is tested with each: all in `make check-all`. "pass" is about what nginx has from 1.25.5 on.
NGINX_VERSIONS_TEST ?= details pass

# What is tested with another event method than epoll.
NGINX_POLL_TEST ?= copies pass

NGINX_126 := $(NGINX_DEBIAN_13)
NGINX_128 := $(BUILD)/nginx-1.28
# The package of the Rust registry that has nginx's sources, whose version is its own.
NGINX_SRC := 1.28.5+1.28.3

## check-nginx-versions  the nginx modules with nginx 1.26 of Debian 13, and 1.28 from its sources, also with poll
.PHONY: check-nginx-versions
check-nginx-versions: nginx-debian-13 $(NGINX_126)/nginx $(NGINX_128)/nginx \
    $(NGINX_TEST_PROGRAMS)
	@echo 'check-nginx-versions: Debian 13'
	@$(MAKE) --no-print-directory check-nginx NGINX_TEST="$(NGINX_VERSIONS_TEST)" \
	    NGINX_DEV=$(DEBIAN_13)/usr/share/nginx/src NGINX_BUILD=$(NGINX_126) \
	    NGINX_PROGRAM=$(NGINX_126)/nginx \
	    NGINX_LOAD="$(DEBIAN_13)/usr/lib/nginx/modules/ngx_stream_module.so \
	        $(NGINX_126)/ngx_http_handoff_module.so $(NGINX_126)/ngx_stream_handoff_module.so"
	@echo 'check-nginx-versions: $(NGINX_SRC), with the modules in it'
	@$(MAKE) --no-print-directory check-nginx NGINX_TEST="$(NGINX_VERSIONS_TEST)" \
	    NGINX_PROGRAM=$(NGINX_128)/nginx NGINX_LOAD=
	@echo 'check-nginx-versions: $(NGINX_SRC), "use poll;"'
	@NGINX_EVENTS="use poll;" $(MAKE) --no-print-directory check-nginx \
	    NGINX_TEST="$(NGINX_POLL_TEST)" NGINX_PROGRAM=$(NGINX_128)/nginx NGINX_LOAD=

# Debian 13's nginx with Debian 13's libraries, whatever this machine has.
DEBIAN_13 := $(BUILD)/vm/trixie
DEBIAN_13_LIBRARIES := $(DEBIAN_13)/usr/lib/$(shell uname -m)-linux-gnu

$(NGINX_126)/nginx: integrations/nginx/tests/versions.mk | need-vm need-python
	@$(VM) --root debian-13 -- true
	@mkdir -p $(@D)
	@{ echo '#!/bin/sh'; \
	   echo 'exec $(DEBIAN_13_LIBRARIES)/ld-linux-*.so.? --library-path $(LIB):$(DEBIAN_13_LIBRARIES) \'; \
	   echo '    $(DEBIAN_13)/usr/sbin/nginx "$$@"'; } > $@ && chmod +x $@

# The modules are compiled in, as with --add-module. Without optimisation: that takes half the time.
$(NGINX_128)/nginx: $(wildcard integrations/nginx/ngx_*) integrations/nginx/config \
    integrations/nginx/tests/versions.mk $(HEADERS) | all
	@mkdir -p $(NGINX_128)/package && touch $(NGINX_128)/package/lib.rs
	@printf '%s\n' '[package]' 'name = "package"' 'version = "0.0.0"' '[lib]' 'path = "lib.rs"' \
	    '[workspace]' '[dependencies]' 'nginx-src = "=$(NGINX_SRC)"' > $(NGINX_128)/package/Cargo.toml
	@cargo vendor --quiet --manifest-path $(NGINX_128)/package/Cargo.toml $(NGINX_128)/vendor > /dev/null
	@rm -rf $(NGINX_128)/src && cp -r $(NGINX_128)/vendor/nginx-src/nginx $(NGINX_128)/src
	@cd $(NGINX_128)/src && HANDOFF_CFLAGS="$$($(PC) --cflags handoff)" \
	    HANDOFF_LIBS="$$($(PC) --libs handoff)" auto/configure --with-cc-opt=-O0 --with-debug \
	    --with-compat --with-threads --with-http_ssl_module --with-http_v2_module \
	    --with-http_v3_module --with-http_stub_status_module --with-http_realip_module \
	    --with-http_auth_request_module --with-http_dav_module --with-http_slice_module \
	    --with-stream --with-stream_ssl_module --with-stream_ssl_preread_module \
	    --with-stream_realip_module --with-poll_module --with-select_module --add-module=$(NGINX_HERE) > configure.log || \
	    { cat configure.log; exit 1; }
	@$(MAKE) -C $(NGINX_128)/src --no-print-directory -j$$(nproc) > $(NGINX_128)/make.log 2>&1 || \
	    { tail -n 20 $(NGINX_128)/make.log; exit 1; }
	@cp $(NGINX_128)/src/objs/nginx $@
