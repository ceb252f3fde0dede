#!/usr/bin/python3
"""Every C++ file is as clang-format with the repository's .clang-format writes it. Usage: clang_format_test.py [ROOT];
without arguments it first proves itself on one file that is not. To mend: clang-format -i FILE."""

import pathlib
import shutil
import subprocess
import sys
import tempfile

import sources


def unformatted(root: pathlib.Path) -> list[str]:
    """Paths that clang-format would change."""
    files = [str(path) for path in sources.files(root, sources.CPP_SUFFIXES)]
    if not files:
        return []
    command = ["clang-format", "--dry-run", "-Werror", "--style=file", *files]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    complaints = {line.split(":")[0] for line in run.stderr.splitlines() if "[-Wclang-format-violations]" in line}
    if run.returncode != 0 and not complaints:
        raise RuntimeError(f"clang-format failed: {run.stderr.strip()}")
    return sorted(complaints)


def self_test(style: pathlib.Path) -> list[str]:
    problems = []
    for text, expected in (("int  a ;\n", ["core/a.cpp"]), ("int a;\n", [])):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            shutil.copy(style, root / ".clang-format")
            (root / "core").mkdir()
            (root / "core/a.cpp").write_text(text)
            if (complaints := unformatted(root)) != expected:
                problems.append(f"self-test: {text!r} gave {complaints}, not {expected}")
    return problems


def main() -> int:
    if shutil.which("clang-format") is None:
        print("clang-format is not installed (scripts/setup.sh installs it)")
        return 1
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parents[2]
    found = [] if len(sys.argv) > 1 else self_test(root / ".clang-format")
    found += [f"{path}: not formatted" for path in unformatted(root)]
    for line in found:
        print(line)
    print(f"{len(found)} problems in {len(sources.files(root, sources.CPP_SUFFIXES))} files")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
