# Proofs and fuzzing of the channel.

## check-claim  the claim in every interleaving, with loom
.PHONY: check-claim
check-claim:
	cd proofs/loom && $(CARGO) test --locked --target-dir ../../target/loom -- --nocapture \
	    --test-threads=1

## check-model  the protocol around the claim in every state, with spin
.PHONY: check-model
check-model:
	@$(NEED) spin spin -V
	@proofs/check_model.sh $(BUILD)/model
