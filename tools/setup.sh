#!/usr/bin/env bash
# Installs what the project needs on Debian 12 and is missing. Does nothing,
# quickly, when nothing is. CUDA is not installed: it comes with the machine.
set -euo pipefail

packages=(
  # Build: Bazel, compilers, code generators.
  bazel-bootstrap bazel-platforms bazel-skylib
  g++ binutils pkg-config protobuf-compiler protobuf-compiler-grpc
  # Libraries; WORKSPACE says what each is for.
  libabsl-dev libgmock-dev libgoogle-glog-dev libgrpc++-dev
  libgtest-dev libopenblas-dev libprotobuf-dev libsentencepiece-dev
  libsqlite3-dev libssl-dev nlohmann-json3-dev zlib1g-dev
  # Scripts, Python clients, and the text that quick start trains on.
  bible-kjv bible-kjv-text gzip python3 python3-grpcio python3-protobuf xz-utils
)

fail() {
  echo "tools/setup.sh: $*" >&2
  exit 1
}

command -v dpkg-query > /dev/null ||
  fail "this needs Debian 12 (apt); elsewhere install the packages it lists"

installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${packages[@]}" \
  2> /dev/null || true)
missing=()
for package in "${packages[@]}"; do
  [[ $'\n'$installed$'\n' == *$'\n'"installed $package"$'\n'* ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0

root=()
if ((EUID != 0)); then
  command -v sudo > /dev/null ||
    fail "not root and no sudo; as root: apt-get install ${missing[*]}"
  root=(sudo)
fi
echo "Installing: ${missing[*]}"
"${root[@]}" apt-get update -qq || fail "apt-get update failed"
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
  --no-install-recommends "${missing[@]}" > /dev/null ||
  fail "apt-get install failed for: ${missing[*]}"
