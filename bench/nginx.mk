# The benchmark of the nginx modules. It starts nginx and the backend of their tests.

## bench-nginx  handoff_pass beside proxy_pass and beside the backend itself
.PHONY: bench-nginx
bench-nginx: nginx $(NGINX_TESTS)/backend | need-python need-wrk
	@mkdir -p $(BENCH)/results
	@$(NGINX_RUN) $(PYTHON) bench/nginx/bench.py > $(BENCH)/results/nginx.txt
	@cat $(BENCH)/results/nginx.txt

# ---- clients over TLS ----------------------------------------------------------------------------

$(BENCH)/tls_client: bench/nginx/tls_client.c bench/common.c bench/common.h | need-openssl
	@mkdir -p $(@D)
	$(BENCH_CC) $(filter %.c,$^) -o $@ -lssl -lcrypto

BENCH_TLS := bench/nginx/bench_tls.py
BENCH_TLS_NEEDS := $(BENCH)/tls_client $(NGINX_TESTS)/backend

## bench-tls   the same over TLS that the kernel does, and streams; needs `modprobe tls`
.PHONY: bench-tls
bench-tls: nginx $(BENCH_TLS_NEEDS) | need-python need-openssl
	@mkdir -p $(BENCH)/results
	@$(NGINX_RUN) $(PYTHON) $(BENCH_TLS) > $(BENCH)/results/nginx_tls.txt
	@cat $(BENCH)/results/nginx_tls.txt

# Whose files: of debian-13 with NGINX_DEV=build/vm/trixie/usr/share/nginx/src and an NGINX_BUILD.
BENCH_TLS_ROOT ?= this-machine
# What bench_tls.py takes from its environment.
BENCH_TLS_NAMES := REPETITIONS CONNECTIONS REQUESTS CLOSED LARGE STREAMS EVENTS TLS_VERSION

## bench-tls-count  that in an emulated machine: instructions and system calls, no times
.PHONY: bench-tls-count
bench-tls-count: nginx $(BENCH_TLS_NEEDS) | need-python need-openssl need-vm
	@mkdir -p $(BENCH)/results
	@$(VM) --count --limit 1800 --root $(BENCH_TLS_ROOT) -- env $(NGINX_RUN) BENCH_TLS_COUNT=1 \
	    $(foreach name,$(BENCH_TLS_NAMES),$(if $($(name)),$(name)=$($(name)))) $(PYTHON) $(BENCH_TLS) \
	    > $(BENCH)/results/nginx_tls_count.txt
	@cat $(BENCH)/results/nginx_tls_count.txt
