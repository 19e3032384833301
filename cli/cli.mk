# The plugin for kubectl; included by the Makefile.

.PHONY: plugin bench-cli

# A static program for $(TARGET); copy it to a directory of your PATH.
plugin: setup
	$(CROSS) RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --target $(TARGET) -p skyhook-cli
	@ls -l $(STATIC)/kubectl-skyhook

# How long the program takes to start, parse its command line and print something: the median of 21 runs.
bench-cli: setup
	@cargo build --release -p skyhook-cli
	@for run in $$(seq 21); do \
	    begin=$$(date +%s%N); $(RELEASE)/kubectl-skyhook version --client-only >/dev/null || exit 1; \
	    echo $$(($$(date +%s%N) - begin)); \
	done | sort -n | awk '{ time[NR] = $$1 } \
	    END { if (NR != 21) exit 1; printf "bench cli_start_ms %.1f\n", time[11] / 1000000 }'
