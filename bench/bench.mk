# The benchmarks, built as a user would build a program.

BENCH   := $(BUILD)/bench
BENCH_PROGRAMS := start raw_layer throughput scale
PEERS   := $(addprefix $(BENCH)/peers/,plain checks channel blocking glib libuv instead client rust)
PART    ?=

BENCH_CC = $(CC) -std=c11 $(CFLAGS) $(WARN)

$(BENCH)/raw_layer: bench/raw_layer_library.c bench/raw_layer_plain.c bench/raw_layer.h
$(BENCH)/%: bench/%.c bench/common.c bench/common.h bench/need_handoff.h $(HEADERS) \
    | need-pkg-config all
	@mkdir -p $(@D)
	$(BENCH_CC) $(filter %.c,$^) -o $@ $$($(PC) --cflags --libs handoff)

$(BENCH)/no_checks.so: bench/no_checks.c
	@mkdir -p $(@D)
	$(BENCH_CC) -shared -fPIC $< -o $@ -ldl

$(BENCH)/processors: bench/processors.c bench/common.c bench/common.h
	@mkdir -p $(@D)
	$(BENCH_CC) $(filter %.c,$^) -o $@

# ---- the peers, which only the benchmark needs ---------------------------------------------------

PEER_SOURCES := bench/peers/peer.c bench/common.c
PEER_HEADERS := bench/peers/peer.h bench/common.h bench/need_handoff.h

$(BENCH)/peers/client: PEER_SOURCES := bench/common.c
$(BENCH)/peers/channel $(BENCH)/peers/blocking: PACKAGES := handoff
$(BENCH)/peers/channel $(BENCH)/peers/blocking: $(HEADERS) | all
$(BENCH)/peers/glib: PACKAGES := gio-unix-2.0
$(BENCH)/peers/libuv: PACKAGES := libuv
$(BENCH)/peers/%: bench/peers/%.c bench/peers/peer.c bench/common.c $(PEER_HEADERS) | need-peers
	@mkdir -p $(@D)
	$(BENCH_CC) $< $(PEER_SOURCES) -o $@ \
	    $$(test -z "$(PACKAGES)" || $(PC) --cflags --libs $(PACKAGES))

$(BENCH)/peers/rust: $(wildcard bench/peers/rust/Cargo.* bench/peers/rust/src/*)
	@mkdir -p $(@D)
	cd bench/peers/rust && $(CARGO) build --quiet --release --locked --target-dir $(TARGET)/peers
	cp $(TARGET)/peers/release/peers $@

RUN_BENCH = LD_LIBRARY_PATH=$(LIB) $(PYTHON) bench/bench.py $(BENCH)

## bench       libhandoff beside other ways to do the same; PART=move: that part
.PHONY: bench
bench: $(PEERS) $(addprefix $(BENCH)/,$(BENCH_PROGRAMS) no_checks.so processors) | need-peers need-python
	@$(RUN_BENCH) $(PART)

## check-peers  each peer of the benchmark moves some connections
.PHONY: check-peers
check-peers: $(PEERS) | need-peers need-python
	@$(RUN_BENCH) smoke

## bench-record  put the results of the last make bench and bench-nginx into the documents
.PHONY: bench-record
bench-record: | need-python
	$(PYTHON) bench/record.py $(BENCH)/results
