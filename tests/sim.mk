# The simulated cluster: a minute's worth of seeds, one seed, or very many.

.PHONY: sim soak

sim: build
	cargo test --workspace --test sim -- --nocapture

soak:
	SIM_SEEDS=100000 cargo test --release -p skyhook-tests --test sim -- --nocapture seeds
