#!/usr/bin/env bash
# Builds what needs a GPU and packs it for a machine that has one but no Bazel:
#
#   tools/gpu_bundle.sh FILE.tar.xz
#
# There: tar xf FILE.tar.xz && gla_gpu/run.sh test (or sanitize, benchmark); see
# tools/gpu_bundle_run.sh. BAZEL can name another Bazel command.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

(($# == 1)) || { sed -n '2,7s/^# \?//p' "$0" >&2; exit 2; }
read -ra bazel <<< "${BAZEL:-bazel}"
output=$1

library=//kernels/c_api:libgla_kernels.so
benchmark=//kernels/gla:gla_gpu_benchmark
mapfile -t tests < <("${bazel[@]}" query 'attr(tags, "\bgpu\b", tests(//...))')
"${bazel[@]}" build --config=cuda "$library" "$benchmark" "${tests[@]}"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
bundle=$folder/gla_gpu
mkdir -p "$bundle"/{bin,tests,lib,python}

built_file() {  # of a label
  local path=${1#//}
  echo "bazel-bin/${path/:/\/}"
}

install -s "$(built_file "$benchmark")" "$bundle/bin/"
for test in "${tests[@]}"; do
  install -s "$(built_file "$test")" "$bundle/tests/"
done
install -m 644 "$(built_file "$library")" tools/python/gla_*.py "$bundle/python/"
install tools/gpu_bundle_run.sh "$bundle/run.sh"

# Shared libraries that the binaries need, but for the system's own and CUDA's.
ldd "$bundle"/bin/* "$bundle"/tests/* | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort -u |
  grep -Ev '/(libc|libm|libdl|librt|libpthread|libcu[a-zA-Z]+|libnccl)\.so' |
  xargs -r install -s -m 644 -t "$bundle/lib/"

tar -C "$folder" -cJf "$output" gla_gpu
echo "$output: $(du -h "$output" | cut -f1), ${#tests[@]} test binaries"
