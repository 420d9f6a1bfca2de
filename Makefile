# Two commands are enough: `make run` runs a container image as a VM, `make test` runs the tests.

PYTHON := /usr/bin/python3.11
VENV   := .venv
STAMP  := $(VENV)/.installed
BIN    := $(VENV)/bin

# What to run: an image reference (empty: the demo image, made here from Debian's busybox) and a command for it.
IMAGE ?=
CMD   ?=
# Tests in VMs wait most of the time: two processes, the tests of a file in one of them, take half as long as one.
SIDE_BY_SIDE := --numprocesses 2 --dist loadfile
# How long to fuzz; empty: until stopped.
SECONDS ?=

.PHONY: help packages run test test-unit test-vm lint bench fuzz pico iso boot-iso setup clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: setup ## run IMAGE (or a demo image) as a VM: make run IMAGE=REF CMD="..."
	@scripts/run-demo "$(IMAGE)" $(CMD)

setup: $(STAMP) ## install what is missing and make .venv with the commands vch and imagebuild

packages:
	@scripts/install-packages run

$(STAMP): setup.cfg pyproject.toml | packages
	@echo "making $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --disable-pip-version-check --editable '.[test,guest,sbom]' >$(VENV)/pip.log 2>&1 || \
		{ cat $(VENV)/pip.log >&2; exit 1; }
	@$(BIN)/python -m compileall -q tether imagebuild initramfs vch  # pip does it, but not for what is editable
	@touch $@

test: setup ## lint, types, unit tests, then tests in real VMs
	@scripts/install-packages test
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory fuzz SECONDS=20
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) tests/unit tests/vm

test-unit: setup ## only the tests that need no VM
	@scripts/install-packages test
	@$(BIN)/python -m pytest tests/unit

test-vm: setup ## only the tests in real VMs
	@scripts/install-packages test
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) tests/vm

lint: setup ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: setup ## measure, print tables, write bench.json
	@scripts/install-packages bench
	@$(BIN)/python -m tests.bench --output bench.json

fuzz: setup ## fuzz what untrusted bytes of the link reach, until stopped or for SECONDS
	@$(BIN)/pip install --quiet --disable-pip-version-check atheris
	@$(BIN)/python tests/fuzz/fuzz_decoder.py $(if $(SECONDS),--seconds $(SECONDS))

pico: setup ## build the pico kernel once (about 12 minutes on two cores); used as soon as it exists
	@scripts/install-packages pico
	@$(BIN)/python -m imagebuild.boot.pico_build

iso: setup ## write build/vch.iso: a kernel, the agent and IMAGE (or the demo image), for BIOS and UEFI
	@scripts/make-iso build/vch.iso "$(IMAGE)"

boot-iso: iso ## boot build/vch.iso under both firmwares and show what the container prints
	@scripts/install-packages iso
	@scripts/boot-iso build/vch.iso

clean: ## remove what was made in this folder (the state folder stays)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis bench.json
