#!/usr/bin/python3
"""Asks a running moe_serve to continue texts, and prints the tokens as they come. Text in, text out, for models whose
tokens are bytes (the bundled ones); token ids in, token ids out, with --ids.

  python_client.py "25 August 2057 | "
  python_client.py --stop-at-newline "25 August 2057 | " "974 in Roman figures: "
  python_client.py --server 127.0.0.1:50051 --ids "50 53 32 77 97 121"
"""

import argparse
import codecs
import dataclasses
import importlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import types

import grpc

ROOT = pathlib.Path(__file__).resolve().parents[1]
BYTE_VOCABULARY = 256  # a vocabulary of this size means: token id = byte
NEWLINE = 10


def load_stubs() -> types.SimpleNamespace:
    """The generated Python code of proto/moe/v1: what the build has made (or the folder that MOE_PYTHON_STUBS names),
    or else generated now, into a folder that lives as long as this process."""
    built = pathlib.Path(os.environ.get("MOE_PYTHON_STUBS", ROOT / "build/release/python"))
    protos = sorted((ROOT / "proto/moe/v1").glob("*.proto"))
    made = [built / f"moe/v1/{proto.stem}_pb2_grpc.py" for proto in protos]
    if all(m.exists() and m.stat().st_mtime >= p.stat().st_mtime for m, p in zip(made, protos)):
        sys.path.insert(0, str(built))
    else:
        folder = tempfile.TemporaryDirectory(prefix="moe-stubs-")
        load_stubs.keep = folder
        plugin = shutil.which("grpc_python_plugin")  # Debian's grpc_tools is too old to read `optional`
        if shutil.which("protoc") is None or plugin is None:
            sys.exit("python_client: protoc and grpc_python_plugin are missing (scripts/setup.sh installs them)")
        subprocess.run(["protoc", f"-I{ROOT / 'proto'}", f"--python_out={folder.name}", f"--grpc_out={folder.name}",
                        f"--plugin=protoc-gen-grpc={plugin}", *map(str, protos)], check=True)
        sys.path.insert(0, folder.name)
    modules = ("inference_pb2", "inference_pb2_grpc", "cluster_pb2", "cluster_pb2_grpc")
    return types.SimpleNamespace(**{name: importlib.import_module(f"moe.v1.{name}") for name in modules})


@dataclasses.dataclass
class Continuation:
    """What became of one sequence of a batch."""
    token_ids: list[int] = dataclasses.field(default_factory=list)
    finish: object = None  # moe.v1.Finish, once it has come

    def text(self) -> str:
        return bytes(self.token_ids).decode("utf-8", errors="replace")


class Client:
    """One connection to a router."""

    def __init__(self, server: str, timeout_s: float):
        self.stubs = load_stubs()
        self.timeout_s = timeout_s
        options = [("grpc.max_receive_message_length", -1)]  # logits of a long sequence are large
        self.channel = grpc.insecure_channel(server, options)
        self.inference = self.stubs.inference_pb2_grpc.InferenceStub(self.channel)
        self.cluster = self.stubs.cluster_pb2_grpc.ClusterStub(self.channel)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.channel.close()

    def get_model(self):
        request = self.stubs.inference_pb2.GetModelRequest()
        return self.inference.GetModel(request, timeout=self.timeout_s)

    def get_cluster(self):
        return self.cluster.GetCluster(self.stubs.cluster_pb2.GetClusterRequest(), timeout=self.timeout_s)

    def generate(self, prompts: list[list[int]], *, max_new_tokens: int, sampling=None, stop_token_ids=(), on_tokens=None):
        """One call for the whole batch; returns a Continuation per prompt. on_tokens(index, ids) is called as they come.
        Raises grpc.RpcError when the call fails."""
        pb = self.stubs.inference_pb2
        request = pb.GenerateRequest(
            sequences=[pb.TokenSequence(token_ids=ids) for ids in prompts],
            max_new_tokens=max_new_tokens,
            sampling=sampling or pb.Sampling(),
            stop_token_ids=stop_token_ids)
        results = [Continuation() for _ in prompts]
        for event in self.inference.Generate(request, timeout=self.timeout_s):
            result = results[event.sequence]
            result.token_ids.extend(event.token_ids)
            if on_tokens and event.token_ids:
                on_tokens(event.sequence, list(event.token_ids))
            if event.HasField("finish"):
                result.finish = event.finish
        return results


