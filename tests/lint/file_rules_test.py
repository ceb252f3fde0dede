#!/usr/bin/python3
"""Rules that every file of ours keeps: include guards, length, to-do notes with an owner, no path that exists on one
machine only, documentation links that lead somewhere. Usage: file_rules_test.py [ROOT]; without arguments it first
proves itself on small trees that break one rule each."""

import pathlib
import re
import sys

import sources

MAX_CODE_LINES = 500  # the aim is 100 to 400

_TODO = re.compile(r"\b(TODO|FIXME|XXX)\b(?!\([^)\s]+\))")
# Homes and checkouts of one machine. /usr, /etc, /tmp, /proc and /dev are the same on all.
_MACHINE_PATH = re.compile(r"(?<![\w.$}{/-])/(work|root|home|Users|mnt|opt)/[\w.]")
# A chain of "../" that starts a path.
_PARENT_PATH = re.compile(r"(?<![\w./$}\"])((?:\.\./)+)\w")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def violations(root: pathlib.Path) -> list[str]:
    found = []
    for path in sources.files(root, sources.TEXT_SUFFIXES) + [p for p in (pathlib.Path(".ci/run"),) if (root / p).exists()]:
        lines = (root / path).read_text().splitlines()
        if path.suffix in sources.CPP_SUFFIXES | sources.SCRIPT_SUFFIXES and len(lines) > MAX_CODE_LINES:
            found.append(f"{path}: {len(lines)} lines, more than {MAX_CODE_LINES}")
        if path.suffix == ".h" and lines.count("#pragma once") != 1 and not path.name.endswith("-inl.h"):
            found.append(f'{path}: a header needs one line "#pragma once"')
        if path.suffix == ".h" and not (lines and lines[0].startswith("// ")):
            found.append(f"{path}: the first line does not say what the header is for")
        for number, line in enumerate(lines, 1):
            found += [f"{path}:{number}: {complaint}" for complaint in line_violations(root, path, line)]
    return found


def line_violations(root: pathlib.Path, path: pathlib.Path, line: str) -> list[str]:
    found = []
    if path != pathlib.Path("tests/lint/file_rules_test.py"):  # which must spell out what it forbids
        if _TODO.search(line):
            found.append("a to-do note without an owner in parentheses")
        if match := _MACHINE_PATH.search(line):
            found.append(f'"{match[0]}…" is a path of one machine')
        for match in _PARENT_PATH.finditer(line):
            if match[1].count("../") > len(path.parts) - 1:
                found.append(f'"{match[0]}…" leaves the repository')
    if path.suffix == ".md":
        for match in _LINK.finditer(line):
            target = match[1].split("#")[0]
            if target and "://" not in target and not (root / path).parent.joinpath(target).exists():
                found.append(f'link to "{target}", which does not exist')
    return found


_BROKEN = [
    ("core/a.h", "// A.\nint a();\n", '"#pragma once"'),
    ("core/a.h", "#pragma once\n", "first line does not say"),
    ("core/a.cpp", "// A.\n" + "int a;\n" * MAX_CODE_LINES, "501 lines, more than 500"),
    ("scripts/a.sh", "\n" * 501, "501 lines, more than 500"),
    ("core/a.cpp", "// A.\n// TODO: later\n", "to-do note without an owner"),
    ("core/a.cpp", "// A. FIXME\n", "to-do note without an owner"),
    ("tests/a.py", 'open("/work/main/x")\n', "path of one machine"),
    ("scripts/a.sh", "cd /root/x\n", "path of one machine"),
    (".ci/run", "cd /home/me\n", "path of one machine"),
    ("docs/a.md", "see ../../shared/x\n", "leaves the repository"),
    ("README.md", "`../shared/x`\n", "leaves the repository"),
    ("docs/a.md", "[b](b.md)\n", 'link to "b.md"'),
]

_FINE = [
    ("core/a.h", "// A.\n#pragma once\n// TODO(ada): sooner\n"),
    ("kernels/a-inl.h", "// A. HWY_TOGGLE instead of a guard.\n"),
    ("scripts/a.sh", 'cd "$(dirname "$0")/.."\nls build/work/x "$HOME/root/x" /usr/bin/python3\n'),
    ("docs/adr/a.md", "[up](../../README.md) [web](https://example.org/x) [here](#part)\n"),
]


if __name__ == "__main__":
    sys.exit(sources.TreeCheck(violations, sources.TEXT_SUFFIXES, _BROKEN, _FINE, {"README.md": "A project.\n"}).main())
