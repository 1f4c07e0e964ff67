# Everything one does with Hostward. `make demo` and `make test` work on a fresh Debian 12 with Rust: as root they install
# what is missing, otherwise they print the one line to run.

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=

# What building needs: a C compiler and cmake-free aws-lc.
BUILD_PACKAGES := gcc libc6-dev make
# What the end-to-end tests drive and compare with.
TEST_PACKAGES := $(BUILD_PACKAGES) curl openssl nginx-light haproxy wrk nghttp2-client python3 python3-venv sslscan
# What the suites need that `make test` leaves out.
CONFORMANCE_PACKAGES := $(TEST_PACKAGES) chromium
PERF_PACKAGES := $(TEST_PACKAGES) python3 linux-perf

# Debian's Python, for which tests/conformance/requirements.txt has the hashes. Nothing is installed outside target/.
PYTHON ?= /usr/bin/python3
CONFORMANCE_VENV := target/conformance-venv
CONFORMANCE := HOSTWARD=target/debug/hostward $(CONFORMANCE_VENV)/bin/python tests/conformance/run
# The conformance suites that `make test` runs: all of them but those that need large packages or a checkout.
TEST_SUITES := scan tls12 tls13 http2 clients grpc_calls

NEXTEST := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo yes)

.PHONY: help demo test conformance check bench perf build install clean packages-build packages-test packages-conformance packages-perf

help:
	@echo "make demo     a working edge with two customers: builds it, checks itself, stays up to be tried"
	@echo "make test     every test: unit, property, end to end against real clients and servers"
	@echo "make conformance   the suites of tests/conformance, all of them; CONFORMANCE_ARGS chooses"
	@echo "make check    format, lints, documentation, licences and advisories"
	@echo "make bench    criterion benchmarks and the rings compared"
	@echo "make perf     Hostward against nginx, HAProxy and a plain tokio proxy, side by side"
	@echo "make install  the binary, a sample configuration and the systemd unit, under $(PREFIX)"

build: packages-build
	$(CARGO) build --release --locked

demo: build
	target/release/hostward demo

# The tests run the binary of the test profile, which `cargo test` builds along.
test: packages-test $(CONFORMANCE_VENV)/installed
ifeq ($(NEXTEST),yes)
	$(CARGO) nextest run --locked --all-targets --no-fail-fast
	$(CARGO) test --locked --doc
else
	$(CARGO) test --locked --no-fail-fast
endif
	$(CONFORMANCE) $(TEST_SUITES)

conformance: packages-conformance $(CONFORMANCE_VENV)/installed
	$(CARGO) build --locked
	$(CONFORMANCE) $(CONFORMANCE_ARGS)

$(CONFORMANCE_VENV)/installed: tests/conformance/requirements.txt | packages-test
	rm -rf $(CONFORMANCE_VENV)
	$(PYTHON) -m venv $(CONFORMANCE_VENV)
	$(CONFORMANCE_VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: -r $<
	touch $@

check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --all-targets --features perf -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
	  $(CARGO) deny --locked check licenses bans sources && \
	  if $(CARGO) deny fetch db >/dev/null 2>&1; then $(CARGO) deny --locked check advisories; \
	  else echo "SKIPPED: advisories; their database cannot be reached from here"; fi; \
	else echo "SKIPPED: licences and advisories; install with: cargo install cargo-deny --locked"; fi

bench: packages-build
	$(CARGO) bench --locked

perf: packages-perf
	$(CARGO) build --release --locked
	$(CARGO) build --release --locked --features perf --examples
	perf/run $(PERF_ARGS)

install: build
	install -D -m 0755 target/release/hostward $(DESTDIR)$(PREFIX)/bin/hostward
	install -D -m 0644 config/hostward.service $(DESTDIR)/etc/systemd/system/hostward.service
	install -d -m 0750 $(DESTDIR)/etc/hostward
	@if [ -e $(DESTDIR)/etc/hostward/hostward.toml ]; then echo "kept $(DESTDIR)/etc/hostward/hostward.toml"; \
	else install -m 0640 config/hostward.toml $(DESTDIR)/etc/hostward/hostward.toml; fi

clean:
	$(CARGO) clean

# $(call need,PACKAGES): installs what is missing as root, or prints the line to run.
define need
	@missing=""; for p in $(1); do \
	  dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	case " $$missing " in *" nginx-light "*) if command -v nginx >/dev/null 2>&1 || [ -x /usr/sbin/nginx ]; then \
	  missing=$$(echo "$$missing" | sed 's/ nginx-light//'); fi;; esac; \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" = 0 ]; then \
	  mask=/usr/sbin/policy-rc.d; made=""; \
	  [ -e $$mask ] || { printf '#!/bin/sh\nexit 101\n' > $$mask && chmod 755 $$mask && made=$$mask; }; \
	  DEBIAN_FRONTEND=noninteractive; export DEBIAN_FRONTEND; \
	  { apt-get update -q && apt-get install -q -y --no-install-recommends $$missing; } >/dev/null; code=$$?; \
	  [ -z "$$made" ] || rm -f $$made; exit $$code; \
	else echo "Missing packages. Run once: sudo apt-get install$$missing"; exit 1; fi
endef

packages-build:
	$(call need,$(BUILD_PACKAGES))

packages-test:
	$(call need,$(TEST_PACKAGES))

packages-conformance:
	$(call need,$(CONFORMANCE_PACKAGES))

packages-perf:
	$(call need,$(PERF_PACKAGES))
