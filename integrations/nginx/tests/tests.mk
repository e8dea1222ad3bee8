# The tests of the nginx modules: Python that starts nginx, a backend of its own, and clients.

NGINX_TESTS := $(BUILD)/nginx-tests
NGINX_TEST  ?= http head parsed accel details stream failures copies events backends notices queue status metadata socket_state \
    kernel

# Which nginx, and what it loads, in this order.
NGINX_PROGRAM ?= nginx
NGINX_LOAD  ?= /usr/lib/nginx/modules/ngx_stream_module.so $(NGINX_MODULES)

# Seconds after which a test that hangs is ended.
NGINX_LIMIT ?= 600
NGINX_RUN    = LD_LIBRARY_PATH=$(LIB) PYTHONPATH=$(HERE)/bindings/python \
    NGINX_TESTS_BUILD=$(NGINX_TESTS) \
    NGINX_PROGRAM=$(NGINX_PROGRAM) NGINX_LOAD="$(NGINX_LOAD)" \
    NGINX_TESTS_LIMIT=$(NGINX_LIMIT) PYTHONDONTWRITEBYTECODE=1

# $(call nginx_program,LIBRARIES): a program of the tests, built as a user's would be.
nginx_program = mkdir -p $(@D) && $(CC) -std=c11 $(CFLAGS) $(WARN) $(filter %.c,$^) -o $@ \
    $$($(PC) --cflags --libs handoff) $(1)

$(NGINX_TESTS)/backend: $(addprefix integrations/nginx/tests/,backend.c client.c request.c \
    backend.h request.h) $(HEADERS) | need-pkg-config all
	$(nginx_program)

$(NGINX_TESTS)/tls_backend: integrations/nginx/tests/tls_backend.c $(HEADERS) \
    | need-pkg-config need-openssl all
	$(call nginx_program,-lssl -lcrypto -lpthread)

$(NGINX_TESTS)/bug.so: integrations/nginx/tests/bug.c $(HEADERS) | need-pkg-config all
	@mkdir -p $(@D)
	$(CC) -std=c11 $(CFLAGS) $(WARN) -shared -fPIC $< -o $@ $$($(PC) --cflags handoff) -ldl

NGINX_TEST_PROGRAMS := $(addprefix $(NGINX_TESTS)/,backend tls_backend bug.so)

## check-nginx the nginx modules with a real nginx; NGINX_TEST=http: that part
.PHONY: check-nginx
check-nginx: nginx $(NGINX_TEST_PROGRAMS) | need-python need-curl
	@cd integrations/nginx/tests && $(NGINX_RUN) \
	    $(PYTHON) -m unittest $(addprefix test_,$(NGINX_TEST))
