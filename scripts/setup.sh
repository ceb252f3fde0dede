#!/usr/bin/env bash
# Installs what building, testing and trying this project needs on Debian 12. Safe to repeat: when nothing is missing it
# says so in one line and changes nothing. docs/dependencies.md says what each library is for. CUDA and NCCL are not
# installed; it says whether they are there.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: scripts/setup.sh [--check]

Installs the Debian packages that the project needs, as root or through sudo, without asking questions.

  --check   install nothing; exit 1 and name the missing packages if there are any
TEXT
}

PACKAGES=(
  # To build.
  build-essential cmake ninja-build ccache mold pkg-config git ca-certificates
  # Libraries.
  openmpi-bin libopenmpi-dev
  libgrpc++-dev libgrpc-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc
  prometheus-cpp-dev libhwy-dev nlohmann-json3-dev libcli11-dev libspdlog-dev libxxhash-dev
  # To test and measure.
  libgtest-dev libgmock-dev prometheus openssl clang-format clang-tidy procps
  # Clients and test programs in Python: always /usr/bin/python3, whose grpcio is Debian's.
  python3 python3-grpcio python3-protobuf python3-matplotlib
)

fail() {
  echo "setup: $*" >&2
  exit 1
}

check_only=no
for argument in "$@"; do
  case "$argument" in
    --check) check_only=yes ;;
    -h | --help) usage; exit 0 ;;
    *) echo "setup: unknown option \"$argument\" (--check, --help)" >&2; exit 2 ;;
  esac
done

# Names of packages of the list that are not installed, one a line.
missing_packages() {
  local package
  for package in "${PACKAGES[@]}"; do
    if [[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ]]; then
      echo "$package"
    fi
  done
}

system=unknown version=unknown
if [[ -r /etc/os-release ]]; then
  system="$(. /etc/os-release && echo "${ID:-unknown}")"
  version="$(. /etc/os-release && echo "${VERSION_ID:-unknown}")"
fi
if [[ "$system" != debian ]] || ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  fail "this system is \"$system $version\"; only Debian 12 is supported. On others, install the counterparts of: ${PACKAGES[*]}"
fi
if [[ "$version" != 12 ]]; then
  echo "setup: Debian $version is untested (12 is what this project is built on)" >&2
fi

# CUDA and NCCL are optional and not Debian's: they are looked for, never installed.
report_cuda() {
  local nvcc header
  nvcc="$(PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin:/usr/local/cuda/bin" command -v nvcc || true)"
  if [[ -z "$nvcc" ]]; then
    echo "setup: no CUDA toolkit (optional; docs/gpu.md)"
    return
  fi
  for header in "${nvcc%/bin/nvcc}/include/nccl.h" /usr/include/nccl.h; do
    [[ -r "$header" ]] && break
  done
  if [[ -r "$header" ]]; then header="NCCL's header $header"; else header="no nccl.h (optional)"; fi
  echo "setup: CUDA compiler $nvcc, $header"
}
report_cuda

mapfile -t missing < <(missing_packages)
if ((${#missing[@]} == 0)); then
  echo "setup: all ${#PACKAGES[@]} packages are installed"
  exit 0
fi
if [[ "$check_only" == yes ]]; then
  fail "missing packages: ${missing[*]}"
fi

as_root=()
if ((EUID != 0)); then
  command -v sudo >/dev/null || fail "installing ${missing[*]} needs root: run this as root, or install sudo"
  as_root=(sudo)
fi
as_root+=(env DEBIAN_FRONTEND=noninteractive)

# Debian's prometheus package starts and enables a system service on port 9090. Only its binaries are used here, so the
# service is masked before the package arrives; where it was installed already, its service is its owner's business.
for package in "${missing[@]}"; do
  unit=/etc/systemd/system/prometheus.service
  if [[ "$package" == prometheus && ! -e "$unit" && ! -L "$unit" ]]; then
    echo "setup: masking prometheus.service (only the program is used; \"systemctl unmask prometheus\" undoes it)"
    "${as_root[@]}" mkdir -p "${unit%/*}"
    "${as_root[@]}" ln -s /dev/null "$unit"
  fi
done

echo "setup: installing ${missing[*]}"
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
run_apt() {
  if ! "${as_root[@]}" apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120 "$@" >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    fail "apt-get $1 failed (its output is above)"
  fi
}
run_apt update
run_apt install --yes --no-install-recommends "${missing[@]}"

mapfile -t missing < <(missing_packages)
((${#missing[@]} == 0)) || fail "still missing after installation: ${missing[*]}"
echo "setup: done"
