# Sourced by scripts/demo and scripts/test: makes .venv if there is none and installs the package into it.
#   environment            what hfsyn needs
#   environment dev        that, and what its tests need
# Leaves $python pointing at the environment's interpreter. Reinstalls only when the dependencies change.

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  echo "hfsyn needs Python 3.11 or newer, and none was found; install it, or name one: PYTHON=/path/to/python3 $0" >&2
  exit 3
}

environment() {
  local extra=${1:-} base stamp wanted
  python=.venv/bin/python
  if [ ! -x "$python" ]; then
    base=$(find_python)
    if ! "$base" -m venv --clear .venv >/dev/null 2>&1; then
      rm -rf .venv
      echo "$base cannot make a virtual environment; install its venv module (Debian: apt-get install python3-venv)" >&2
      exit 3
    fi
  fi
  wanted=$(cat pyproject.toml constraints.txt scripts/environment.sh | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
  # The dev environment holds everything that the plain one does.
  for stamp in .venv/.hfsyn-dev ".venv/.hfsyn${extra:+-$extra}"; do
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
  done
  echo "Installing hfsyn into .venv (a few minutes the first time: torch is large) ..." >&2
  if command -v uv >/dev/null 2>&1; then
    uv pip install --quiet --python "$python" --constraint constraints.txt --editable ".${extra:+[$extra]}" >&2 || install_failed
  else
    "$python" -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable ".${extra:+[$extra]}" \
      >&2 || install_failed
  fi
  echo "$wanted" > ".venv/.hfsyn${extra:+-$extra}"
}

install_failed() {
  echo "The installation failed (see above): hfsyn needs a package registry to install from, and about 8 GB of disk" >&2
  exit 3
}
