#!/usr/bin/env bash
# Runs clang-tidy with the repository's .clang-tidy. Slow (1 s a file of core/, 15 s one that includes gRPC), so that
# ctest covers core/ only and this is run by hand before a change is handed in.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'TEXT'
Usage: scripts/tidy.sh [--build DIR] [--all | --changed | PATH…]

  --changed    the .cpp files that differ from the last commit, new ones included (default)
  --all        every .cpp file of the build
  PATH         files, or folders with all that is below
  --build DIR  configured build folder whose compile_commands.json is used (build/release)
TEXT
}

build_dir=build/release
mode=changed
paths=()
while (($# > 0)); do
  case "$1" in
    --all) mode=all ;;
    --changed) mode=changed ;;
    --build)
      (($# > 1)) || { echo "tidy.sh: --build needs a folder" >&2; exit 2; }
      build_dir="$2"
      shift
      ;;
    -h | --help) usage; exit 0 ;;
    -*) echo "tidy.sh: unknown option \"$1\" (--build, --all, --changed, --help)" >&2; exit 2 ;;
    *)
      [[ -e "$1" ]] || { echo "tidy.sh: \"$1\" does not exist" >&2; exit 2; }
      mode=paths
      paths+=("$1")
      ;;
  esac
  shift
done

commands="$build_dir/compile_commands.json"
[[ -r "$commands" ]] || fail "$commands does not exist: configure first (cmake --preset release)"

# The wanted files that the build compiles, relative to the root; generated ones are not ours.
candidates() {
  case "$mode" in
    all) find . -name '*.cpp' -not -path './build*' -printf '%P\n' ;;
    paths) find "${paths[@]}" -name '*.cpp' | sed 's|^\./||' ;;
    changed) { git diff --name-only --diff-filter=d HEAD; git ls-files --others --exclude-standard; } | grep '\.cpp$' || true ;;
  esac | sort -u
}

mapfile -t files < <(candidates | while read -r file; do
  ! grep -qF "\"file\": \"$MOE_ROOT/$file\"" "$commands" || echo "$file"
done)
if ((${#files[@]} == 0)); then
  echo "tidy: no file of the build to check"
  exit 0
fi
echo "tidy: ${#files[@]} files"
# clang-tidy counts the warnings of system headers on stderr; what it has to say of ours is on stdout.
printf '%s\0' "${files[@]}" |
  xargs -0 -n 1 -P "$JOBS" sh -c 'clang-tidy -p "$0" --quiet "$1" 2>/dev/null || { echo "tidy: $1 is not clean"; exit 1; }' "$build_dir"
