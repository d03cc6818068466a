#!/bin/bash
# Runs the tests that kill, stop and starve processes N times (20), because what they find may need luck to be seen:
#
#   scripts/repeat_faults.sh [N] [ARGUMENT OF PYTEST]...
#
# Ends with exit code 1 at the first failure.
set -u
cd "$(dirname "$0")/.."
source scripts/environment.sh
environment dev
times=${1:-20}
shift || true
for i in $(seq "$times"); do
  if ! out=$("$python" -m pytest -q -x -p no:cacheprovider tests/whole/test_faults.py tests/whole/test_resume.py "$@" 2>&1); then
    echo "$out"
    echo "failed in round $i of $times"
    exit 1
  fi
  echo "$i of $times: $(tail -n 1 <<<"$out")"
done
