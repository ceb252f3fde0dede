#!/bin/bash
# Gives every rank but the first its own share of a processor, so that ranks which share a machine's processors are as
# slow as each would be alone: how uneven work tells can then be seen on fewer processors than ranks.
set -euo pipefail

usage() {
  cat <<'END'
Usage: mpirun … bench/rank_quota.sh SHARE COMMAND…
  SHARE   of one processor, 0.05 to 1, that each rank from 1 on may use; rank 0 is not limited
Needs Linux control groups of version 1 with the cpu controller, and the right to make some (root). Ranks that wait should
sleep, not poll: with moe_bench and moe_serve, --transport grpc.
Example:
  mpirun --oversubscribe --bind-to none -n 8 bench/rank_quota.sh 0.15 moe_bench engine --model DIR --transport grpc
END
}

bad_usage() {
  echo "rank_quota.sh: $*" >&2
  exit 2
}

period_us=10000  # a burst of a rank is at most SHARE of it

[[ "${1:-}" != "--help" ]] || { usage; exit 0; }
(($# >= 2)) || bad_usage "SHARE and COMMAND are needed (--help)"
quota_us="$(awk -v share="$1" -v period="$period_us" 'BEGIN { if (share ~ /^[0-9.]+$/ && share >= 0.05 && share <= 1) print int(share * period) }')"
[[ -n "$quota_us" ]] || bad_usage "SHARE \"$1\" is not 0.05 to 1"
shift
rank="${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-}}"
[[ -n "$rank" ]] || bad_usage "mpirun has not started this: there is no rank"
((rank > 0)) || exec "$@"

group="/sys/fs/cgroup/cpu/moe-rank-$rank-$$"
mkdir "$group" 2>/dev/null || bad_usage "$group cannot be made: control groups of version 1 and root are needed"
trap 'rmdir "$group" 2>/dev/null || true' EXIT
echo "$period_us" > "$group/cpu.cfs_period_us"
echo "$quota_us" > "$group/cpu.cfs_quota_us"
(
  echo "$BASHPID" > "$group/cgroup.procs"
  exec "$@"
) &
child=$!
trap 'kill -TERM "$child" 2>/dev/null || true' TERM INT
status=0
wait "$child" || status=$?
# A signal ends the first wait, not the child.
while kill -0 "$child" 2>/dev/null; do wait "$child" || status=$?; done
exit "$status"
