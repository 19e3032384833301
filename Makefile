# `make demo` shows Skyhook change three hosts; `make test` is what CI runs. Both install what they
# need first (.ci/setup).

CACHE := $(or $(SKYHOOK_CACHE),$(HOME)/.cache/skyhook)
export SKYHOOK_CACHE := $(CACHE)
export CARGO_TARGET_DIR ?= $(CACHE)/target
export PATH := $(CACHE)/tools/bin:$(HOME)/.cargo/bin:$(PATH):/usr/sbin:/sbin
SHELL := /bin/bash

# Hosts need root. Everything is built as who you are, and only the harness runs as root.
ROOT := $(if $(filter 0,$(shell id -u)),,sudo -E env PATH="$(PATH)")
TRIPLE = $(shell rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')

CRDS := helm/skyhook-operator/crds
PROGRAMS := -p skyhook-nodeagent -p skyhook-coordinator
TEST_THREADS ?= 2

.PHONY: help setup demo test check fmt fmt-check lint lengths typos deny gen gen-check unit sim \
        integration controlplane programs bench-one

help:
	@echo "make demo         a roll-out on three real hosts, live"
	@echo "make test         everything that CI runs"
	@echo "make check        the part of it that runs nothing: format, lints, licences, generated files"
	@echo "make unit         unit tests and the simulated cluster, no root"
	@echo "make integration  tests on real hosts (root)"
	@echo "make bench-one    one node, a package that does nothing: time, requests, memory"
	@echo "make gen          write the CRDs"

setup:
	@.ci/setup

# The wait for the control plane's build is minutes on a clean machine.
controlplane: setup
	@integration/controlplane/build >/dev/null

programs: setup
	cargo build $(PROGRAMS)

demo: controlplane programs
	cargo build -p skyhook-integration --bin demo
	@$(ROOT) $(CARGO_TARGET_DIR)/debug/demo

test: check controlplane programs
	@CARGO_TARGET_$(TRIPLE)_RUNNER='$(ROOT)' .ci/tests \
	    '--workspace --exclude skyhook-integration' \
	    '-p skyhook-integration -- --test-threads=$(TEST_THREADS)'
	@if [ "$(CI)" = true ] && [ -n "$$(git status --porcelain)" ]; then \
	    echo "the tree is dirty after the tests:"; git status --short; exit 1; fi

check: setup lengths fmt-check typos gen-check deny lint

fmt:
	cargo fmt --all
	cd integration/controlplane && gofmt -w .

fmt-check:
	cargo fmt --all -- --check
	@test -z "$$(cd integration/controlplane && command -v gofmt >/dev/null && gofmt -l .)"

lint:
	cargo clippy --workspace --all-targets -- -D warnings

lengths:
	@.ci/lengths

typos: setup
	typos

# Advisories change without us and need the network: they warn.
deny: setup
	cargo deny --all-features --locked check --hide-inclusion-graph bans licenses sources
	@cargo deny --offline check advisories >/dev/null 2>&1 || \
	    echo "warning: advisories were not checked or there are some: cargo deny check advisories"

gen:
	cargo run -q -p skyhook-crds --bin crdgen -- $(CRDS)

gen-check:
	cargo run -q -p skyhook-crds --bin crdgen -- --check $(CRDS)

unit:
	cargo test --workspace --exclude skyhook-integration

sim:
	cargo test -p skyhook-tests

integration: controlplane programs
	CARGO_TARGET_$(TRIPLE)_RUNNER='$(ROOT)' cargo test -p skyhook-integration -- \
	    --test-threads=$(TEST_THREADS)

bench-one: controlplane
	cargo build --release $(PROGRAMS) -p skyhook-integration --bin skyhook-agent \
	    --bin skyhook-coordinator --bin bench_one
	@$(ROOT) $(CARGO_TARGET_DIR)/release/bench_one

-include $(wildcard */*.mk)
