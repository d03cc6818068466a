#!/usr/bin/env bash
# Makes an environment as a common CUDA image has it, with the wheels beside it that such an image lacks, and runs both GPU scripts
# in it on tiny models: a rehearsal for a machine on which nothing can be installed from a registry.
#   ./scripts/gpu_environment.sh DIR          DIR is made, some gigabytes large; a second call only runs the scripts again
#   PYTHON=/path/to/python3.12 ./scripts/gpu_environment.sh DIR
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:?usage: ./scripts/gpu_environment.sh DIR}
base=${PYTHON:-python3.12}
if ! "$base" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
  echo "gpu_environment.sh: $base is not Python 3.12, which such an image has; name one: PYTHON=/path/to/python3.12 $0 $folder" >&2
  exit 3
fi
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
if [ ! -e "$folder/done" ]; then
  "$base" -m venv --clear "$folder/image"
  echo "Installing the image's packages into $folder/image (some minutes: torch is large) ..." >&2
  "$folder/image/bin/python" -m pip install --quiet \
    torch==2.11.0 torchvision==0.26.0 transformers==5.17.0 huggingface_hub==1.33.0 accelerate==1.15.0 tokenizers==0.23.2 \
    safetensors==0.8.0 timm numpy pillow pyarrow peft pandas matplotlib jinja2 click tqdm requests httpx xxhash fsspec packaging \
    filelock pyyaml regex psutil typing-extensions zipp
  # What the image lacks, in the versions of constraints.txt where it names them.
  . scripts/environment.sh
  environment
  "$python" scripts/bench_gpu.py --needs | tee "$folder/needs.txt"
  rm -rf "$folder/wheels"
  # shellcheck disable=SC2046  # a word for each package is meant
  "$folder/image/bin/python" -m pip download --quiet --no-deps --only-binary=:all: --dest "$folder/wheels" \
    $(awk '/==/ && / MB$/ {print $1}' "$folder/needs.txt")
  "$folder/image/bin/python" -m pip install --quiet --no-index --no-deps --upgrade --target "$folder/site" "$folder"/wheels/*.whl
  touch "$folder/done"
fi
du -sk "$folder/wheels" | awk '{printf "wheels: %.1f MB\n", $1 / 1024}'
git ls-files -z | xargs -0 du -ck 2>/dev/null | tail -1 | awk '{printf "code: %.1f MB\n", $1 / 1024}'
export PYTHONPATH="$folder/site" OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONDONTWRITEBYTECODE=1
code=0
"$folder/image/bin/python" scripts/bench_gpu.py --tiny --minutes "${MINUTES:-4}" --steps 6,5,2 --out "$folder/gpu.json" || code=$?
# Code 4: the minutes were over before everything was measured, as is usual on a CPU.
[ "$code" = 0 ] || [ "$code" = 4 ] || exit "$code"
"$folder/image/bin/python" scripts/check_full_size.py --tiny --out "$folder/full.json"
