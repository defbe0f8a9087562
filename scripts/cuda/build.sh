#!/usr/bin/env bash
# Builds classifiers, purifiers and the attacks that work on a GPU for CUDA without a system toolkit: the compiler and the libraries come from PyPI, the
# GPU's driver is not needed to build. The host stays as it is.
#
#   scripts/cuda/build.sh [HOME_DIR]      HOME_DIR (target/cuda-home by default) will hold 2 GB of toolkit
#
# CUDA_COMPUTE_CAP is the GPU's compute capability times ten: 90 (H100, H200) unless it is set.
set -euo pipefail
cd "$(dirname "$0")/../.."

root=$(mkdir -p "${1:-target/cuda-home}" && cd "${1:-target/cuda-home}" && pwd)
export CUDA_HOME="$root/home"
if [ ! -e "$root/complete" ]; then
  python3 -m venv "$root/venv"
  "$root/venv/bin/pip" install --quiet 'cuda-toolkit[nvcc,cudart,cublas,curand,nvrtc,cccl,crt]==13.0.*' nvidia-cudnn-cu13
  toolkit=$(echo "$root"/venv/lib/python3*/site-packages/nvidia)
  rm -rf "$CUDA_HOME"
  mkdir -p "$CUDA_HOME/include" "$CUDA_HOME/lib64"
  ln -s "$toolkit/cu13/bin" "$toolkit/cu13/nvvm" "$CUDA_HOME/"
  ln -s "$toolkit"/cu13/include/* "$toolkit"/cudnn/include/*.h "$CUDA_HOME/include/"
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
  touch "$root/complete"
fi

export PATH="$CUDA_HOME/bin:$PATH" CUDA_PATH="$CUDA_HOME" CUDA_ROOT="$CUDA_HOME" CUDA_TOOLKIT_ROOT_DIR="$CUDA_HOME"
export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-90}"
export RUSTFLAGS="-L native=$CUDA_HOME/lib64 -C link-arg=-Wl,--unresolved-symbols=ignore-in-shared-libs ${RUSTFLAGS:-}"
# A folder of its own: other flags would have cargo build everything anew at every change of mind.
cargo build --release --locked --target-dir target/cuda \
  -p mnist_models -p advae-model-x -p advae-model-a -p advae-model-b -p advae-model-c -p advae-model-d \
  -p advae-purifier-advae -p advae-purifier-hgd -p advae-purifier-identity -p advae-purifier-magnet \
  -p advae-purifier-defense-gan -p advae-purifier-defense-vae -p advae-purifier-ape-gan \
  -p advae-attack-fgsm -p advae-attack-pgd -p advae-attack-mi-fgsm -p advae-attack-cw -p advae-attack-apgd \
  -p advae-attack-ddn -p advae-attack-fmn -p advae-attack-deepfool \
  --features mnist_models/cudnn
echo "Plugins for CUDA are in target/cuda/release:"
ls target/cuda/release/*.so
echo "To use them: LD_LIBRARY_PATH=$CUDA_HOME/lib64 ADVAE_PLUGIN_PATH=target/cuda/release ./target/release/advae-host eval --device cuda:0 ..."
