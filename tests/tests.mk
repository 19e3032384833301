.PHONY: bench-scale bench-plan bench-metrics

# N nodes, P packages, SKYHOOKS Skyhooks at once; UPGRADE=0 ends after the roll-out. POLICY=1 paces it by a policy with four
# compartments, and ends after the roll-out as well.
bench-scale: controlplane build release
	@SKYHOOK_BIN_DIR=$(RELEASE) N=$(or $(N),50) P=$(or $(P),4) SKYHOOKS=$(or $(SKYHOOKS),1) POLICY=$(or $(POLICY),0) \
	    UPGRADE=$(or $(UPGRADE),$(if $(filter 1,$(POLICY)),0,1)) $(DEBUG)/bench_scale

# The planner alone on N nodes.
bench-plan: setup
	@N=$(or $(N),10000) cargo run --release -p skyhook-tests --bin bench_plan

# A scrape of the coordinator with N nodes and five Skyhooks.
bench-metrics: setup
	@N=$(or $(N),10000) cargo run --release -p skyhook-tests --bin bench_metrics
