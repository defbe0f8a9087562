#!/usr/bin/env bash
# Everything that waits for a GPU, in order of worth, within twelve minutes. It needs Python with PyTorch for CUDA, whose
# folders have the CUDA libraries. It needs no toolkit, no Rust and no network: pack.sh makes the archive with the rest.
#
#   scripts/cuda/on_gpu.sh                 all steps
#   scripts/cuda/on_gpu.sh net peers       these steps
#   scripts/cuda/on_gpu.sh --dry-run       what it would run, and whether every file is there
#   scripts/cuda/on_gpu.sh --archive FILE  runs what is in this one: target/on_gpu.tar.xz, if it is there; without an
#                                          archive, what was built here
#
# Every step ends after its own time, and what it prints is in $OUT (target/gpu-results) at once.
# DEVICE is cuda:0, PRECISION=1 gives the host `--precision` in the step `peers`, LIMIT is 720 seconds.
set -euo pipefail
cd "$(dirname "$0")/../.."

dry=
archive=target/on_gpu.tar.xz
chosen=()
while [ $# -gt 0 ]; do
  case "$1" in
    --dry-run) dry=1 ;;
    --archive) archive="${2:?--archive FILE}" && shift ;;
    -*) echo "unknown flag '$1': known are --dry-run and --archive FILE" >&2 && exit 2 ;;
    *) chosen+=("$1") ;;
  esac
  shift
done
steps=(net check doctor profile peers train)
for name in "${chosen[@]}"; do
  if [[ " ${steps[*]} " != *" $name "* ]]; then echo "no step '$name': steps are ${steps[*]}" >&2 && exit 2; fi
