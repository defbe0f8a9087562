#!/bin/sh
# Runs under Miri, which finds undefined behaviour: the tests of core/abi, and tests of the portable kernels of core/nn that are
# small enough for an interpreter. The kernels for AVX2 are out of its reach; `scripts/sanitize.sh` is the next best thing.
#
# Needs a nightly toolchain with the components miri and rust-src:
#
#     rustup toolchain install nightly --component miri --component rust-src
#
# Options of Miri may be added in MIRIFLAGS. The exit code is 77 where Miri is not installed.
set -eu
cd "$(dirname "$0")/.."

if ! cargo +nightly miri --version >/dev/null 2>&1; then
    echo "Miri is not installed: rustup toolchain install nightly --component miri --component rust-src"
    exit 77
fi

# Kernels ask the environment for their portable form; everything else stays isolated.
export ADVAE_KERNELS=portable CANDLE_NUM_THREADS=1 RAYON_NUM_THREADS=1
export MIRIFLAGS="-Zmiri-env-forward=ADVAE_KERNELS -Zmiri-env-forward=CANDLE_NUM_THREADS -Zmiri-env-forward=RAYON_NUM_THREADS ${MIRIFLAGS:-}"
export CARGO_TARGET_DIR=target/miri

cargo +nightly miri test -p advae-abi --lib
cargo +nightly miri test -p advae-nn --lib
# One small image or batch each; what sweeps over shapes or compares differences would take hours.
cargo +nightly miri test -p advae-nn --test kernels -- \
    same_padding_is_tensorflows impossible_convolutions_are_errors inputs_need_not_be_contiguous empty_batches_pass
cargo +nightly miri test -p advae-nn --test gradients -- \
    transposed_convolution_by_hand first_of_equals_has_the_whole_gradient not_a_number_stays_one \
    a_tape_runs_again_with_another_cotangent
