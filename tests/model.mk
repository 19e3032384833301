# The protocol of the lease, model-checked with larger bounds than in CI: twenty million states, minutes.

.PHONY: model

model: build
	cargo test --workspace --test model -- --ignored --nocapture
