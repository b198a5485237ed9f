#!/usr/bin/env bash
# Prepares the environment, then hands over: `./launch.sh` trains the quickstart, `./launch.sh test` runs the tests,
# `./launch.sh VERB …` is `runner VERB …` (runner --help lists them). PYTHON names the Python to build with.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
venv=$here/.venv
say() { printf 'launch.sh: %s\n' "$*" >&2; }

# Rebuilt when what it is made of changes; the stamp is written last, so that a broken build is built again.
wanted=$(cat "$here/pyproject.toml" "$here/constraints.txt" | cksum)
ready() { [ -f "$venv/.ready" ] && [ "$(cat "$venv/.ready")" = "$wanted" ]; }

prepare() {
  local python
  for python in "${PYTHON:-}" python3.14 python3.13 python3.12 python3.11 python3 python; do
    [ -n "$python" ] && command -v "$python" >/dev/null 2>&1 || continue
    "$python" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11, 4))' 2>/dev/null && break
    python=
  done
  [ -n "$python" ] || { say "needs Python 3.11.4 or newer with its venv module; install it, or name it in PYTHON."; exit 2; }
  if "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' 2>/dev/null; then
    say "bringing $venv up to date: its requirements have changed, or it was not finished …"
  else
    say "preparing $venv with $("$python" -V) (once; the packages are some GB, which takes minutes) …"
    "$python" -m venv --clear "$venv" || { say "could not make $venv; see above."; exit 2; }
  fi
  local log=$venv/install.log
  "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
    -c "$here/constraints.txt" -e "$here[dev]" >"$log" 2>&1 || { tail -n 15 "$log" >&2; say "the installation failed; $log tells all."; exit 2; }
  printf '%s' "$wanted" >"$venv/.ready"
}

if ! ready; then
  exec 9>"$here/.venv.lock"
  if command -v flock >/dev/null; then
    flock -n 9 || { say "another launch.sh is preparing the environment; waiting for it …"; flock 9; }
  fi
  ready || prepare
  exec 9>&-
fi

case "${1:-}" in
  "") exec "$venv/bin/runner" train ;;
  test) shift; cd "$here"; exec "$venv/bin/python" -m pytest "$@" ;;
  *) exec "$venv/bin/runner" "$@" ;;
esac
