#!/usr/bin/env bash
# Tests and measures the runner on a machine with a GPU, without a network and in less than ten minutes:
#
#   benchmarks/gpu.sh FOLDER [settings of an experiment]
#
# Runs the source tree with the python3, torch and torchvision that are there. Packages that are missing are taken from
# the wheels in $WHEELS, one of them of this project (pip wheel --no-deps .). RUNNER_TEST_DEVICE=cpu tries it on a CPU.
# FOLDER receives tests.txt, bench.txt and gpu.json: the figures as one JSON object.
set -uo pipefail
if [ $# -eq 0 ]; then
    echo "usage: benchmarks/gpu.sh FOLDER [settings]" >&2
    exit 2
fi
folder=$1
shift
mkdir -p "$folder" || exit 2
cd "$(dirname "$0")/.." || exit 2
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl || exit 2
    export PYTHONPATH=$site
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
if [ "${RUNNER_TEST_DEVICE:-cuda}" = cpu ]; then
    export ACCELERATE_USE_CPU=true
fi
python3 -m pytest -m gpu -n 0 -q -rs tests/gpu 2>&1 | tee "$folder/tests.txt"
tests=${PIPESTATUS[0]}
timeout 300 python3 -m runner.cli.main bench gpu "$@" 2>&1 | tee "$folder/bench.txt"
bench=${PIPESTATUS[0]}
grep '^{' "$folder/bench.txt" | tail -n 1 > "$folder/gpu.json"
[ "$tests" -eq 0 ] && [ "$bench" -eq 0 ] || exit 1
