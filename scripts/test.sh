#!/usr/bin/env bash
# Builds everything with warnings as errors and runs all tests, then those that suit them under the sanitizers. The last
# line is ctest's summary over all of it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'TEXT'
Usage: scripts/test.sh [--fast] [--preset release|asan|tsan]

  (no option)    all tests of the release build; unit, contract and MPI tests under the address and undefined-behaviour
                 sanitizers; the tests of concurrent code under the thread sanitizer
  --fast         the release build only
  --preset NAME  one of the three only
TEXT
}

presets=(release asan tsan)
while (($# > 0)); do
  case "$1" in
    --fast) presets=(release) ;;
    --preset)
      (($# > 1)) || { echo "test.sh: --preset needs a name (release, asan, tsan)" >&2; exit 2; }
      case "$2" in
        release | asan | tsan) presets=("$2") ;;
        *) echo "test.sh: --preset \"$2\" is unknown (release, asan, tsan)" >&2; exit 2 ;;
      esac
      shift
      ;;
    -h | --help) usage; exit 0 ;;
    *) echo "test.sh: unknown option \"$1\" (--fast, --preset, --help)" >&2; exit 2 ;;
  esac
  shift
done

logs="$(mktemp -d)"
trap 'rm -rf "$logs"' EXIT
failed=()  # phases that did not pass

# run_ctest PRESET NAME CTEST-OPTION…: a selection that finds no test is a failure. Output is kept for the summary.
run_ctest() {
  local preset="$1" name="$2"
  shift 2
  ctest --preset "$preset" --output-on-failure --no-tests=error "$@" 2>&1 | tee "$logs/$preset-$name"
}

# Tests with several processes run one at a time: they load all cores, and their deadlines are not for three at once.
test_release() {
  local status=0
  run_ctest release parallel --parallel "$JOBS" --label-exclude '^(e2e|mpi)$' || status=1
  run_ctest release serial --parallel 1 --label-regex '^(e2e|mpi)$' || status=1
  return "$status"
}
test_asan() {
  local status=0
  run_ctest asan parallel --parallel "$JOBS" --label-regex '^(unit|contract)$' --label-exclude '^e2e$' || status=1
  run_ctest asan serial --parallel 1 --label-regex '^mpi$' || status=1
  return "$status"
}
test_tsan() { run_ctest tsan all --parallel "$JOBS" --label-regex '^concurrent$'; }

# Under the sanitizers only the test programs that run there are built, and warnings stay warnings: instrumented code
# makes GCC see what is not there, and the release build has judged the same files.
build_release() { configure release -DMOE_WARNINGS_AS_ERRORS=ON && build release; }
build_asan() { configure asan -DMOE_WARNINGS_AS_ERRORS=OFF && build asan moe_tests_unit moe_tests_contract moe_tests_mpi; }
build_tsan() { configure tsan -DMOE_WARNINGS_AS_ERRORS=OFF && build tsan moe_tests_concurrent; }

phase "setup" scripts/setup.sh
for preset in "${presets[@]}"; do
  if phase "$preset: build" "build_$preset"; then
    phase "$preset: tests" "test_$preset" || failed+=("$preset: tests")
  else
    failed+=("$preset: build")
  fi
done

# summary_numbers: "failed total" summed over every ctest run above.
summary_numbers() {
  cat "$logs"/* /dev/null |
    awk '/^[0-9]+% tests passed, [0-9]+ tests? failed out of [0-9]+$/ { failed += $4; total += $NF }
         END { print failed + 0, total + 0 }'
}

# Names of tests that failed, with the build they failed in.
failed_tests() {
  local file
  for file in "$logs"/*; do
    [[ -f "$file" ]] || continue
    sed -n "/^The following tests FAILED:/,/^\$/ s/^\t *[0-9]* - \(.*\)\$/  ${file##*/}: \1/p" "$file"
  done
}

echo
echo "== summary"
print_phases
failed_tests
for name in "${failed[@]}"; do
  echo "  failed: $name"
done
read -r num_failed num_total < <(summary_numbers)
# Not when something failed that is not a test: "100% passed" would be untrue of it. Rounded as ctest does, downwards.
if ((num_total > 0 && (${#failed[@]} == 0 || num_failed > 0))); then
  echo "$(((num_total - num_failed) * 100 / num_total))% tests passed, $num_failed tests failed out of $num_total"
fi
((${#failed[@]} == 0))
