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

# The standard library is built anew: without it ThreadSanitizer does not see its mutexes.
## check-threads  brokers and backends in threads, with ThreadSanitizer
.PHONY: check-threads
check-threads: | need-rust-src
	cd proofs/threads && RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=thread $(CARGO) run --quiet \
	    --locked -Zbuild-std=std,panic_unwind --target $$(rustc -vV | sed -n 's/^host: //p') \
	    --target-dir ../../target
