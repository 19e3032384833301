.PHONY: bench-scale

# N nodes, P packages.
bench-scale: controlplane build release
	@SKYHOOK_BIN_DIR=$(RELEASE) N=$(or $(N),50) P=$(or $(P),4) $(DEBUG)/bench_scale
