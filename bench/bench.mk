# The benchmarks, built as a user would build a program.

BENCHES := raw_layer throughput scale first_byte
PART    ?= $(BENCHES)

$(BUILD)/bench/raw_layer: bench/raw_layer_library.c bench/raw_layer_plain.c bench/raw_layer.h
$(BUILD)/bench/%: bench/%.c bench/common.c bench/common.h include/handoff.h | all need-pkg-config
	@mkdir -p $(@D)
	$(CC) -std=c11 $(CFLAGS) $(WARN) $(filter %.c,$^) -o $@ $$($(PC) --cflags --libs handoff)

## bench       what handoffs cost, beside plain C and other ways; PART=throughput: that part
.PHONY: bench
bench: $(addprefix $(BUILD)/bench/,$(PART))
	@set -e; for part in $^; do LD_LIBRARY_PATH=$(LIB) $$part; echo; done
