"""What the lint tests look at: the repository's own files, found by walking the tree (so that a source archive without
git is checked too) and leaving out what is generated or bundled."""

import pathlib

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
