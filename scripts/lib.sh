# shellcheck shell=bash
# What the setup scripts share. Sourced, never run.

PREFIX="${TRANSHIP_PREFIX:-/opt/tranship}"
REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# rustup's installer edits only login shells' PATH; make and CI start others.
PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/local/sbin:/usr/sbin:/sbin"
export REPO PATH DEBIAN_FRONTEND=noninteractive
# without it, `set -e` ends where $(...) begins
shopt -s inherit_errexit

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }

die() {
    say "$*"
    exit 1
}

require_root() {
    [ "$(id -u)" = 0 ] || die "must run as root: it installs packages and writes $PREFIX"
}

# at_least HAVE WANT: true when version HAVE is WANT or newer.
at_least() {
    [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}
