#!/bin/sh
# ./install.sh            installs opta, its manual pages and completions
# ./install.sh uninstall  removes them
#
# PREFIX (/usr/local), BINDIR ($PREFIX/bin) and MANDIR ($PREFIX/share/man) decide where everything
# goes; DESTDIR is put before all of them.
# shellcheck disable=SC2317 # each() calls commands by their names.
set -eu
: "${PREFIX:=/usr/local}" "${DESTDIR:=}"
: "${BINDIR:=$PREFIX/bin}" "${MANDIR:=$PREFIX/share/man}"
here=$(dirname "$0")
action=${1-install}

fail() {
    echo "$action: $*" >&2
    return 1
}

# each COMMAND: runs the command with the mode, the source and the destination of each file.
each() {
    "$1" 755 "$here/bin/opta" "$DESTDIR$BINDIR/opta" || return
    for page in opta opta-do opta-chat opta-models opta-config opta-doctor opta-web opta-daemon opta-sessions; do
        "$1" 644 "$here/share/man/man1/$page.1" "$DESTDIR$MANDIR/man1/$page.1" || return
    done
    for file in bash-completion/completions/opta zsh/site-functions/_opta \
        fish/vendor_completions.d/opta.fish; do
        "$1" 644 "$here/share/$file" "$DESTDIR$PREFIX/share/$file" || return
    done
}

stage() {
    test -f "$2" || fail "cannot install $3: there is no $2" || return
    ! test -d "$3" || fail "cannot install $3: a directory is in its place" || return
    install -d "${3%/*}" && install -m "$1" "$2" "$3.new"
}
place() { mv -f "$3.new" "$3"; }
discard() { rm -f "$3.new"; }
remove() { if rm -f "$3"; then echo "removed $3"; else status=1; fi; }

case $DESTDIR$PREFIX$BINDIR$MANDIR in
*'~'*) fail "no shell expanded the ~ in $PREFIX: write \$HOME" || exit ;;
esac
status=0
case $action in
install)
    # All files are staged beside their destinations, then renamed: a running program is replaced,
    # and where one file cannot be written, nothing has changed.
    if each stage && each place; then
        echo "Installed $DESTDIR$BINDIR/opta, its manual pages and completions."
    else
        status=1
        each discard
    fi
    ;;
uninstall) each remove ;;
*)
    echo "usage: $0 [install | uninstall]" >&2
    status=2
    ;;
esac
exit "$status"
