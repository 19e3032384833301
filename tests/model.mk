# The protocol of the lease, model-checked with larger bounds than in CI: most of an hour on two cores.

.PHONY: model

model: build
	cargo test -p skyhook-tests --test model -- --ignored --nocapture
