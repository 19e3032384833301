# The protocols of the lease and of batches, searched with larger bounds than in CI: a hundred million states, minutes to an hour.

.PHONY: model

model: build
	cargo test --workspace --test model --test batches -- --ignored --nocapture --test-threads=1
