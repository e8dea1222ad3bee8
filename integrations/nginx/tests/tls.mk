# The tests of connections whose TLS nginx terminates: in the machine of tools/vm, as the kernel must
# do the TLS, with the nginx and the OpenSSL of each root.

NGINX_TLS_TEST  ?= tls tls_records tls_ends tls_found tls_stream tls_failures tls_many
NGINX_TLS_ROOTS ?= this-machine debian-13
# 1: with all sizes, 2000 connections, and 100 MB.
NGINX_TLS_FULL  ?= 0
# Seconds that a machine may take for all of them.
NGINX_TLS_LIMIT ?= $(if $(filter 1,$(NGINX_TLS_FULL)),3600,900)

# The modules for Debian 13's nginx, against its sources.
.PHONY: nginx-debian-13
nginx-debian-13: | need-python need-vm all
	@$(VM) --root debian-13
	@$(MAKE) --no-print-directory nginx NGINX_BUILD=$(NGINX_DEBIAN_13) \
	    NGINX_DEV=$(BUILD)/vm/trixie/usr/share/nginx/src

NGINX_TLS_MODULES_this-machine := $(NGINX_BUILD)
NGINX_TLS_MODULES_debian-13    := $(NGINX_DEBIAN_13)
# In each root Debian's nginx has its module for streams at the same place.
nginx_tls_load = /usr/lib/nginx/modules/ngx_stream_module.so $(NGINX_MODULES:$(NGINX_BUILD)/%=$(1)/%)

$(NGINX_TESTS)/capture: integrations/nginx/tests/capture.c
	mkdir -p $(@D) && $(CC) -std=c11 $(CFLAGS) $(WARN) $< -o $@

# As for check-tls: with one root only, but in the full form, the tests for which it does not matter
# how the module comes by the keys.
NGINX_TLS_ONLY_this-machine := tls_ends tls_many
NGINX_TLS_ONLY_debian-13    := tls_failures tls_stream
# What this machine's nginx may be too old for.
NGINX_TLS_NEWER_debian-13 := tls_pass
nginx_tls_tests = $(if $(filter 1,$(NGINX_TLS_FULL))$(filter-out file,$(origin NGINX_TLS_TEST)),\
    $(NGINX_TLS_TEST),$(filter-out $(foreach root,$(filter-out $*,$(NGINX_TLS_ROOTS)),\
    $(NGINX_TLS_ONLY_$(root))),$(NGINX_TLS_TEST))) \
    $(if $(filter file,$(origin NGINX_TLS_TEST)),$(NGINX_TLS_NEWER_$*))

## check-nginx-tls  nginx's TLS in an emulated machine; NGINX_TLS_TEST=tls_ends: that part
.PHONY: check-nginx-tls $(NGINX_TLS_ROOTS:%=check-nginx-tls-with-%)
check-nginx-tls: $(NGINX_TLS_ROOTS:%=check-nginx-tls-with-%)

$(NGINX_TLS_ROOTS:%=check-nginx-tls-with-%): check-nginx-tls-with-%: \
    nginx nginx-debian-13 $(addprefix $(NGINX_TESTS)/,backend capture) \
    | need-python need-vm need-openssl need-curl
	@echo 'check-nginx-tls: with $*'
	@cd integrations/nginx/tests && $(PYTHON) ../../../tools/vm/vm.py --limit $(NGINX_TLS_LIMIT) \
	    --root $(root_of) --kernel "$(kernel_of)" -- env \
	    $(NGINX_RUN) NGINX_LOAD="$(call nginx_tls_load,$(NGINX_TLS_MODULES_$(root_of)))" \
	    NGINX_TESTS_FULL=$(NGINX_TLS_FULL) \
	    python3 -m unittest $(addprefix test_,$(nginx_tls_tests))
