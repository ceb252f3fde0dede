"""What the lint tests look at: the repository's own files, found by walking the tree (so that a source archive without
git is checked too) and leaving out what is generated or bundled."""

import pathlib
import sys
import tempfile
from collections.abc import Callable

# Folders of the root that hold no source of ours, and names that are skipped wherever they are.
_SKIPPED_ROOTS = {".git", ".venv", "models", "results"}
_SKIPPED_NAMES = {"__pycache__", "goldens"}

CPP_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
SCRIPT_SUFFIXES = {".py", ".sh", ".cmake"}
TEXT_SUFFIXES = CPP_SUFFIXES | SCRIPT_SUFFIXES | {".md", ".proto", ".txt", ".json", ".yml", ".yaml", ".toml"}


def files(root: pathlib.Path, suffixes: set[str]) -> list[pathlib.Path]:
    """Paths below root with one of the suffixes, relative to it, in order."""
    found = []
    pending = [root]
    while pending:
        for path in sorted(pending.pop().iterdir()):
            at_root = path.parent == root
            if path.is_symlink() or path.name in _SKIPPED_NAMES:
                continue
            if path.is_dir():
                if not (at_root and (path.name in _SKIPPED_ROOTS or path.name.startswith("build"))):
                    pending.append(path)
            elif path.suffix in suffixes:
                found.append(path.relative_to(root))
    return sorted(found)


class TreeCheck:
    """A rule over a whole tree, and small trees that show what it finds and what it lets pass."""

    def __init__(self, violations: Callable[[pathlib.Path], list[str]], suffixes: set[str],
                 broken: list[tuple[str, str, str]], fine: list[tuple[str, str]], beside: dict[str, str]):
        """broken: path, text and a part of the complaint that must come; fine: path and text without one; beside: files
        that every small tree has."""
        self._violations = violations
        self._suffixes = suffixes
        self._broken = broken
        self._fine = fine
        self._beside = beside

    def _complaints_about(self, path: str, text: str) -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for name, content in {**self._beside, path: text}.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(content)
            return self._violations(root)

    def _self_test(self) -> list[str]:
        problems = []
        for path, text, expected in self._broken:
            complaints = self._complaints_about(path, text)
            if not any(expected in complaint for complaint in complaints):
                problems.append(f"self-test: {path} with {text[:80]!r} gave {complaints}, not one with {expected!r}")
        for path, text in self._fine:
            if complaints := self._complaints_about(path, text):
                problems.append(f"self-test: {path} with {text[:80]!r} gave {complaints}")
        return problems

    def main(self) -> int:
        """Checks the root that is given; without one the repository, after proving itself."""
        root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parents[2]
        found = ([] if len(sys.argv) > 1 else self._self_test()) + self._violations(root)
        for line in found:
            print(line)
        print(f"{len(found)} problems in {len(files(root, self._suffixes))} files")
        return 1 if found else 0
