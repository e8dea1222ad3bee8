# The hot paths one by one: by the clock, and by counting instructions.

MICRO := cd bench/micro && RUSTFLAGS="--cfg handoff_bench" $(CARGO)
COUNT := $(PYTHON) bench/micro/instructions.py $(TARGET)/micro/release/count \
    bench/micro/instructions.txt
CALLS := $(PYTHON) bench/micro/calls.py $(TARGET)/micro/release/count bench/micro/calls.txt

## bench-micro     the time that each hot path takes, with criterion
.PHONY: bench-micro
bench-micro:
	$(MICRO) bench --locked --target-dir $(TARGET)/micro

## bench-check     no more instructions or system calls than in the baselines, but for a few per cent
.PHONY: bench-check
bench-check: micro-count
	@$(COUNT)
	@$(CALLS)

## bench-baseline  make bench/micro/instructions.txt and calls.txt anew
.PHONY: bench-baseline
bench-baseline: micro-count
	@$(COUNT) --renew
	@$(CALLS) --renew

.PHONY: micro-count
micro-count: | need-valgrind need-strace need-python
	$(MICRO) build --quiet --locked --release --target-dir $(TARGET)/micro
