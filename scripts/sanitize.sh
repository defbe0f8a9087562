#!/bin/sh
# Runs the tests of core/abi, whose unsafe code reads what foreign libraries hand over, under AddressSanitizer (with leaks) and
# under valgrind.
#
# Needs a nightly toolchain (`rustup toolchain install nightly`) for the first and valgrind for the second, on x86-64 Linux. What is
# missing is skipped with a word; the exit code is 1 where anything was found, and 77 where nothing could be run.
set -u
cd "$(dirname "$0")/.."
target=x86_64-unknown-linux-gnu
ran=0 failed=0

if cargo +nightly --version >/dev/null 2>&1; then
    echo "== AddressSanitizer, $(rustc +nightly --version)"
    ran=1
    RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=target/asan \
        cargo +nightly test -p advae-abi --target $target --lib || failed=1
else
    echo "== AddressSanitizer: skipped, there is no nightly toolchain: rustup toolchain install nightly"
fi

if command -v valgrind >/dev/null; then
    echo "== $(valgrind --version)"
    ran=1
    # A panic's backtrace lock and the test harness's threads live until the process ends: still reachable is no leak.
    CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="valgrind --quiet --error-exitcode=1 --leak-check=full --errors-for-leak-kinds=definite --show-leak-kinds=definite" \
        cargo test -p advae-abi --lib -- --test-threads=1 || failed=1
else
    echo "== valgrind: skipped, it is not installed"
fi

[ $ran = 1 ] || exit 77
exit $failed
