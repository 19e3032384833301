# The simulated cluster: a minute's worth of seeds, or very many, of which all that fail are named.

.PHONY: sim soak

sim: build
	cargo test --workspace --test sim -- --nocapture

soak: build
	SIM_SEEDS=100000 SIM_KEEP_GOING=1 cargo test --workspace --test sim -- --nocapture seeds
	SIM_SEEDS=10000 SIM_KEEP_GOING=1 cargo test --workspace --test sim -- --nocapture nodes_that_never_get_well
	SIM_SEEDS=200 SIM_KEEP_GOING=1 cargo test --workspace --test sim -- --nocapture fleets
	SIM_SEEDS=10000 SIM_KEEP_GOING=1 cargo test --workspace --test sim -- --nocapture policies_that_come_and_go
