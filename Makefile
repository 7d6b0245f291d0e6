# Run `make` for the list of what can be made. As root: tests and demo make network namespaces.

# Not in the checkout, which may lie below a directory that is root's alone (/root): the gateway drops to
# unprivileged users, and they must be able to run what is installed. And root-owned: sshd refuses helpers otherwise.
ifeq ($(shell id -u),0)
CACHE ?= /var/cache/ssh-mosh-gateway
else
CACHE ?= $(HOME)/.cache/ssh-mosh-gateway
endif
VENV ?= $(CACHE)/$(shell printf %s "$(CURDIR)" | sha256sum | cut -c1-12)

# One worker each CPU; the tests wait for the network most of the time, so two at the least.
WORKERS ?= $(shell n=$$(nproc); echo $$((n > 2 ? n : 2)))
PYTEST_ARGS ?=
BENCH_ARGS ?=
SOAK_ARGS ?=
QUICK ?=
ON ?=

# Other releases of Debian, whose sshd the tests compare with this machine's. Made as root alone.
TREES ?= $(if $(filter 0,$(shell id -u)),trixie)
# A tree in use is not made anew.
LOCKS = $(foreach suite,$(TREES),flock --shared "$(CACHE)/debian/$(suite).lock")

# The release whose files the lab's remote has, where it is to be another one than the gateway's.
REMOTE_ON ?=

# What the gateway runs on (docs/install.md names them), and then what the lab and the tests are made of.
DEBIAN_PACKAGES := openssh-server openssh-client mosh libnss-systemd systemd ncurses-term util-linux python3-venv \
	iproute2 mount procps ca-certificates vim less tmux putty-tools dropbear-bin rsync git iptables haproxy \
	zsh fish tcsh xonsh ksh93u+m busybox dbus libpam-systemd strace valgrind

# One image for each checkout, as with the virtual environments.
IMAGE ?= localhost/ssh-mosh-gateway:$(notdir $(VENV))
CONTAINER_PACKAGES := podman buildah crun runc catatonit netavark aardvark-dns

export REMOTE_ON

# The checkout is not on Python's path: what runs is the wheel that was installed from it.
export PYTHONSAFEPATH := 1
# Nothing is written into the checkout.
export PYTHONDONTWRITEBYTECODE := 1

.DEFAULT_GOAL := help
.PHONY: help deps demo docs picture bench bulk siege soak test trees image lock lint format clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS='	' read -r name text; do \
		printf '  make %-8s %s\n' "$$name" "$$text"; done

deps: ## Install what is missing: Debian packages, and a virtual environment outside of the checkout
	@.ci/install-debian-packages $(DEBIAN_PACKAGES)
	@.ci/install-python "$(VENV)"

demo: deps ## Show a login through a gateway over a bad WAN, all on this machine
	@PYTHONPATH=tests "$(VENV)/bin/python" tests/demo.py

docs: deps ## Write the documentation of settings and commands from the code, and build the site
	@PYTHONPATH=tests "$(VENV)/bin/python" -m docs.generate
	@"$(VENV)/bin/mkdocs" --quiet build --strict --site-dir "$(VENV)/site"
	@echo "The site is at $(VENV)/site/index.html"

picture: deps ## Draw docs/login.svg from a login over a bad WAN
	@PYTHONPATH=tests "$(VENV)/bin/python" -m docs.picture

bench: deps ## Measure logins, typing and load beside ssh and mosh (QUICK=1 for a few of each; BENCH_ARGS='--json FILE')
	@"$(VENV)/bin/python" -m pip --quiet --quiet --disable-pip-version-check --no-input install --group bench
	@PYTHONPATH=tests "$(VENV)/bin/python" -m bench $(if $(QUICK),--quick) $(BENCH_ARGS)

soak: deps ## Watch for an hour whether anything grows (SOAK_ARGS='--minutes 10 --sessions 100' for less)
	@PYTHONPATH=tests "$(VENV)/bin/python" -m bench.soak $(SOAK_ARGS)

siege: deps ## Log in while strangers and hostile users attack, for ten minutes (SIEGE_ARGS='--minutes 2' for less)
	@PYTHONPATH=tests "$(VENV)/bin/python" -m bench.siege $(SIEGE_ARGS)

bulk: deps ## Measure 1 GiB by scp, sftp and rsync beside ssh -J (BULK_ARGS='--mib 64' for less)
	@PYTHONPATH=tests "$(VENV)/bin/python" -m bench.bulk $(BULK_ARGS)

ifneq ($(ON),)
# The same, but for where it runs: the tree has its own packages, its own Python and its own virtual environment.
test:
	@for suite in $(REMOTE_ON); do .ci/on-debian $$suite "$(CACHE)" "$(DEBIAN_PACKAGES)"; done
	@.ci/on-debian "$(ON)" "$(CACHE)" "$(DEBIAN_PACKAGES)" $(MAKE) test ON= TREES='$(REMOTE_ON)' \
		$(foreach name,CACHE VENV WORKERS PYTEST_ARGS,$(name)='$($(name))')
else
test: deps trees ## Run all tests (PYTEST_ARGS='-k name' for some; ON=trixie on that release of Debian)
	@DEBIAN_TREES="$(if $(TREES),$(CACHE)/debian)" $(LOCKS) "$(VENV)/bin/python" -m pytest -n $(WORKERS) $(PYTEST_ARGS)
endif

trees: deps
	@for suite in $(TREES); do .ci/on-debian $$suite "$(CACHE)" "$(DEBIAN_PACKAGES)"; done

image: deps ## Build the image and test it (BASE=NAME for another base)
	@.ci/install-debian-packages $(CONTAINER_PACKAGES)
	@.ci/build-image "$(IMAGE)"
	@GATEWAY_IMAGE="$(IMAGE)" "$(VENV)/bin/python" -m pytest tests/image $(PYTEST_ARGS)

lock: deps ## Take the newest Python packages into image/requirements*.txt, with their hashes
	@"$(VENV)/bin/python" -m pip --quiet --quiet --disable-pip-version-check --no-input install --group lock
	@.ci/lock "$(VENV)/bin/uv"

lint: deps ## Check style, types, the direction of imports, the documentation's links, and what CI may do
	@"$(VENV)/bin/ruff" check
	@"$(VENV)/bin/ruff" format --check
	@"$(VENV)/bin/mypy"
	@"$(VENV)/bin/lint-imports" --no-cache
	@"$(VENV)/bin/mkdocs" build --strict --site-dir "$(VENV)/site"
	@"$(VENV)/bin/zizmor" --offline --quiet --persona=pedantic .github

format: deps ## Put the sources into shape
	@"$(VENV)/bin/ruff" check --fix --exit-zero --quiet
	@"$(VENV)/bin/ruff" format

clean: ## Remove the virtual environment and the caches
	-@command -v podman >/dev/null && .ci/podman rmi --ignore "$(IMAGE)"
	rm -rf "$(VENV)" .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist
