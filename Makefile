# On a fresh Debian 12 machine, as root, with Rust from rustup: `make demo` and `make test` do everything else.
# TRANSHIP_PREFIX (/opt/tranship) is where scripts/setup puts what is not a Debian package.

TRANSHIP_PREFIX ?= /opt/tranship
CARGO_HOME ?= $(HOME)/.cargo
FUZZ_SECONDS ?= 60
SOAK_MOVES ?= 200

export TRANSHIP_PREFIX
export PATH := $(PATH):$(CARGO_HOME)/bin:/usr/local/sbin:/usr/sbin:/sbin

# The steps of a target run in the order they are written, also under `make -j`.
.NOTPARALLEL:
.PHONY: help setup build lint test test-full faults soak model demo bench fuzz clean-testbed

help:
	@echo 'make setup          install what building and running need; once done, a check that takes a moment'
	@echo 'make build          target/release/{transhipd,tranship,testbed,demo,bench}'
	@echo 'make demo           move a Redis between two hosts while a client counts'
	@echo 'make test           everything that CI runs; the last line has the totals'
	@echo 'make test-full      the end-to-end tests that take minutes: 1 GiB moved ten times, 1 GiB that forks, a JVM'
	@echo 'make faults         daemons that die or fail at every step of a handoff and of its recovery, also two things at once, links that are cut, slow or lossy, power cuts, and what else a host may run out of'
	@echo 'make soak           a Redis under load, moved to and fro SOAK_MOVES (200) times'
	@echo 'make model          what two or three hosts can do to each other in a handoff: the larger exploration'
	@echo 'make lint           shell scripts, formatting, clippy, licences and sources of dependencies'
	@echo 'make bench          what docs/BENCHMARKS.md reports; BENCH="--scenario redis-1g --moves 5" for a part of it'
	@echo 'make fuzz           each fuzz target for FUZZ_SECONDS (60); needs cargo-fuzz'
	@echo 'make clean-testbed  remove what an interrupted run left behind'

setup:
	scripts/setup

build: setup
	cargo build --release --workspace

lint: setup
	scripts/install-cargo-deny
	shellcheck -x .ci/run scripts/*
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	cargo clippy --release --workspace --features tranship-daemon/fault-points -- -D warnings
	$(TRANSHIP_PREFIX)/cargo/bin/cargo-deny --locked --log-level warn check licenses bans sources

test: setup lint
	scripts/run-tests

test-full: build
	scripts/build-images java
	cargo test --release --workspace --no-fail-fast --test generations --test java --test redis -- --test-threads=1 --ignored --nocapture

faults: setup
	scripts/run-faults

soak: build
	TRANSHIP_MOVES=$(SOAK_MOVES) cargo test --release --workspace --test soak -- --nocapture

model: setup
	cargo test --release --workspace --test model -- --ignored --nocapture

demo: build
	target/release/demo

bench: build
	target/release/bench $(BENCH)

fuzz: setup
	scripts/run-fuzz $(FUZZ_SECONDS)

clean-testbed:
	target/release/testbed down
