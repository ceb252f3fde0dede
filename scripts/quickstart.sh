#!/usr/bin/env bash
# From a fresh Debian 12 to answers: installs, builds, starts a server of several processes on a bundled model, sends it
# tasks over gRPC, shows what came back and who did it, and stops the server. A second run starts in seconds.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'TEXT'
Usage: scripts/quickstart.sh

Environment:
  MOE_RANKS   processes to start: one router and the rest expert workers (8)
  MOE_MODEL   model folder (models/eight-languages-moe)
TEXT
}

case "${1:-}" in
  "") ;;
  -h | --help) usage; exit 0 ;;
  *) echo "quickstart.sh: unknown option \"$1\" (--help)" >&2; exit 2 ;;
esac

ranks="${MOE_RANKS:-8}"
model="${MOE_MODEL:-models/eight-languages-moe}"
if ! [[ "$ranks" =~ ^[1-9][0-9]{0,3}$ ]]; then
  echo "quickstart.sh: MOE_RANKS \"$ranks\" is not a number of processes (1 to 9999)" >&2
  exit 2
fi

READY_SECONDS=60  # far above what a start takes; a start that hangs must end
STOP_SECONDS=45   # above the server's own --drain-timeout of 30

work="$(mktemp -d)"
ready="$work/ready.json"
server_log="$work/server.log"
mpirun_pid=
router_pid=

# Every process below PID, deepest last.
descendants() {
  local child
  for child in $(ps -o pid= --ppid "$1"); do
    echo "$child"
    descendants "$child"
  done
}

# ended PID SECONDS: true once the process is gone, false when it is still there after that long.
ended() {
  local deadline=$((SECONDS + $2))
  while kill -0 "$1" 2>/dev/null; do
    ((SECONDS < deadline)) || return 1
    sleep 0.05
  done
}

# However this script ends, nothing that it started stays: first politely, then not.
cleanup() {
  local status=$?
  trap - EXIT
  trap '' INT TERM HUP
  if [[ -n "$mpirun_pid" ]] && kill -0 "$mpirun_pid" 2>/dev/null; then
    local started
    mapfile -t started < <(descendants "$mpirun_pid")
    kill -TERM "$mpirun_pid" 2>/dev/null || true
    ended "$mpirun_pid" 5 || kill -KILL "$mpirun_pid" 2>/dev/null || true
    ((${#started[@]} == 0)) || kill -KILL "${started[@]}" 2>/dev/null || true
  fi
  rm -rf "$work"
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

build_release() {
  local log="build/release/quickstart-build.log"
  local targets=(moe_serve moe_bench moe_plan cpp_client moe_proto_python)
  mkdir -p build/release
  if [[ ! -f build/release/build.ninja ]]; then
    configure release >"$log" 2>&1 || { cat "$log" >&2; return 1; }
  fi
  # Ninja's own line of progress on a terminal; elsewhere only a failure is worth showing.
  if [[ -t 1 ]]; then
    build release "${targets[@]}"
  else
    build release "${targets[@]}" >"$log" 2>&1 || { tail -n 60 "$log" >&2; return 1; }
  fi
}

server_failed() {
  sed 's/^/  | /' "$server_log" >&2
  fail "$1 (its output is above)"
}

start_server() {
  local command=("${MPIRUN[@]}" -n "$ranks" build/release/bin/moe_serve --model "$model" --listen 127.0.0.1:0
                 --metrics-port auto --ready-file "$ready")
  echo "${command[*]}"
  # In a session of its own, so that Ctrl-C reaches this script alone, which then stops the server in order.
  setsid "${command[@]}" >"$server_log" 2>&1 </dev/null &
  mpirun_pid=$!
  local deadline=$((SECONDS + READY_SECONDS))
  until [[ -f "$ready" ]]; do  # written atomically: once there, it is whole
    kill -0 "$mpirun_pid" 2>/dev/null || server_failed "the server ended before it was ready"
    ((SECONDS < deadline)) || server_failed "the server was not ready after $READY_SECONDS s"
    sleep 0.05
  done
  router_pid="$("$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))["pid"])' "$ready")"
  address="$("$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))["grpc"])' "$ready")"
}

# SIGTERM to the router drains the cluster: every rank ends by itself, and mpirun's status is theirs.
stop_server() {
  local status=0
  kill -TERM "$router_pid"
  ended "$mpirun_pid" "$STOP_SECONDS" || server_failed "the server had not stopped $STOP_SECONDS s after SIGTERM"
  wait "$mpirun_pid" || status=$?
  mpirun_pid=
  ((status == 0)) || server_failed "the server ended with status $status"
  echo "The server has stopped: all $ranks processes ended with status 0."
}

scripts/setup.sh
begin="$SECONDS"
build_release || fail "the build failed"
echo "build: done in $((SECONDS - begin)) s"
start_server
echo "ready: $ranks processes, gRPC on $address"

status=0
MOE_PYTHON_STUBS=build/release/python "$PYTHON" -B examples/quickstart.py --server "$address" || status=$?
if ((status != 0)); then
  tail -n 20 "$server_log" | sed 's/^/  | /' >&2
  fail "the client failed with status $status (the server's last lines are above)"
fi
echo
stop_server
cat <<TEXT

Try next:
  ${MPIRUN[*]} -n $ranks build/release/bin/moe_serve --model $model
  $PYTHON examples/python_client.py --stop-at-newline "25 August 2057 | "     (beside that server)
  bench/cluster_load_test.sh
TEXT
