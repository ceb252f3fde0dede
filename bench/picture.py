"""What the programs that draw have in common: files of results, formats of pictures, and what is said when it fails."""

import json
import pathlib
import sys
import typing

FORMATS = (".png", ".svg", ".pdf")


class UsageError(Exception):
    """Bad usage; one sentence."""


def read_json(path: pathlib.Path) -> dict:
    """UsageError when there is no JSON object in it."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} is not a JSON object")
    return content


def pyplot():
    import matplotlib  # not before: --help needs none
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "moe"  # the same picture of the same figures
    from matplotlib import pyplot as plots
    return plots


def draw(program: str, files: list[pathlib.Path], path: pathlib.Path, make: typing.Callable[[], None]) -> int:
    """make() writes `path`, a picture of `files`. Returns the program's exit code: 0, or 2 with one line on stderr."""
    try:
        if path.suffix not in FORMATS:
            raise UsageError(f"--output {path}: a picture ends in {', '.join(FORMATS)}")
        make()
    except UsageError as error:
        said = str(error)
    except KeyError as error:
        said = f"{', '.join(map(str, files))}: a result without {error}"
    except OSError as error:
        said = f"{path}: {error.strerror}"
    else:
        return 0
    print(f"{program}: {said}", file=sys.stderr)
    return 2
