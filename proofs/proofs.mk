# Proofs and fuzzing of the channel.

## check-claim  the claim in every interleaving, with loom
.PHONY: check-claim
check-claim:
	cd proofs/loom && $(CARGO) test --locked --target-dir ../../target/loom -- --nocapture \
	    --test-threads=1
