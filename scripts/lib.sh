# Sourced by the scripts of this folder: where things are, how MPI is started, timed phases. Changes the current folder
# to the repository's root.

MOE_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$MOE_ROOT"

# Debian's own interpreter, whose grpcio and protobuf fit Debian's protoc; another Python on PATH has neither.
PYTHON=/usr/bin/python3

# Open MPI refuses more ranks than cores, refuses root, and binds each of two ranks to one core, before any of our code
# runs; these flags lift the three.
MPIRUN=(mpirun --oversubscribe --bind-to none)
if ((EUID == 0)); then
  MPIRUN+=(--allow-run-as-root)
fi

JOBS="$(nproc)"
PHASES=()  # "seconds name" of each phase that ended

fail() {
  echo "${0##*/}: $*" >&2
  exit 1
}

# phase NAME COMMAND…: runs the command, prints how long it took, returns its status.
phase() {
  local name="$1" begin="$SECONDS" status=0
  shift
  echo "== $name"
  "$@" || status=$?
  PHASES+=("$((SECONDS - begin)) $name")
  if ((status == 0)); then
    echo "== $name: $((SECONDS - begin)) s"
  else
    echo "== $name: failed with status $status after $((SECONDS - begin)) s"
  fi
  return "$status"
}

print_phases() {
  local entry
  for entry in "${PHASES[@]}"; do
    printf '%6d s  %s\n' "${entry%% *}" "${entry#* }"
  done
}

# configure PRESET [-D…]: for building all of it once, which several files an object make a third shorter. For work on
# the code one file an object is better, so the presets leave that as it is.
configure() {
  cmake --preset "$1" -DCMAKE_UNITY_BUILD=ON "${@:2}"
}

# build PRESET [TARGET…]: all targets when none is named.
build() {
  local targets=()
  (($# < 2)) || targets=(--target "${@:2}")
  cmake --build --preset "$1" --parallel "$JOBS" "${targets[@]}"
}
