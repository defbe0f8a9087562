#!/usr/bin/env bash
# Packs what on_gpu.sh needs into one archive: the host, plugins for the CPU and for CUDA, MNIST's test images, and the
# wheels of torchattacks and foolbox. The checkout itself is not in it. Build first: cargo build --release,
# scripts/cuda/build.sh.
#
#   scripts/cuda/pack.sh DATA_DIR [ARCHIVE]        ARCHIVE is target/on_gpu.tar.xz by default
set -euo pipefail
cd "$(dirname "$0")/../.."

data="${1:?usage: scripts/cuda/pack.sh DATA_DIR [ARCHIVE]}"
archive=$(realpath -m "${2:-target/on_gpu.tar.xz}")
most=60 # MiB
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT

# The host attacks on the CPU with these. On CUDA it takes everything from the other folder, but threat models.
cpu=(white_box oblivious black_box fgsm pgd cw model_x model_a model_b model_c model_d advae hgd magnet defense_vae ape_gan)
mkdir -p "$folder/target/release" "$folder/target/cuda/release/examples" "$folder/data/mnist"
cp target/release/advae-host "$folder/target/release/"
for name in "${cpu[@]}"; do cp "target/release/lib$name.so" "$folder/target/release/"; done
cp target/cuda/release/*.so "$folder/target/cuda/release/"
if [ -e target/cuda/release/examples/cuda_net ]; then cp target/cuda/release/examples/cuda_net "$folder/target/cuda/release/examples/"; fi
# Names of functions are a tenth of the size.
find "$folder/target" -type f -exec strip --strip-all {} +

for name in t10k-images-idx3-ubyte t10k-labels-idx1-ubyte; do
  found=
  for file in "$data/mnist/$name.gz" "$data/mnist/$name" "$data/$name.gz" "$data/$name"; do
    if [ -z "$found" ] && [ -e "$file" ]; then found="$file"; fi
  done
  cp "${found:?"no $name in '$data'"}" "$folder/data/mnist/"
done
# The rows of peers that are not there are left out.
wheels=$(grep -E '^(torchattacks|foolbox|eagerpy)==' benches/peers/requirements.txt)
mkdir -p target/wheels
# shellcheck disable=SC2086 # one word a package
python3 -m pip download --quiet --no-deps --dest target/wheels $wheels GitPython gitdb smmap || echo "no wheels: without torchattacks and foolbox" >&2
cp -r target/wheels "$folder/"

# One dictionary over everything: the same libraries are in every plugin.
# It takes some minutes, and 7 GB of memory.
tar -C "$folder" --owner=0 --group=0 --mtime=@0 --sort=name -cf - . | xz --lzma2=preset=5,dict=600MiB -T1 >"$archive.part"
mv "$archive.part" "$archive"
du -sh --apparent-size "$folder" | sed 's/\t.*/ before/'
size=$(($(stat -c %s "$archive") / 1024))
echo "$archive: $((size / 1024)).$((size % 1024 * 10 / 1024)) MiB"
if [ "$size" -gt $((most * 1024)) ]; then
  echo "more than $most MiB" >&2
  exit 1
fi
