#!/bin/sh
# Builds the fixture plugins with another compiler than the one of PATH.
# usage: other_rustc.sh TARGET_DIR
# OTHER_RUSTC names the compiler; otherwise Debian's is taken (packages rustc and rustc-web put it in /usr/bin).
# Run by hand or with CI=true, it installs that package where it can. Exit code 77: none was found, the reason is
# printed.
set -eu
target=$1
fixtures=$(dirname "$0")/fixtures

# The release and the commit of a compiler; nothing where it does not run or is older than the workspace's minimum.
version() {
    "$1" --version 2>/dev/null || true
}

usable() {
    other=$(version "$1")
    [ -n "$other" ] && [ "$other" != "$(version "${RUSTC:-rustc}")" ]
}

install() {
    command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || return 1
    apt-get update -q >&2 && apt-get install -q -y --no-install-recommends rustc-web >&2
}

rustc=${OTHER_RUSTC:-/usr/bin/rustc}
if [ ! -x "$rustc" ] && { [ -t 1 ] || [ "${CI:-}" = true ]; }; then
    install || true
fi
if ! usable "$rustc"; then
    echo "no other compiler at $rustc: install Debian's rustc-web, or name one with OTHER_RUSTC"
    exit 77
fi
minor=$(version "$rustc" | sed 's/^rustc 1\.\([0-9]*\).*/\1/')
if [ "$minor" -lt 89 ]; then
    echo "$rustc is rustc 1.$minor, the contract needs 1.89: name another one with OTHER_RUSTC"
    exit 77
fi
version "$rustc"
# A toolchain's own variables would lead the other compiler to the wrong standard library.
unset RUSTUP_TOOLCHAIN RUSTFLAGS LD_LIBRARY_PATH 2>/dev/null || true
RUSTC=$rustc exec "${CARGO:-cargo}" build --manifest-path "$fixtures/Cargo.toml" --target-dir "$target" >&2
