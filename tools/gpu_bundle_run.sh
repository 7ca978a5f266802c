#!/usr/bin/env bash
# Runs what tools/gpu_bundle.sh packed, on a machine with a Hopper GPU, PyTorch
# for CUDA 13 and, for `sanitize`, NVIDIA's compute-sanitizer:
#
#   run.sh test [FLAGS]       every GPU test, then gla_kernels_test.py with FLAGS
#   run.sh sanitize [TOOL...] small shapes under compute-sanitizer; TOOL: memcheck,
#                             racecheck, synccheck, initcheck (default: all four)
#   run.sh benchmark [FLAGS]  gla_gpu_benchmark, then gla_benchmark.py with FLAGS
#
# `test` and `sanitize` end with one line: N passed, N failed, N skipped. With
# the folder of fla's package in FLA, tests and benchmarks compare with fla.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# For the binaries alone: PyTorch brings its own. CUDA's may come with PyTorch.
cuda_libraries=$(python3 -c '
import glob, site
print(":".join(glob.glob(site.getsitepackages()[0] + "/nvidia/*/lib")))' 2> /dev/null)
libraries=$here/lib:${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$cuda_libraries

passed=0 failed=0 skipped=0

# count PASSED FAILED SKIPPED STATUS: a run that failed without saying in which
# test, by a crash for one, counts as one failure.
count() {
  local bad=${2:-0}
  ((bad > 0 || $4 == 0)) || bad=1
  passed=$((passed + ${1:-0})) failed=$((failed + bad)) skipped=$((skipped + ${3:-0}))
}

output=$(mktemp)
trap 'rm -f "$output"' EXIT

# run_gtest BINARY FILTER [COMMAND...]: the tests that match, under the command.
run_gtest() {
  local binary=$1 filter=$2 status
  shift 2
  echo "== $(basename "$binary")"
  LD_LIBRARY_PATH=$libraries "$@" "$binary" --gtest_filter="$filter" 2>&1 | tee "$output"
  status=${PIPESTATUS[0]}
  count "$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' "$output")" \
    "$(sed -n 's/^\[  FAILED  \] \([0-9]*\) tests\?, listed.*/\1/p' "$output")" \
    "$(sed -n 's/^\[  SKIPPED \] \([0-9]*\) test.*/\1/p' "$output")" "$status"
}

# run_python FLAGS -- [COMMAND...]: gla_kernels_test.py, under the command.
run_python() {
  local flags=() status
  while [[ $1 != -- ]]; do
    flags+=("$1")
    shift
  done
  shift
  echo "== gla_kernels_test.py ${flags[*]}"
  "$@" python3 "$here/python/gla_kernels_test.py" "${flags[@]}" 2>&1 | tee "$output"
  status=${PIPESTATUS[0]}
  local line='^([0-9]+) passed, ([0-9]+) failed, ([0-9]+) skipped$'
  if [[ $(grep -E "$line" "$output" | tail -n 1) =~ $line ]]; then
    count "${BASH_REMATCH[@]:1}" "$status"
  else
    count 0 0 0 1
  fi
}

finish() {
  echo "$passed passed, $failed failed, $skipped skipped"
  exit $((failed > 0))
}

# Each tensor in memory of its own, so that a tool sees where it ends.
sanitize() {
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  local tools=("$@") tool binary filter
  (($#)) || tools=(memcheck racecheck synccheck initcheck)
  for tool in "${tools[@]}"; do
    echo "==== $tool"
    run_python --quick --poison -- compute-sanitizer --tool "$tool" --error-exitcode 86
    for binary in "$here"/tests/*_{gpu,cuda}_test; do
      filter='*'
      [[ $binary == *_cuda_test ]] || filter='*Cuda*'  # of tests for both devices
      # Its shapes take too long here, and its kernels are those of the others.
      [[ $binary == */gla_fla_shapes_gpu_test ]] ||
        run_gtest "$binary" "$filter" compute-sanitizer --tool "$tool" --error-exitcode 86
    done
  done
}

case ${1:-} in
  test)
    shift
    for binary in "$here"/tests/*; do run_gtest "$binary" '*'; done
    run_python "$@" --
    finish
    ;;
  sanitize)
    shift
    sanitize "$@"
    finish
    ;;
  benchmark)
    shift
    LD_LIBRARY_PATH=$libraries "$here/bin/gla_gpu_benchmark" &&
      python3 "$here/python/gla_benchmark.py" "$@"
    ;;
  *)
    sed -n '2,14s/^# \?//p' "$0" >&2
    exit 2
    ;;
esac
