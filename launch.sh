#!/usr/bin/env bash
# Prepares the Python environment in .venv, then runs a command in it.
#
#   ./launch.sh              trains the quickstart
#   ./launch.sh train DIR    trains on your own images
#   ./launch.sh test …       runs the tests; the words after it go to pytest
#   ./launch.sh VERB …       runs `runner VERB …`; ./launch.sh --help lists the verbs
#
# The variable PYTHON names the Python that builds the environment, if the default one is not wanted.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
venv=$here/.venv
message() { printf 'launch.sh: %s\n' "$*" >&2; }
fail() { message "$*"; exit 2; }

# The environment is rebuilt when its requirements change. The checksum is written last: an interrupted installation
# is repeated.
checksum=$(cat "$here/pyproject.toml" "$here/constraints.txt" | cksum)
ready() { [ -f "$venv/.ready" ] && [ "$(cat "$venv/.ready")" = "$checksum" ]; }

recent_python() { "$1" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11, 4))' 2>/dev/null; }

find_python() {
  local python
  for python in "${PYTHON:-}" python3.14 python3.13 python3.12 python3.11 python3 python; do
    if [ -n "$python" ] && command -v "$python" >/dev/null 2>&1 && recent_python "$python"; then
      printf '%s' "$python"
      return
    fi
  done
  return 1
}

# Says every ten seconds what pip does. Ends with this script.
watch_pip() {
  local line next=$((SECONDS + 10))
  while sleep 1 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
    if [ "$SECONDS" -ge "$next" ]; then
      line=$(grep -oE '^ *(Collecting|Downloading|Installing) [^ ]+( \([0-9.]+ .B\))?' "$1" | tail -n 1) || true
      case "$line" in *Installing*) line="installing: $(du -sm "$venv" 2>/dev/null | cut -f 1) MB so far" ;; esac
      message "$((SECONDS / 60)):$(printf %02d $((SECONDS % 60))) ${line:-starting pip}"
      next=$((SECONDS + 10))
    fi
  done
}

# The CPU-only packages of torch, which are smaller, if there is no GPU and the user's package index has them.
cpu_packages() {
  local name version driver
  [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null || return 0
  for driver in /proc/driver/nvidia/version /dev/dxg /dev/kfd; do
    [ ! -e "$driver" ] || return 0
  done
  for name in torch torchvision; do
    version=$(sed -n "s/^$name==//p" "$here/constraints.txt")+cpu
    "$venv/bin/python" -m pip index versions --disable-pip-version-check "$name" 2>/dev/null |
      grep -F "$version" >/dev/null || return 0
    set -- "$@" "$name==$version"
  done
  printf '%s\n' "$@"
}

prepare() {
  local python cpu watcher status=0 log=$venv/install.log
  python=$(find_python) ||
    fail "Python 3.11.4 or newer with its venv module was not found. Install it, or set PYTHON to its path."
  if recent_python "$venv/bin/python"; then
    message "updating $venv: its requirements changed, or an earlier installation did not finish …"
  else
    message "creating $venv with $("$python" -V). This happens once and takes minutes …"
    "$python" -m venv --clear "$venv" || fail "$venv could not be created; see the message above."
  fi
  cpu=$(cpu_packages)
  if [ -n "$cpu" ]; then
    message "there is no GPU: installing torch for the CPU (once there is one, delete $venv). The log is $log."
  else
    message "installing packages of several GB. The log is $log."
  fi
  : >"$log"
  watch_pip "$log" 9>&- &
  watcher=$!
  # shellcheck disable=SC2086 # words
  "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
    -c "$here/constraints.txt" -e "$here[dev]" $cpu >"$log" 2>&1 || status=$?
  kill "$watcher" 2>/dev/null || true
  if [ "$status" != 0 ]; then
    tail -n 15 "$log" >&2
    fail "the installation failed; the whole log is in $log."
  fi
  printf '%s' "$checksum" >"$venv/.ready"
}

if ! ready; then
  exec 9>"$here/.venv.lock"
  if command -v flock >/dev/null && ! flock -n 9; then
    message "another launch.sh is preparing the environment; waiting for it …"
    flock 9
  fi
  ready || prepare
  exec 9>&-
fi

case "${1:-}" in
  "") exec "$venv/bin/runner" train ;;
  test) shift; cd "$here"; exec "$venv/bin/python" -m pytest "$@" ;;
  *) exec "$venv/bin/runner" "$@" ;;
esac
