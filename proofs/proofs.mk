# Proofs and fuzzing of the channel.

## check-claim  the claim in every interleaving, with loom
.PHONY: check-claim
check-claim:
	cd proofs/loom && $(CARGO) test --locked --target-dir ../../target/loom -- --nocapture \
	    --test-threads=1

## check-model  the protocol around the claim in every state, with spin
.PHONY: check-model
check-model: | need-spin
	@proofs/check_model.sh $(BUILD)/model

# The short runs are plain programs: a stable toolchain is enough.
FUZZ_SECONDS ?= 600
FUZZ_RUNS    ?= 5000

## check-fuzz  short runs of the fuzz targets
.PHONY: check-fuzz
check-fuzz:
	cd fuzz && RUSTFLAGS="--cfg fuzzing" $(CARGO) run --quiet --locked --release \
	    --target-dir ../target/fuzz -- $(FUZZ_RUNS)

# As cargo fuzz builds them, without that tool: with AddressSanitizer, and with what libFuzzer sees
# of a run. Both are unstable flags of the compiler, which RUSTC_BOOTSTRAP lets a stable one take.
LIBFUZZER := --cfg fuzzing -Zsanitizer=address -Ccodegen-units=1 -Cpasses=sancov-module \
    $(addprefix -Cllvm-args=-sanitizer-coverage-,level=4 inline-8bit-counters pc-table \
        trace-compares)

# What it finds to be new goes to build/fuzz; the committed corpus is where it begins.
## fuzz        each fuzz target for FUZZ_SECONDS, with libFuzzer
.PHONY: fuzz
fuzz: | need-cxx
	@set -e; for target in decoder broker backend; do \
	    mkdir -p $(BUILD)/fuzz/$$target fuzz/artifacts/$$target; \
	    RUSTC_BOOTSTRAP=1 RUSTFLAGS="$(LIBFUZZER)" $(CARGO) run --quiet --locked --release \
	        --manifest-path fuzz/Cargo.toml --target-dir $(TARGET)/libfuzzer \
	        --target $$(rustc -vV | sed -n 's/^host: //p') --features libfuzzer --bin $$target -- \
	        $(BUILD)/fuzz/$$target fuzz/corpus/$$target -artifact_prefix=fuzz/artifacts/$$target/ \
	        -max_total_time=$(FUZZ_SECONDS) -max_len=400 -len_control=0; \
	done

# The calls of the C ABI: a target in C, against the header and a library with AddressSanitizer.
FUZZ_ABI_RUNS ?= 5000
FUZZ_HOST      = $$(rustc -vV | sed -n 's/^host: //p')
FUZZ_ABI      := $(BUILD)/fuzz/abi-target
# As the other targets have it in fuzz/Cargo.toml, and without the optimisation that duplicates what
# the fuzzer counts.
FUZZ_PROFILE  := $(addprefix CARGO_PROFILE_RELEASE_,LTO=off DEBUG_ASSERTIONS=true \
    OVERFLOW_CHECKS=true)

$(BUILD)/fuzz/rust.stamp: $(RUST)
	@RUSTC_BOOTSTRAP=1 RUSTFLAGS="$(LIBFUZZER)" $(FUZZ_PROFILE) $(CARGO) rustc --quiet --release \
	    --locked --lib --crate-type staticlib --target $(FUZZ_HOST) --target-dir $(TARGET)/fuzz-abi
	@mkdir -p $(@D) && touch $@

$(FUZZ_ABI): fuzz/fuzz_targets/abi.c $(BUILD)/fuzz/rust.stamp $(HEADERS) | need-sanitizers
	$(CLANG) -std=c11 -g -O1 $(WARN) $(SANITIZE) -fsanitize=fuzzer -Iinclude $< -o $@ \
	    $(TARGET)/fuzz-abi/$(FUZZ_HOST)/release/libhandoff.a -lgcc_s -lpthread -lm

FUZZ_ABI_RUN = mkdir -p $(BUILD)/fuzz/$(1) fuzz/artifacts/abi && $(FUZZ_ABI) -max_len=1000 \
    -len_control=0 -artifact_prefix=fuzz/artifacts/abi/ -verbosity=0 -print_final_stats=1 $(2) \
    $(BUILD)/fuzz/$(1) fuzz/corpus/abi

## check-fuzz-abi  the calls of the C ABI with edges of arguments, a short run
.PHONY: check-fuzz-abi
check-fuzz-abi: $(FUZZ_ABI)
	@rm -rf $(BUILD)/fuzz/abi-short
	@$(call FUZZ_ABI_RUN,abi-short,-runs=$(FUZZ_ABI_RUNS) -seed=1) 2> $(BUILD)/fuzz/abi.log || \
	    { cat $(BUILD)/fuzz/abi.log >&2; exit 1; }
	@echo "abi: $$(sed -n 's/^stat::number_of_executed_units: *//p' $(BUILD)/fuzz/abi.log) inputs"

.PHONY: fuzz-abi
fuzz-abi: $(FUZZ_ABI)
	@$(call FUZZ_ABI_RUN,abi,-max_total_time=$(FUZZ_SECONDS))

fuzz: fuzz-abi

# The standard library is built anew: without it ThreadSanitizer does not see its mutexes.
## check-threads  brokers and backends in threads, with ThreadSanitizer
.PHONY: check-threads
check-threads: | need-rust-src
	cd proofs/threads && RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=thread $(CARGO) run --quiet \
	    --locked -Zbuild-std=std,panic_unwind --target $$(rustc -vV | sed -n 's/^host: //p') \
	    --target-dir ../../target
