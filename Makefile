# `make run` and `make test` do all the set-up themselves.

.PHONY: help run test console schemathesis mutants rolling compose bench openapi fmt demo clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

run: ## Install what is missing, build, and run the service with its own Redis in ./data
	@scripts/setup run
	cargo build --release --locked
	@exec target/release/redeemer serve

# What must be the same on one server, behind sentinels and on a cluster.
ON_EVERY_REDIS := api:: audit_log:: batch:: batches:: claims:: coarse:: events:: export:: idempotency:: import:: \
	leaders:: model:: race:: recovery:: reservations:: scripts:: spread:: stats::

test: ## Install what is missing, then check format and lints and run every test, with both ledgers and each kind of Redis
	@scripts/setup test
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo check --locked --quiet --no-default-features
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --quiet
	cargo test --locked --quiet
	TEST_LEDGER=postgres cargo test --locked --quiet --test it
	TEST_REDIS=sentinel cargo test --locked --quiet --test it -- $(ON_EVERY_REDIS)
	TEST_REDIS=cluster cargo test --locked --quiet --test it -- $(ON_EVERY_REDIS)
	cargo test --locked --quiet --bench report -- --smoke
	tests/mutants.py --check
	tests/schemathesis/run
	tests/console/run
	tests/compose --if-possible

console: ## Start a service that has something in it, to look at its console
	@scripts/setup test
	tests/console/run --look

schemathesis: ## Ask a service everything that its OpenAPI document allows and forbids, for half an hour
	@scripts/setup test
	tests/schemathesis/run --minutes 30

mutants: ## Plant small faults in the scripts, one at a time, and show that the tests catch each
	@scripts/setup test
	tests/mutants.py

rolling: ## Restart three nodes behind HAProxy one after the other, five times, under load, and say what clients saw
	@scripts/setup test
	TEST_EFFORT=5 cargo test --locked --quiet --test it nodes_are_restarted_one_after_the_other -- --nocapture

compose: ## Bring up docker-compose.yml for real, redeem through it, kill the primary and a node, and take it apart again
	tests/compose

bench: ## Measure everything that has a bar, and write docs/benchmarks.md (ten minutes)
	@scripts/setup test
	cargo bench --locked --bench report -- --write docs/benchmarks.md

openapi: ## Write docs/openapi.json anew
	cargo run --quiet --locked -- openapi > docs/openapi.json.new
	mv docs/openapi.json.new docs/openapi.json

fmt: ## Format the code
	cargo fmt

demo: ## Let 10,000 users rush a code of a running service, then show the proof
	target/release/redeemer demo

clean: ## Remove what was built, and the data of `make run`
	cargo clean
	rm -rf data
