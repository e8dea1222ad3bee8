# The hot paths one by one: by the clock, and by counting instructions.

MICRO := cd bench/micro && RUSTFLAGS="--cfg handoff_bench" $(CARGO)
COUNT := $(PYTHON) bench/micro/instructions.py $(TARGET)/micro/release/count \
    bench/micro/instructions.txt

## bench-micro     the time that each hot path takes, with criterion
.PHONY: bench-micro
bench-micro:
	$(MICRO) bench --locked --target-dir $(TARGET)/micro

## bench-check     no hot path takes over 5 % more instructions than in the baseline
.PHONY: bench-check
bench-check: micro-count
	@$(COUNT)

## bench-baseline  make bench/micro/instructions.txt anew
.PHONY: bench-baseline
bench-baseline: micro-count
	@$(COUNT) --renew

.PHONY: micro-count
micro-count: | need-valgrind need-python
	$(MICRO) build --quiet --locked --release --target-dir $(TARGET)/micro