def parse_ids(text: str) -> list[int]:
    """Token ids between blanks or commas. Raises ValueError naming what is not one."""
    ids = []
    for word in text.replace(",", " ").split():
        if not (word.isascii() and word.isdigit() and int(word) < 1 << 32):
            raise ValueError(f'"{word}" is not a token id (0 to 4294967295)')
        ids.append(int(word))
    return ids


class Printer:
    """Writes the tokens of one sequence as they come; a character of several bytes waits for the last of them."""

    def __init__(self, as_ids: bool):
        self.as_ids = as_ids
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.last = ""

    def show(self, token_ids: list[int]) -> None:
        if self.as_ids:
            self._write("".join(f"{' ' if self.last or i else ''}{token}" for i, token in enumerate(token_ids)))
        else:
            self._write(self.decoder.decode(bytes(token_ids)))

    def end(self) -> None:
        if not self.as_ids:
            self._write(self.decoder.decode(b"", final=True))
        if not self.last.endswith("\n"):
            self._write("\n")

    def _write(self, text: str) -> None:
        self.last = text or self.last
        sys.stdout.write(text)
        sys.stdout.flush()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="what to continue; several make one batch")
    parser.add_argument("--server", default="127.0.0.1:50051", metavar="HOST:PORT", help="(%(default)s)")
    parser.add_argument("--ids", action="store_true", help="TEXT and output are token ids")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="(%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (%(default)s)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the random numbers (drawn by the server)")
    parser.add_argument("--stop-at-newline", action="store_true", help="end a sequence with its line")
    parser.add_argument("--usage", action="store_true", help="print counts and times to stderr")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="of the whole call (%(default)s)")
    arguments = parser.parse_args()
    if not 0 < arguments.max_new_tokens <= 1_000_000:
        parser.error(f"--max-new-tokens {arguments.max_new_tokens} is out of range (1 to 1000000)")
    if arguments.seed is not None and not 0 <= arguments.seed < 1 << 64:
        parser.error(f"--seed {arguments.seed} is out of range (0 to 2^64 - 1)")
    if arguments.ids:
        try:
            arguments.prompts = [parse_ids(text) for text in arguments.texts]
        except ValueError as error:
            parser.error(str(error))
    else:
        arguments.prompts = [list(text.encode("utf-8", errors="surrogateescape")) for text in arguments.texts]
    return arguments


def run(client: Client, arguments: argparse.Namespace) -> int:
    if not arguments.ids:
        model = client.get_model()
        if model.vocab_size != BYTE_VOCABULARY:
            print(f"python_client: the tokens of {model.name} are not bytes (its vocabulary has {model.vocab_size}): "
                  "give token ids with --ids", file=sys.stderr)
            return 1
    sampling = client.stubs.inference_pb2.Sampling(temperature=arguments.temperature)
    if arguments.seed is not None:
        sampling.seed = arguments.seed
    # One sequence is printed as it comes; several would interleave, so each is printed when all are there.
    alone = Printer(arguments.ids) if len(arguments.prompts) == 1 else None
    results = client.generate(
        arguments.prompts, max_new_tokens=arguments.max_new_tokens, sampling=sampling,
        stop_token_ids=[NEWLINE] if arguments.stop_at_newline else [],
        on_tokens=(lambda _, ids: alone.show(ids)) if alone else None)
    status = 0
    for index, result in enumerate(results):
        printer = alone or Printer(arguments.ids)
        if not alone:
            printer.show(result.token_ids)
        printer.end()
        reasons = client.stubs.inference_pb2.FinishReason
        if result.finish is None or result.finish.reason not in (reasons.Value("FINISH_REASON_STOP"),
                                                                 reasons.Value("FINISH_REASON_LENGTH")):
            why = result.finish.message if result.finish else "the stream ended before it did"
            print(f"python_client: sequence {index} failed: {why}", file=sys.stderr)
            status = 1
        elif arguments.usage:
            usage = result.finish.usage
            print(f"sequence {index}: {usage.prompt_tokens} prompt tokens, {usage.generated_tokens} generated, "
                  f"first after {usage.time_to_first_token_seconds * 1000:.1f} ms, "
                  f"all after {usage.total_seconds * 1000:.1f} ms", file=sys.stderr)
    return status


def main() -> int:
    arguments = parse_arguments()
    try:
        with Client(arguments.server, arguments.timeout) as client:
            return run(client, arguments)
    except grpc.RpcError as error:
        print(f"python_client: {error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
