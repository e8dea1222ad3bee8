# The benchmarks of the nginx modules, which start nginx as their tests do.

## bench-nginx  handoff_pass beside proxy_pass; PART=requests, or =streams: that part
.PHONY: bench-nginx bench-nginx-requests bench-nginx-streams
bench-nginx: $(addprefix bench-nginx-,$(or $(PART),requests streams))

bench-nginx-requests: nginx $(NGINX_TESTS)/backend | need-python need-wrk
	@mkdir -p $(BENCH)/results
	@$(NGINX_RUN) $(PYTHON) bench/nginx/bench.py > $(BENCH)/results/nginx.txt
	@cat $(BENCH)/results/nginx.txt

# ---- streams -------------------------------------------------------------------------------------

$(BENCH)/stream_backend: bench/nginx/stream_backend.c bench/nginx/event.h bench/common.c \
    bench/common.h bench/need_handoff.h $(HEADERS) | need-pkg-config all
	@mkdir -p $(@D)
	$(BENCH_CC) $(filter %.c,$^) -o $@ $$($(PC) --cflags --libs handoff)

$(BENCH)/stream_client: bench/nginx/stream_client.c bench/nginx/event.h bench/common.c bench/common.h
	@mkdir -p $(@D)
	$(BENCH_CC) $(filter %.c,$^) -o $@

BENCH_STREAMS := bench/nginx/bench_streams.py
BENCH_STREAMS_NEEDS := $(addprefix $(BENCH)/,stream_backend stream_client)

# One part after the other, also with -j.
bench-nginx-streams: nginx $(BENCH_STREAMS_NEEDS) | need-python $(if $(PART),,bench-nginx-requests)
	@mkdir -p $(BENCH)/results
	@$(NGINX_RUN) $(PYTHON) $(BENCH_STREAMS) $(BENCH)/results

## check-bench-streams  the streams of bench-nginx, some of them and no figures
.PHONY: check-bench-streams
check-bench-streams: nginx $(BENCH_STREAMS_NEEDS) | need-python
	@REPETITIONS=1 STREAMS=50 SECONDS=2 $(NGINX_RUN) $(PYTHON) $(BENCH_STREAMS)

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

# Whose files and nginx: this-machine, or debian-13.
BENCH_TLS_ROOT ?= this-machine
# What bench_tls.py takes from its environment.
BENCH_TLS_NAMES := REPETITIONS CONNECTIONS REQUESTS CLOSED LARGE STREAMS EVENTS TLS_VERSION
# $(call bench_tls_count,VARIABLES): in the machine whose clock counts instructions.
bench_tls_count = $(VM) --count --limit 1800 --root $(BENCH_TLS_ROOT) -- env $(NGINX_RUN) \
    NGINX_LOAD="$(call nginx_tls_load,$(NGINX_TLS_MODULES_$(BENCH_TLS_ROOT)))" \
    BENCH_TLS_COUNT=1 $(1) python3 $(BENCH_TLS)
BENCH_TLS_COUNT_NEEDS := $(if $(filter debian-13,$(BENCH_TLS_ROOT)),nginx-debian-13,nginx) \
    $(BENCH_TLS_NEEDS)

## bench-tls-count  that in an emulated machine: instructions and system calls, no times
.PHONY: bench-tls-count
bench-tls-count: $(BENCH_TLS_COUNT_NEEDS) | need-python need-openssl need-vm
	@mkdir -p $(BENCH)/results
	@$(call bench_tls_count,$(foreach name,$(BENCH_TLS_NAMES),$(if $($(name)),$(name)=$($(name))))) \
	    > $(BENCH)/results/nginx_tls_count.txt
	@cat $(BENCH)/results/nginx_tls_count.txt

## check-bench-tls  that benchmark, with a few clients and no figures
.PHONY: check-bench-tls
check-bench-tls: $(BENCH_TLS_COUNT_NEEDS) | need-python need-openssl need-vm
	@mkdir -p $(BENCH)
	@$(call bench_tls_count,CONNECTIONS=2 REQUESTS=2 CLOSED=4 LARGE=1048576 STREAMS=4 EVENTS=1) \
	    > $(BENCH)/tls_check.txt || { cat $(BENCH)/tls_check.txt; exit 1; }
	@echo "check-bench-tls: handoff_pass and three ways of proxy_pass, each client answered"
