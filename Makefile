# Each target sets up what it needs on a fresh Debian or Ubuntu and says what it installs. Nothing of the system is started.
.DEFAULT_GOAL := help
.PHONY: help demo test test-postgres test-clients test-long test-systemd lint bench bench-herd bench-peers install deb build

# Outside the clone, so that a fresh clone finds what was built before.
cache := $(or $(TXRELAY_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/txrelay)
export CARGO_TARGET_DIR ?= $(cache)/target
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin
# Integration tests wait more than they work: more of them than there are cores, but no more than a busy machine bears.
export RUST_TEST_THREADS ?= 3

PREFIX ?= /usr/local
DESTDIR ?=
# What is installed; built first where it is not named.
BINARY ?=
# Where the package goes, and its version where it is not that of debian/changelog.
DEST ?= $(CARGO_TARGET_DIR)/deb
DEB_VERSION ?=

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: ## the main job on real Kafka and PostgreSQL, with an outage and a kill, ending in a ledger (DEMO_RECORDS=20000 DEMO_KEEP=1)
	@tests/bed/demo.sh

build: ## release build
	@tests/bed/setup.sh
	TXRELAY_REVISION=$$(git rev-parse --short HEAD 2>/dev/null || echo unknown) cargo build --release
	@echo $(CARGO_TARGET_DIR)/release/txrelay

test: ## unit, property and integration tests on real services (ARGS= goes to the test binaries)
	@tests/bed/setup.sh
	cargo build --features bed,failpoints
	cargo test --features bed,failpoints --no-run
	tests/bed/with-bed.sh cargo test --features bed,failpoints -- $(ARGS)
	@[ -n '$(ARGS)' ] || $(MAKE) --no-print-directory test-postgres

# Everything that the store promises, and the main job, on the oldest and the newest PostgreSQL that is supported.
test-postgres:
	for version in 14.23.0 18.6.0; do echo "== PostgreSQL $$version"; \
	  tests/bed/with-bed.sh --postgres $$version cargo test --features bed,failpoints --test it -- store:: deliver:: \
	    relay::what_is_produced relay::kill_9 relay::a_clean_stop relay::redelivery || exit 1; done

# A build with one Kafka client passes what applies to it.
test-clients:
	cargo build --no-default-features --features kafka,failpoints --target-dir $(CARGO_TARGET_DIR)/only-kafka
	cargo test --no-default-features --features kafka --lib --target-dir $(CARGO_TARGET_DIR)/only-kafka
	cargo build --no-default-features --features librdkafka,failpoints --target-dir $(CARGO_TARGET_DIR)/only-librdkafka
	cargo test --no-default-features --features librdkafka --lib --target-dir $(CARGO_TARGET_DIR)/only-librdkafka
	TXRELAY_TEST_BINARY=$(CARGO_TARGET_DIR)/only-kafka/debug/txrelay tests/bed/with-bed.sh \
	  cargo test --features bed,failpoints --test it -- --include-ignored kafka_client:: pure_rust_client
	TXRELAY_TEST_BINARY=$(CARGO_TARGET_DIR)/only-librdkafka/debug/txrelay tests/bed/with-bed.sh \
	  cargo test --features bed,failpoints --test it -- relay:: kafka_security::

test-long: ## also the tests that are marked ignored, because they take minutes
	@tests/bed/setup.sh
	cargo build --features bed,failpoints
	cargo test --features bed,failpoints --no-run
	tests/bed/with-bed.sh cargo test --features bed,failpoints -- --include-ignored $(ARGS)
	@$(MAKE) --no-print-directory test-clients
	@$(MAKE) --no-print-directory test-systemd

test-systemd: ## the unit on a real systemd in a container (needs root)
	@tests/bed/setup.sh --systemd
	cargo build --features bed,failpoints
	tests/bed/systemd.sh $(CARGO_TARGET_DIR)/debug/txrelay

lint: ## fmt, clippy, every feature set, licences and advisories, shellcheck
	@tests/bed/setup.sh --lint
	cargo fmt --check
	cargo clippy --all-targets --features bed,failpoints -- -D warnings
	cargo check --no-default-features --features librdkafka
	cargo check --no-default-features --features kafka
	cargo check
	@if cargo deny --version >/dev/null 2>&1; then \
	  set -x; cargo fetch --locked && cargo deny --offline check bans licenses sources; \
	else echo "cargo deny: skipped, cargo-deny is not installed (deny.toml says what it would check)"; fi
	shellcheck -x tests/bed/*.sh benches/*.sh benches/peers/*.sh .ci/run debian/txrelay.p*

bench: ## deliveries/s, CPU, commits, WAL, RSS, latency, growth, and restarts after kill -9 (ARGS=--quick)
	@benches/run.sh $(ARGS)
	@[ -n "$(ARGS)" ] || benches/crash.sh

bench-peers: ## txrelay beside graphile-worker, River and Bento in one run (needs Go and Node; ARGS=--quick)
	@benches/peers.sh $(ARGS)

bench-herd: ## a service that fails for a minute and comes back: what it is sent, and an SVG of it (ARGS=--quick, HERD_KINDS="503 hang")
	@benches/herd.sh $(ARGS)

install: $(if $(BINARY),,build) ## binary, unit, example configuration, documents, manual, alerts and dashboard, under DESTDIR and PREFIX
	install -D -m 755 $(or $(BINARY),$(CARGO_TARGET_DIR)/release/txrelay) $(DESTDIR)$(PREFIX)/bin/txrelay
	install -d -m 755 $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|/usr/bin/txrelay|$(PREFIX)/bin/txrelay|; s|/usr/share/doc|$(PREFIX)/share/doc|' 'systemd/txrelay@.service' > '$(DESTDIR)$(PREFIX)/lib/systemd/system/txrelay@.service'
	chmod 644 '$(DESTDIR)$(PREFIX)/lib/systemd/system/txrelay@.service'
	install -D -m 644 man/txrelay.1 '$(DESTDIR)$(PREFIX)/share/man/man1/txrelay.1'
	install -D -m 644 man/txrelay.toml.5 '$(DESTDIR)$(PREFIX)/share/man/man5/txrelay.toml.5'
	for shell in bash/bash-completion/completions/txrelay zsh/zsh/site-functions/_txrelay fish/fish/vendor_completions.d/txrelay.fish; do \
	  file='$(DESTDIR)$(PREFIX)/share/'$${shell#*/} && install -d -m 755 "$${file%/*}" && \
	  '$(DESTDIR)$(PREFIX)/bin/txrelay' completions $${shell%%/*} > "$$file" && chmod 644 "$$file" || exit 1; done
	install -D -m 644 systemd/txrelay.sysusers '$(DESTDIR)$(PREFIX)/lib/sysusers.d/txrelay.conf'
	install -D -m 644 etc/txrelay.toml $(DESTDIR)/etc/txrelay/txrelay.toml.example
	install -D -m 644 etc/txrelay.toml $(DESTDIR)$(PREFIX)/share/doc/txrelay/txrelay.toml
	for doc in README.md ARCHITECTURE.md CHANGELOG.md SECURITY.md LICENSE docs/commands.md docs/kafka-clients.md docs/operating.md docs/security.md; do \
	  install -D -m 644 $$doc $(DESTDIR)$(PREFIX)/share/doc/txrelay/$${doc##*/} || exit 1; done
	for page in docs/runbook/*.md; do \
	  install -D -m 644 $$page $(DESTDIR)$(PREFIX)/share/doc/txrelay/runbook/$${page##*/} || exit 1; done
	for file in rules.yml alerts.yml dashboards/txrelay.json; do \
	  install -D -m 644 mixin/$$file $(DESTDIR)$(PREFIX)/share/txrelay/mixin/$$file || exit 1; done

# What is installed above, as a package; made in a copy of debian/, so that nothing is written into the clone.
deb: $(if $(BINARY),,build) ## a Debian package of the release build; starts nothing, here or where it is installed (DEST= where it goes)
	@tests/bed/setup.sh --deb
	rm -rf '$(DEST)/build' '$(DEST)'/txrelay_*.deb && mkdir -p '$(DEST)/build' && cp -r debian '$(DEST)/build/'
	[ -z '$(DEB_VERSION)' ] || sed -i '1s/(.*)/($(DEB_VERSION))/' '$(DEST)/build/debian/changelog'
	cd '$(DEST)/build' && SOURCE='$(CURDIR)' DEST='$(DEST)' BINARY='$(abspath $(or $(BINARY),$(CARGO_TARGET_DIR)/release/txrelay))' debian/rules binary
	rm -rf '$(DEST)/build'
	@if command -v lintian >/dev/null; then set -x; lintian -E --pedantic --allow-root --fail-on error '$(DEST)'/txrelay_*.deb; \
	else echo "lintian: skipped, it is not installed"; fi
	@ls -l '$(DEST)'/txrelay_*.deb
