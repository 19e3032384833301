# Recipes of the crate `skyhook-oci`; the root Makefile includes this file.

.PHONY: bench-oci fuzz

# Needs docker-registry, skopeo, umoci, zstd. The table is in oci/src/lib.rs.
# It works in memory where it can: what is compared is programs, not disks.
bench-oci: export TMPDIR ?= $(or $(wildcard /dev/shm),/tmp)
bench-oci:
	cargo run --release -p skyhook-oci --example bench

# A minute over all targets, on the stable toolchain: coverage comes from LLVM's own pass, no
# sanitizer is needed for code without `unsafe`. One target for longer:
#   make fuzz FUZZ_TARGETS=tar FUZZ_SECONDS=600
FUZZ_TARGETS ?= tar config_json reference docker_config image_documents \
  registry_files proxy_variables credential_provider challenge certificates content_range platform
FUZZ_SECONDS ?= 60
FUZZ_HOST := $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_TARGET_DIR ?= $(or $(CARGO_TARGET_DIR),oci/fuzz/target)/fuzz

fuzz:
	RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	  -Cllvm-args=-sanitizer-coverage-trace-compares" \
	  cargo build --release --manifest-path oci/fuzz/Cargo.toml --target $(FUZZ_HOST) \
	  --target-dir $(FUZZ_TARGET_DIR)
	@set -eu; seconds=$$(( $(FUZZ_SECONDS) / $(words $(FUZZ_TARGETS)) )); \
	for target in $(FUZZ_TARGETS); do \
	  mkdir -p oci/fuzz/corpus/$$target oci/fuzz/artifacts/$$target; \
	  echo "== $$target for $$seconds s"; \
	  $(FUZZ_TARGET_DIR)/$(FUZZ_HOST)/release/$$target -max_total_time=$$seconds -timeout=10 \
	    -rss_limit_mb=1024 -max_len=65536 -verbosity=0 -print_funcs=0 -print_final_stats=1 \
	    -artifact_prefix=oci/fuzz/artifacts/$$target/ \
	    oci/fuzz/corpus/$$target oci/fuzz/seeds/$$target; \
	done
