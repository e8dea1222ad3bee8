# The benchmark, built as a user would build a program.

BENCH := $(addprefix bench/,bench.c handoff.c raw.c)

$(BUILD)/bench/bench: $(BENCH) bench/bench.h include/handoff.h | all need-pkg-config
	@mkdir -p $(@D)
	$(CC) -std=c11 $(CFLAGS) $(WARN) $(BENCH) -o $@ $$($(PC) --cflags --libs handoff)

## bench       what a handoff costs, beside plain C with the same system calls
.PHONY: bench
bench: $(BUILD)/bench/bench
	@LD_LIBRARY_PATH=$(LIB) $<