done
if [ ${#chosen[@]} -eq 0 ]; then chosen=("${steps[@]}"); fi

out="${OUT:-target/gpu-results}"
device="${DEVICE:-cuda:0}"
limit="${LIMIT:-720}"
summary=/dev/null
if [ -z "$dry" ]; then
  mkdir -p "$out"
  summary="$out/summary.txt"
  : >"$summary"
fi
note() { echo "$*" | tee -a "$summary"; }
note "$device, $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null || echo 'no nvidia-smi'), $(date -u +%FT%TZ)"

base=.
if [ -e "$archive" ]; then
  base=target/on_gpu
  if [ ! "$base/complete" -nt "$archive" ]; then
    rm -rf "$base"
    mkdir -p "$base"
    # Python does it where xz is missing.
    if command -v xz >/dev/null; then
      tar -C "$base" -xf "$archive"
    else
      python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$archive" "$base"
    fi
    touch "$base/complete"
    note "unpacked after $SECONDS s"
  fi
fi
cpu=$base/target/release
cuda=$base/target/cuda/release
host=$cpu/advae-host
net=$cuda/examples/cuda_net
python=$(command -v python3)
site="$PWD/$base/site"
if compgen -G "$base/wheels/*.whl" >/dev/null && [ ! -e "$site/complete" ]; then
  if "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$base"/wheels/*.whl; then
    touch "$site/complete"
  fi
fi
# PyTorch brings cuDNN, cuBLAS, NVRTC and the runtime, a folder each; the toolkit of build.sh does as well.
libraries=$("$python" -c '
import glob
try:
    import nvidia
    print(":".join(folder for path in nvidia.__path__ for folder in sorted(glob.glob(path + "/*/lib"))))
except ImportError:
    print("")
')
if [ -d target/cuda-home/home/lib64 ]; then libraries="$libraries:$PWD/target/cuda-home/home/lib64"; fi
# The driver's, where the loader does not know it.
for folder in /usr/local/nvidia/lib64 /usr/lib64-nvidia; do
  if [ -e "$folder/libcuda.so.1" ]; then libraries="$libraries:$folder"; fi
done
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
export ADVAE_PLUGIN_PATH="$PWD/$cuda" ADVAE_DATA_DIR="${ADVAE_DATA_DIR:-$PWD/$base/data}" PYTHONUNBUFFERED=1

missing=0
need() {
  for file in "$@"; do
    if [ ! -e "$file" ]; then
      echo "  missing: $file"
      missing=$((missing + 1))
    fi
  done
}
# step NAME SECONDS COMMAND...: its output is in $out/NAME.log as it comes.
step() {
  local name="$1" seconds="$2" begun=$SECONDS code=0
  shift 2
  if [[ " ${chosen[*]} " != *" $name "* ]]; then return; fi
  if [ -n "$dry" ]; then
    echo "$name, at most $seconds s: $*"
    return
  fi
  if [ $((limit - SECONDS)) -lt "$seconds" ]; then seconds=$((limit - SECONDS)); fi
  if [ "$seconds" -lt 5 ]; then
    note "$name: no time was left"
    return
  fi
  echo "== $name"
  timeout --kill-after=5 "$seconds" "$@" 2>&1 | tee "$out/$name.log" || code=${PIPESTATUS[0]}
  local how="ended with $code"
  if [ "$code" -eq 0 ]; then how=passed; elif [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then how="was stopped"; fi
  note "$name: $how after $((SECONDS - begun)) s"
}

# 1. The lowering of networks to CUDA, against the CPU, a unit at a time.
if [ -e "$net" ]; then
  step net 60 "$net"
else
  note "net, profile: left out, for '$net' is not there"
fi

# 2. The same images on the CPU and on the GPU, whole pipelines. The doctor looks at these models' files here.
need "$host" "$cpu"/lib{white_box,fgsm,pgd,model_x,advae,hgd}.so "$cuda"/lib{model_x,advae,hgd}.so
step check 90 "$python" scripts/cuda/check.py model_x advae hgd --samples 500 --cpu "$cpu" --gpu "$cuda" --device "$device"

# 3. The doctor, with gradients against finite differences, on everything else.
doctor_one() {
  local said code=0
  # The step before has seen these.
  case "$1" in */libmodel_x.so | */libadvae.so | */libhgd.so) return ;; esac
  said=$(timeout 60 "$HOST" doctor "$1" --device "$DEVICE" 2>&1) || code=$?
  if [ $code -eq 0 ]; then said=$(tail -n 1 <<<"$said"); fi
  echo "doctor $(basename "$1"), $code: $said"
  return $code
}
doctor_all() { printf '%s\0' "$@" | xargs -0 -P 4 -n 1 bash -c 'doctor_one "$1"' doctor; }
export HOST="$host" DEVICE="$device"
export -f doctor_one doctor_all
step doctor 150 bash -c 'doctor_all "$@"' doctor "$cuda"/lib*.so

# 4. Where the time of a pass goes.
if [ -e "$net" ]; then step profile 40 "$net" --profile; fi

# 5. Beside PyTorch.
need "$cuda"/lib{pgd,cw,resnet29v2,advae_cifar10}.so plugins/classifiers/model_x/weights/clean.safetensors
need plugins/purifiers/advae/weights/default.safetensors scripts/agreement/models.py
if ! compgen -G "$ADVAE_DATA_DIR/mnist/t10k-images*" >/dev/null; then need "$ADVAE_DATA_DIR/mnist/t10k-images-idx3-ubyte.gz"; fi
step peers 200 "$python" benches/peers/gpu.py --host "$host" --device "$device" --out "$out/peers.jsonl" --limit 185 ${PRECISION:+--pass-precision}

# 6. Training, in images per second: the last epoch's number counts.
train_one() {
  timeout 30 "$HOST" train --epochs 3 --batch-size 128 --device "$DEVICE" --out "$TRAINED/$1" "${@:2}"
  cat "$TRAINED/$1/log.jsonl"
}
train_all() {
  if [[ "$("$HOST" train --help)" != *--device* ]]; then
    echo "this host trains on the CPU alone"
    return
  fi
  TRAINED=$(mktemp -d)
  train_one cifar10 --classifier resnet29v2.so --purifier advae_cifar10.so:convolutions=1 --dataset cifar10-1k \
    --attack pgd:steps=5,relative_step_size=0.4,early_stop=false
  train_one mnist --classifier model_x.so --purifier advae.so --dataset mnist-test --attack pgd:steps=10,early_stop=false
}
export -f train_one train_all
step train 70 bash -c train_all

if [ -n "$dry" ]; then
  if [ "$missing" -gt 0 ]; then echo "$missing files are missing" && exit 1; fi
  echo "every file is there"
else
  echo "== $summary"
  cat "$summary"
fi
