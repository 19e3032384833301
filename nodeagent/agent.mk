# Benchmarks and long tests of the node agent; included by the Makefile.

.PHONY: bench-agent bench-interrupt crash-agent

# A release build of the agent in a real host: overhead per step and stage, memory, wake-ups, fsyncs.
bench-agent: controlplane release build
	@set -o pipefail; $(RUNNER) SKYHOOK_BIN_DIR=$(RELEASE) cargo test --workspace --test agent_bench -- \
	    --ignored --nocapture --test-threads=1 | tee $(RELEASE)/bench-agent.log
	@grep -o 'bench [a-z_]* [-0-9.]*$$' $(RELEASE)/bench-agent.log

# What an interrupt costs a node beyond the restart or the reboot itself.
bench-interrupt: controlplane release build
	@SKYHOOK_BIN_DIR=$(RELEASE) $(ROOT) $(DEBUG)/bench_interrupt

# Death after every journal write around an interrupt; `make test` takes every fourth.
crash-agent: controlplane build
	@$(RUNNER) SKYHOOK_CRASH=all cargo test --workspace --test agent_hosts -- power --nocapture
