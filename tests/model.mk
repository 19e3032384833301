# The protocol of the lease, model-checked with larger bounds than in CI: most of an hour on two cores.

.PHONY: model

model: build
	cargo test --workspace --test model -- --ignored --nocapture
