# Benchmarks of the node agent; included by the Makefile.

.PHONY: bench-agent bench-interrupt

# A release build of the agent in a real host: overhead per step and stage, memory, wake-ups, fsyncs.
bench-agent: controlplane release build
	@$(AS_ROOT) SKYHOOK_BIN_DIR=$(RELEASE) cargo test -p skyhook-integration --test agent_bench -- \
	    --ignored --nocapture

# What an interrupt costs a node beyond the restart or the reboot itself.
bench-interrupt: controlplane release build
	@SKYHOOK_BIN_DIR=$(RELEASE) $(ROOT) $(DEBUG)/bench_interrupt
