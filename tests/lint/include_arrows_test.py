#!/usr/bin/python3
"""Every #include of the repository goes along an allowed arrow (docs/architecture.md, "Folders"), and third-party
headers stay in the files that may know them. Usage: include_arrows_test.py [ROOT]; without arguments it first proves
itself on small trees that break one rule each."""

import pathlib
import re
import sys
import tempfile

import sources

# The table of docs/architecture.md, and the only other copy of it. "proto/x" is the generated code of proto/moe/v1/x.
_LOWER = {"core", "kernels", "model", "placement", "metrics", "rpc", "transport"}
_ALL_PROTO = {"proto/inference", "proto/cluster", "proto/worker"}
ARROWS = {
    "core": set(),
    "kernels": {"core"},
    "model": {"core", "kernels"},
    "placement": {"core", "model"},
    "metrics": {"core"},
    "rpc": {"core"},
    "transport": {"core"},
    "experts": _LOWER | {"proto/worker"},
    "router": _LOWER | {"proto/inference", "proto/cluster"},
    "bench": {"core", "model", "proto/inference", "proto/cluster"},  # bench_client
    "bench/engine": _LOWER | {"experts", "router"} | _ALL_PROTO,
    "apps": _LOWER | {"experts", "router", "bench", "bench/engine"} | _ALL_PROTO,
    "examples": {"proto/inference", "proto/cluster"},
    "tests": _LOWER | {"experts", "router", "bench", "bench/engine", "tests"} | _ALL_PROTO,
}

# The gRPC transport has a service of its own; no other file of transport/ may know a message type.
_PROTO_TRANSPORT = re.compile(r"transport/grpc\w*\.(h|cpp)$")

# Third-party headers: where they may be included at all (None: anywhere), in .cpp files. Never in a header.
THIRD_PARTY = {
    "MPI": (re.compile(r"mpi(-ext)?\.h$"), {"transport", "bench", "tests"}),
    "NCCL": (re.compile(r"nccl\.h$"), {"transport", "bench", "tests"}),
    "CUDA": (re.compile(r"(cuda\w*|cublas\w*)(\.h|/)"), {"kernels", "experts", "transport", "bench", "tests"}),
    "protobuf": (re.compile(r"google/protobuf/|.*\.pb\.h$"), None),
    "gRPC": (re.compile(r"(grpc|grpcpp)/"), {"rpc", "experts", "router", "transport", "bench", "apps", "examples", "tests"}),
    "prometheus": (re.compile(r"prometheus/"), {"metrics", "tests"}),
    "nlohmann/json": (re.compile(r"nlohmann/"), None),
    "Highway": (re.compile(r"hwy/"), {"kernels", "bench", "tests"}),
    "CLI11": (re.compile(r"CLI/"), {"bench", "apps", "examples", "tests"}),
    "spdlog": (re.compile(r"spdlog/"), None),
    "httplib": (re.compile(r"httplib\.h$"), None),
    "hwloc": (re.compile(r"hwloc(\.h$|/)"), None),
}

_INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
_GENERATED = re.compile(r"moe/v1/(\w+?)(\.grpc)?\.pb\.h$")


def folder_of(path: str) -> str:
    """The row of ARROWS that a path of the repository belongs to; its first folder when there is none."""
    if path.startswith("bench/engine/"):
        return "bench/engine"
    return path.split("/")[0]


def violations(root: pathlib.Path) -> list[str]:
    found = []
    for path in sources.files(root, sources.CPP_SUFFIXES):
        found += violations_of(root, str(path))
    return found


def violations_of(root: pathlib.Path, path: str) -> list[str]:
    """What the includes of one file break, a sentence each."""
    folder = folder_of(path)
    if folder not in ARROWS:
        return [f'{path}: folder "{folder}" is not in the table of include arrows']
    text = (root / path).read_text()
    found = []
    for match in _INCLUDE.finditer(text):
        quoted, name = match[1] == '"', match[2]
        where = f"{path}:{text.count(chr(10), 0, match.start()) + 1}"
        found += third_party_violations(where, path, folder, name)
        if generated := _GENERATED.match(name):
            target = f"proto/{generated[1]}"
            if target not in ARROWS[folder] and not _PROTO_TRANSPORT.match(path):
                found.append(f"{where}: {folder}/ may not include {name}")
        elif (root / name).exists():
            target = folder_of(name)
            if target != folder and target not in ARROWS[folder]:
                found.append(f"{where}: {folder}/ may not include {name}")
        elif quoted and not any(pattern.match(name) for pattern, _ in THIRD_PARTY.values()):
            found.append(f'{where}: "{name}" is not a path from the repository\'s root')
    return found


def third_party_violations(where: str, path: str, folder: str, name: str) -> list[str]:
    # Bodies that Highway compiles once per instruction set are headers by name only, and test support is not public.
    private_header = re.fullmatch(r"kernels/.*-inl\.h", path) or folder == "tests"
    found = []
    for library, (pattern, folders) in THIRD_PARTY.items():
        if not pattern.match(name):
            continue
        if path.endswith(".h") and not private_header:
            found.append(f"{where}: {library} header {name} in a header of ours; include it in the .cpp file")
        elif folders is not None and folder.split("/")[0] not in folders:
            found.append(f"{where}: {library} header {name} in {folder}/ (allowed: {', '.join(sorted(folders))})")
    return found


