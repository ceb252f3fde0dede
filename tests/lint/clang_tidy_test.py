#!/usr/bin/python3
"""core/ is clean under the repository's .clang-tidy (all of the repository would take minutes: scripts/tidy.sh --all).
Usage: clang_tidy_test.py BUILD_DIR. It first proves itself on one file that is not clean."""

import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]


def complaints(files: list[pathlib.Path], arguments: list[str]) -> list[str]:
    run = subprocess.run(["clang-tidy", "--quiet", *arguments[:1], *map(str, files), *arguments[1:]],
                         capture_output=True, text=True, check=False)
    found = [line for line in run.stdout.splitlines() if " error: " in line or " warning: " in line]
    return found or ([f"clang-tidy failed: {run.stderr.strip()}"] if run.returncode != 0 else [])


def self_test() -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / ".clang-tidy", folder)
        file = pathlib.Path(folder) / "a.cpp"
        file.write_text("int* Nothing() { return 0; }\n")
        found = complaints([file], [f"--config-file={folder}/.clang-tidy", "--", "-std=c++20"])
    return [] if any("modernize-use-nullptr" in line for line in found) else [f"self-test: 0 as a pointer gave {found}"]


def main() -> int:
    if shutil.which("clang-tidy") is None:
        print("clang-tidy is not installed (scripts/setup.sh installs it)")
        return 1
    files = sorted((ROOT / "core").glob("*.cpp"))
    found = self_test() + complaints(files, [f"-p={sys.argv[1]}"])
    for line in found:
        print(line)
    print(f"{len(found)} problems in {len(files)} files")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
