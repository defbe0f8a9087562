#!/usr/bin/env bash
# Builds classifiers, purifiers and attacks for CUDA without a system toolkit: the compiler and the libraries come from
# PyPI, the GPU's driver is not needed to build. The host and the threat models stay as they are.
#
#   scripts/cuda/build.sh [HOME_DIR]               HOME_DIR (target/cuda-home by default) will hold 2 GB of toolkit
#   scripts/cuda/build.sh [HOME_DIR] -- WORDS...   runs `cargo WORDS... --target-dir target/cuda` in the same environment:
#                                                  -- build --release -p advae-model-x --features advae-model-x/cudnn
#
# CUDA_COMPUTE_CAP is the GPU's compute capability times ten: 90 (H100, H200) unless it is set.
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=target/cuda-home
if [ $# -gt 0 ] && [ "$1" != -- ]; then
  folder="$1"
  shift
fi
root=$(mkdir -p "$folder" && cd "$folder" && pwd)
export CUDA_HOME="$root/home"
if [ ! -e "$root/complete" ]; then
  python3 -m venv "$root/venv"
  "$root/venv/bin/pip" install --quiet 'cuda-toolkit[nvcc,cudart,cublas,curand,nvrtc,cccl,crt]==13.0.*' nvidia-cudnn-cu13
  touch "$root/complete"
fi
if [ ! -e "$CUDA_HOME/complete" ]; then
  toolkit=$(echo "$root"/venv/lib/python3*/site-packages/nvidia)
  rm -rf "$CUDA_HOME"
  mkdir -p "$CUDA_HOME/bin" "$CUDA_HOME/include" "$CUDA_HOME/lib64"
  ln -s "$toolkit/cu13/nvvm" "$CUDA_HOME/"
  ln -s "$toolkit"/cu13/bin/* "$CUDA_HOME/bin/"
  ln -s "$toolkit"/cu13/include/* "$toolkit"/cudnn/include/*.h "$CUDA_HOME/include/"
  # Without the kernels that nothing calls: see the script.
  ln -s "$toolkit/cu13/bin/nvcc" "$CUDA_HOME/bin/nvcc.real"
  ln -sf "$PWD/scripts/cuda/nvcc" "$CUDA_HOME/bin/nvcc"
  # The linker looks for names without a version.
  for library in "$toolkit"/cu13/lib/lib*.so.* "$toolkit"/cudnn/lib/lib*.so.*; do
    name=$(basename "$library")
    ln -s "$library" "$CUDA_HOME/lib64/$name"
    ln -sf "$library" "$CUDA_HOME/lib64/${name%%.so.*}.so"
  done
  ln -s "$toolkit"/cu13/lib/*.a "$CUDA_HOME/lib64/"
  # The driver's library comes with the GPU: here a stub stands for it, with the names of its functions.
  cc -E "$CUDA_HOME/include/cuda.h" | grep -oE '\bcu[A-Z][A-Za-z0-9_]*\(' | sort -u | sed 's/(/(void) {}/; s/^/void /' |
    cc -shared -Wl,-soname,libcuda.so.1 -o "$CUDA_HOME/lib64/libcuda.so" -x c -
  ln -s lib64 "$CUDA_HOME/lib"
  touch "$CUDA_HOME/complete"
fi

export PATH="$CUDA_HOME/bin:$PATH" CUDA_PATH="$CUDA_HOME" CUDA_ROOT="$CUDA_HOME" CUDA_TOOLKIT_ROOT_DIR="$CUDA_HOME"
export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-90}" CUDAFORGE_THREADS="${CUDAFORGE_THREADS:-$(nproc)}"
export RUSTFLAGS="-L native=$CUDA_HOME/lib64 -C link-arg=-Wl,--unresolved-symbols=ignore-in-shared-libs ${RUSTFLAGS:-}"
# A folder of its own: other flags would have cargo build everything anew at every change of mind.
if [ $# -gt 0 ]; then
  shift
  exec cargo "$@" --target-dir target/cuda
fi
packages=(advae-resnet29v2)
for name in x a b c d; do packages+=("advae-model-$name"); done
for name in advae advae-cifar10 hgd hgd-cifar10 identity magnet defense-gan defense-vae ape-gan; do packages+=("advae-purifier-$name"); done
# All but `transfer`, which computes nothing.
for name in apgd cw ddn deepfool fab fgsm fmn mi-fgsm noise pgd spsa square; do packages+=("advae-attack-$name"); done
cargo build --release --locked --target-dir target/cuda "${packages[@]/#/--package=}" --features advae-model-x/cudnn
# It checks the networks on a device.
cargo build --release --locked --target-dir target/cuda -p advae-nn --example cuda_net --features advae-nn/cudnn
echo "Plugins for CUDA are in target/cuda/release:"
ls target/cuda/release/*.so
echo "To use them: LD_LIBRARY_PATH=$CUDA_HOME/lib64 ADVAE_PLUGIN_PATH=target/cuda/release ./target/release/advae-host eval --device cuda:0 ..."
