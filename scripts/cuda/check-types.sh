#!/usr/bin/env bash
# Type-checks and lints what is compiled for CUDA alone, on a machine without CUDA: the kernels' compiler is replaced by a
# script that writes empty files. Nothing is linked, so no library is needed.
set -euo pipefail
cd "$(dirname "$0")/../.."

# Always the same one: cargo builds anew what was built with another.
folder="$PWD/target/cuda-types/home"
mkdir -p "$folder/bin" "$folder/include" "$folder/lib64"
cat >"$folder/bin/nvcc" <<'STUB'
#!/usr/bin/env bash
# Answers as nvcc 13.0 does, and leaves the file it was asked for empty.
out= folder=
for source; do :; done
while [ $# -gt 0 ]; do
  case "$1" in
    --version) echo "Cuda compilation tools, release 13.0, V13.0.0" ;;
    -o) out="$2" && shift ;;
    --output-directory) folder="$2" && shift ;;
  esac
  shift
done
if [ -n "$folder" ]; then out="$folder/$(basename "$source" .cu).ptx"; fi
if [ -n "$out" ]; then : >"$out"; fi
STUB
chmod +x "$folder/bin/nvcc"

export PATH="$folder/bin:$PATH" CUDA_HOME="$folder" CUDA_PATH="$folder" CUDA_ROOT="$folder" CUDA_TOOLKIT_ROOT_DIR="$folder"
export CUDARC_CUDA_VERSION=13000 CUDA_COMPUTE_CAP=90
unset NVCC
# Its own folder: other features would have cargo build the rest of the workspace anew.
cargo clippy --locked --target-dir target/cuda-types --lib --examples \
  -p advae-nn -p advae-sdk -p mnist_models -p advae-model-x -p advae-attack-pgd \
  --features advae-nn/cudnn,advae-sdk/cudnn,mnist_models/cudnn,advae-model-x/cudnn,advae-attack-pgd/cudnn -- -D warnings