# Trees that break one rule: the file, its text, and a part of the complaint that must come.
_BROKEN = [
    ("core/a.h", '#include "model/m.h"', "core/ may not include model/m.h"),
    ("kernels/a.cpp", '#include "model/m.h"', "kernels/ may not include model/m.h"),
    ("router/a.cpp", '#include "experts/e.h"', "router/ may not include experts/e.h"),
    ("router/a.cpp", '#include "moe/v1/worker.pb.h"', "router/ may not include moe/v1/worker.pb.h"),
    ("experts/a.cpp", '#include "router/r.h"', "experts/ may not include router/r.h"),
    ("experts/a.cpp", '#include "moe/v1/inference.grpc.pb.h"', "experts/ may not include moe/v1/inference.grpc.pb.h"),
    ("transport/a.cpp", '#include "kernels/k.h"', "transport/ may not include kernels/k.h"),
    ("transport/a.cpp", '#include "model/m.h"', "transport/ may not include model/m.h"),
    ("transport/mpi.cpp", '#include "moe/v1/worker.pb.h"', "transport/ may not include moe/v1/worker.pb.h"),
    ("rpc/a.cpp", '#include "metrics/m.h"', "rpc/ may not include metrics/m.h"),
    ("bench/load.cpp", '#include "router/r.h"', "bench/ may not include router/r.h"),
    ("examples/a.cpp", '#include "core/c.h"', "examples/ may not include core/c.h"),
    ("core/a.cpp", '#include <model/m.h>', "core/ may not include model/m.h"),
    ("core/a.cpp", '  #  include "gone.h"', '"gone.h" is not a path'),
    ("util/a.cpp", "", 'folder "util" is not in the table'),
    ("transport/t.h", "#include <mpi.h>", "MPI header mpi.h in a header of ours"),
    ("transport/t.h", "#include <nccl.h>", "NCCL header nccl.h in a header of ours"),
    ("experts/b.h", "#include <cuda_runtime.h>", "CUDA header cuda_runtime.h in a header of ours"),
    ("router/a.h", '#include "moe/v1/inference.pb.h"', "protobuf header moe/v1/inference.pb.h in a header of ours"),
    ("router/a.h", "#include <grpcpp/grpcpp.h>", "gRPC header grpcpp/grpcpp.h in a header of ours"),
    ("model/a.h", "#include <nlohmann/json.hpp>", "nlohmann/json header nlohmann/json.hpp in a header of ours"),
    ("kernels/a.h", '#include "hwy/highway.h"', "Highway header hwy/highway.h in a header of ours"),
    ("metrics/a.h", "#include <prometheus/counter.h>", "prometheus header prometheus/counter.h in a header of ours"),
    ("router/a.cpp", "#include <prometheus/counter.h>", "prometheus header prometheus/counter.h in router/"),
    ("router/a.cpp", "#include <mpi.h>", "MPI header mpi.h in router/"),
    ("model/a.cpp", "#include <grpcpp/grpcpp.h>", "gRPC header grpcpp/grpcpp.h in model/"),
]

# Files that look like a violation and are not.
_FINE = [
    ("transport/grpc_transport.cpp", '#include "moe/v1/worker.pb.h"\n#include <grpcpp/grpcpp.h>'),
    ("kernels/body-inl.h", '#include "hwy/highway.h"\n#include "core/c.h"'),
    ("metrics/a.cpp", "#include <prometheus/counter.h>"),
    ("bench/engine/a.cpp", '#include "router/r.h"'),
    ("apps/a.cpp", '#include "router/r.h"\n#include "experts/e.h"'),
    ("tests/router/a.h", '#include "experts/e.h"\n#include <grpcpp/grpcpp.h>'),
    ("core/a.cpp", '// #include "model/m.h"\n#include <vector>'),
]


def complaints_about(path: str, text: str) -> list[str]:
    """What the check says of a tree with one interesting file, beside an empty header in every folder."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name in ("core/c.h", "kernels/k.h", "model/m.h", "metrics/m.h", "experts/e.h", "router/r.h"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("")
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text + "\n")
        return violations(root)


def self_test() -> list[str]:
    problems = []
    for path, text, expected in _BROKEN:
        complaints = complaints_about(path, text)
        if not any(expected in complaint for complaint in complaints):
            problems.append(f"self-test: {path} with {text!r} gave {complaints}, not one with {expected!r}")
    for path, text in _FINE:
        if complaints := complaints_about(path, text):
            problems.append(f"self-test: {path} with {text!r} gave {complaints}")
    return problems


def main() -> int:
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parents[2]
    found = ([] if len(sys.argv) > 1 else self_test()) + violations(root)
    for line in found:
        print(line)
    print(f"{len(found)} problems in {len(sources.files(root, sources.CPP_SUFFIXES))} files")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
