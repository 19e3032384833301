# `make demo` shows Skyhook change three hosts; `make test` is what CI runs. Both install what they
# need first (.ci/setup).

CACHE := $(or $(SKYHOOK_CACHE),$(HOME)/.cache/skyhook)
export SKYHOOK_CACHE := $(CACHE)
export SKYHOOK_SOURCE := $(CURDIR)
export CARGO_TARGET_DIR ?= $(CACHE)/target
export PATH := $(CACHE)/tools/bin:$(HOME)/.cargo/bin:$(PATH):/usr/sbin:/sbin
SHELL := /bin/bash

# Hosts need root. Everything is built as who you are, and only what boots them runs as root.
ROOT := $(if $(filter 0,$(shell id -u)),,sudo -E env PATH="$(PATH)")
TRIPLE = $(shell rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
# No test program takes this many seconds; one that hangs must not take the rest with it.
RUNNER = CARGO_TARGET_$(TRIPLE)_RUNNER='timeout --foreground --verbose --kill-after=30 1500 $(ROOT)'

# The JSON Schema of config.json is checked by a crate that is no part of the workspace.
SCHEMA = --manifest-path oci/schema/Cargo.toml --target-dir $(CARGO_TARGET_DIR)/schema

CRDS := helm/skyhook-operator/generated/crds
DEBUG := $(CARGO_TARGET_DIR)/debug
RELEASE := $(CARGO_TARGET_DIR)/release
TEST_THREADS ?= 2
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
# Another one needs its cross compiler: `make images TARGET=aarch64-unknown-linux-gnu` Debian's
# gcc-aarch64-linux-gnu and libc6-dev-arm64-cross, and `rustup target add`.
TARGET ?= $(HOST)
CROSS = $(if $(filter $(HOST),$(TARGET)),,CARGO_TARGET_$(shell echo $(TARGET) | tr a-z- A-Z_)_LINKER=$(subst -unknown,,$(TARGET))-gcc)
STATIC = $(CARGO_TARGET_DIR)/$(TARGET)/release
IMAGES ?= $(CARGO_TARGET_DIR)/images
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

.PHONY: help setup build programs release controlplane previous demo test check fmt fmt-check lint lengths rooms pure typos deny \
        gen gen-check golden unit integration vm-test bench-one static images bench-cluster cluster chart

help:
	@echo "make demo         a roll-out on three real hosts, live"
	@echo "make test         everything that CI runs"
	@echo "make check        the part of it that runs nothing: format, lints, spelling, licences"
	@echo "make unit         unit tests and the simulated cluster, no root"
	@echo "make integration  tests on real hosts (root)"
	@echo "make vm-test      the agent in virtual machines: other kernels, cgroup v2, power cuts (root)"
	@echo "make bench-scale  N nodes, P packages, faked hosts: time, writes, memory"
	@echo "make bench-one    one node, a package that does nothing: time, requests, memory;"
	@echo "                  also bench-oci, bench-agent, bench-interrupt, bench-scale, bench-plan, bench-metrics,"
	@echo "                  bench-cluster"
	@echo "make sim          the simulated cluster; make soak: 100,000 seeds of it"
	@echo "make model        the lease and batches, model-checked with larger bounds (minutes to an hour)"
	@echo "make fuzz         a minute of fuzzing what images and registries say"
	@echo "make bench-cluster  two real nodes, the chart, the sample: time, memory, image sizes, writes"
	@echo "make cluster      nodes with real kubelets to try things out on, until Ctrl-C"
	@echo "make images       OCI archives of both programs, without a container engine"
	@echo "make plugin       the plugin for kubectl, as a static program; bench-cli: how long it takes to start"
	@echo "make gen          write the CRDs"
	@echo "make golden       write what the chart renders, the tables in its README, and what the plugin prints"

setup:
	@.ci/setup

# One selection of packages and targets for everything in debug: another one would have cargo build
# the dependencies again with other features.
build: setup
	cargo build --workspace --all-targets

# The programs without the tests, for those who only want to run them.
programs: setup
	cargo build --workspace --bins

# What benchmarks measure. The harness around it stays a debug build.
release: setup
	cargo build --release -p skyhook-nodeagent -p skyhook-coordinator

# Static programs: with a target named, build scripts and macros are spared from being so as well.
static: setup
	$(CROSS) RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --target $(TARGET) \
	    -p skyhook-nodeagent -p skyhook-coordinator

# As OCI archives in $(IMAGES), for the architecture of $(TARGET), without a container engine.
images: static
	images/build $(STATIC) $(IMAGES) v$(VERSION)
	@ls -l $(IMAGES)

# Minutes on a clean machine, then cached.
controlplane: setup
	@integration/controlplane/build >/dev/null

demo: controlplane programs
	@$(ROOT) $(DEBUG)/demo

# The version before this one, against which this one is tested; without it in the clone that test is skipped, loudly.
previous: setup
	@integration/previous/build >/dev/null || [ $$? -eq 3 ]

test: check build gen-check controlplane previous
	@$(RUNNER) .ci/tests '--workspace --no-fail-fast -- --test-threads=$(TEST_THREADS)' '$(SCHEMA)'
	@if [ "$(CI)" = true ] && [ -n "$$(git status --porcelain)" ]; then \
	    echo "the tree is dirty after the tests:"; git status --short; exit 1; fi

check: setup lengths rooms pure fmt-check typos deny lint chart

fmt:
	cargo fmt --all
	gofmt -w integration/controlplane integration/oldest

fmt-check:
	cargo fmt --all -- --check
	@if command -v gofmt >/dev/null; then test -z "$$(gofmt -l integration/controlplane integration/oldest)"; fi

lint:
	cargo clippy --workspace --all-targets -- -D warnings

lengths:
	@.ci/lengths

rooms:
	@.ci/rooms

pure:
	@.ci/pure

typos: setup
	typos

# Advisories change without us and need the network: they warn.
deny: setup
	cargo deny --all-features --locked check --hide-inclusion-graph bans licenses sources
	@cargo deny --offline check advisories >/dev/null 2>&1 || \
	    echo "warning: advisories were not checked or there are some: cargo deny check advisories"

gen: programs
	$(DEBUG)/crdgen $(CRDS)

# What the tests of the chart and of the plugin compare with. `git diff` shows what a change of them comes to.
golden: setup
	SKYHOOK_GOLDEN=write cargo test -p skyhook-integration --test chart -- each_value the_readme
	SKYHOOK_GOLDEN=write cargo test -p skyhook-cli --test golden

gen-check: build
	$(DEBUG)/crdgen --check $(CRDS)

unit: build
	cargo test --workspace --exclude skyhook-integration
	cargo test $(SCHEMA)

integration: controlplane previous build
	$(RUNNER) cargo test -p skyhook-integration -- --test-threads=$(TEST_THREADS)

# Debian 12 and 13 in emulated machines; the disk images are built once, in some minutes.
vm-test: controlplane build
	$(RUNNER) cargo test --workspace --test vm -- --test-threads=$(TEST_THREADS)

bench-cluster: controlplane build static
	@SKYHOOK_BIN_DIR=$(STATIC) $(ROOT) $(DEBUG)/bench_cluster

# Two nodes (NODES=3 for three) with real kubelets to try things out on, until Ctrl-C.
cluster: controlplane programs
	@$(ROOT) $(DEBUG)/real_cluster

chart: setup
	helm lint --strict helm/skyhook-operator --namespace skyhook
	@helm template skyhook helm/skyhook-operator --namespace skyhook >/dev/null

bench-one: controlplane build release
	@SKYHOOK_BIN_DIR=$(RELEASE) $(ROOT) $(DEBUG)/bench_one

-include $(wildcard */*.mk)
