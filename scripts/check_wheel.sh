#!/usr/bin/env bash
# Checks the wheel with each Python that it is made for and that is here: builds it, installs it into an empty
# environment, makes a small dataset from another folder, and loads it.
#   scripts/check_wheel.sh                        3.11, 3.12 and 3.13: minutes and 8 GB each, mostly torch
#   scripts/check_wheel.sh 3.12                   this one
#   scripts/check_wheel.sh --reuse .venv          without installing what the wheel needs: takes that environment's
#                                                 packages, and so only its version of Python
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD reuse="" versions=()
while [ $# -gt 0 ]; do
  case $1 in
    --reuse) reuse=$(cd "${2:?names an environment}" && pwd) && shift 2 ;;
    3.*) versions+=("$1") && shift ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "$0" && exit 2 ;;
  esac
done
[ ${#versions[@]} -gt 0 ] || versions=(3.11 3.12 3.13)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

is_version() { "$1" -c 'import sys; sys.exit(".".join(map(str, sys.version_info[:2])) != sys.argv[1])' "$2" > /dev/null 2>&1; }

# A shim may stand for a version that is not selected: what answers counts, not what lies on the path.
find_python() {
  local candidate
  for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python "/usr/bin/python$1" python3 python; do
    if is_version "$candidate" "$1"; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

check() {
  local python=$1 place=$folder/$2
  "$python" -m venv "$place/venv"
  if [ -n "$reuse" ]; then
    # As a path, not as a site folder: links in there to a checkout are not followed.
    "$reuse/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$("$place/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/reused.pth"
    "$place/venv/bin/python" -m pip install -qq --disable-pip-version-check --no-deps --force-reinstall "$wheel"
  else
    "$place/venv/bin/python" -m pip install -qq --disable-pip-version-check --constraint "$here/constraints.txt" "$wheel"
  fi
  mkdir "$place/elsewhere"
  cd "$place/elsewhere"
  unset PYTHONPATH
  export HF_HUB_OFFLINE=1 HF_HOME=$place/hf HF_DATASETS_DISABLE_PROGRESS_BARS=1 OMP_NUM_THREADS=1
  local hfsyn=$place/venv/bin/hfsyn
  "$hfsyn" --version
  "$hfsyn" build shapes-cip --limit 2 --out run --num-processes 1 --quiet
  "$hfsyn" verify run
  "$place/venv/bin/python" - "$place/venv" << 'PYTHON'
import sys

import datasets

import builders
import hfsyn

rows = datasets.load_dataset("run", split="train")
assert len(rows) == 20, rows
assert rows[0]["image"].mode == "RGB", rows[0]["image"]
for package in (builders, hfsyn):
    assert package.__file__.startswith(sys.argv[1]), package.__file__
print(f"Python {sys.version.split()[0]}: {len(rows)} rows, hfsyn {hfsyn.__version__} from the wheel")
PYTHON
}

builder=${reuse:+$reuse/bin/python}
for version in "${versions[@]}"; do
  builder=${builder:-$(find_python "$version" || true)}
done
"${builder:?no Python of these versions is here}" -m pip wheel -qq --disable-pip-version-check --no-deps -w "$folder" .
wheel=$(echo "$folder"/hfsyn-*.whl)
checked=0
for version in "${versions[@]}"; do
  if ! python=$(find_python "$version"); then
    echo "Python $version is not here: not checked" >&2
  elif [ -n "$reuse" ] && ! is_version "$reuse/bin/python" "$version"; then
    echo "Python $version is not that of $reuse: not checked" >&2
  else
    (check "$python" "$version")
    rm -rf "${folder:?}/$version"
    checked=$((checked + 1))
  fi
done
[ "$checked" -gt 0 ]
