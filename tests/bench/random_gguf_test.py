#!/usr/bin/python3
"""bench/random_gguf.py: its files read back by a reader of the format's own, and its weights' figures."""

import json
import math
import pathlib
import random
import statistics
import struct
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "bench"))
import random_gguf  # noqa: E402

CONFIG = {"model_type": "olmoe", "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2,
          "num_attention_heads": 2, "num_key_value_heads": 1, "num_experts": 4, "num_experts_per_tok": 2,
          "vocab_size": 300, "max_position_embeddings": 128, "rope_theta": 10000.0, "rms_norm_eps": 1e-5}
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 8: (32, 34), 30: (1, 2)}  # type -> elements and bytes of a block


class Reader:
    """Header, key-value pairs and tensors of a file, by the specification."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0
        assert self.take("<4sI") == (b"GGUF", 3)
        num_tensors, num_pairs = self.take("<QQ")
        self.pairs = {}
        for _ in range(num_pairs):
            key = self.string()
            self.pairs[key] = self.value(self.take("<I")[0])
        described = [(self.string(), self.take(f"<{self.take('<I')[0]}Q"), *self.take("<IQ")) for _ in range(num_tensors)]
        begin = -(-self.at // 32) * 32
        self.tensors = {name: (dims, kind, begin + offset) for name, dims, kind, offset in described}

    def take(self, layout: str) -> tuple:
        values = struct.unpack_from(layout, self.data, self.at)
        self.at += struct.calcsize(layout)
        return values

    def string(self) -> str:
        (length,) = self.take("<Q")
        return self.take(f"<{length}s")[0].decode()

    def value(self, kind: int):
        if kind == 8:
            return self.string()
        if kind == 9:
            element, count = self.take("<IQ")
            return [self.value(element) for _ in range(count)]
        return self.take({4: "<I", 5: "<i", 6: "<f"}[kind])[0]

    def num_bytes(self, name: str) -> int:
        dims, kind, _ = self.tensors[name]
        assert dims[0] % BLOCKS[kind][0] == 0
        return math.prod(dims) // BLOCKS[kind][0] * BLOCKS[kind][1]

    def bytes_of(self, name: str) -> bytes:
        offset = self.tensors[name][2]
        return self.data[offset:offset + self.num_bytes(name)]


def decoded(kind: str, data: bytes) -> list[float]:
    if kind == "f16":
        return list(struct.unpack(f"<{len(data) // 2}e", data))
    if kind == "bf16":
        return [struct.unpack("<f", b"\0\0" + data[at:at + 2])[0] for at in range(0, len(data), 2)]
    block_bytes = random_gguf.TYPES[kind].bytes
    values = []
    for at in range(0, len(data), block_bytes):
        (scale,) = struct.unpack_from("<e", data, at)
        block = data[at + 2:at + block_bytes]
        quantised = struct.unpack("<32b", block) if kind == "q8_0" else [(byte & 15) - 8 for byte in block] + [
            (byte >> 4) - 8 for byte in block]
        values += [scale * value for value in quantised]
    return values


class RandomGgufTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="moe-gguf-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def shape(self, **values) -> random_gguf.Shape:
        (self.folder / "config.json").write_text(json.dumps(CONFIG | values))
        return random_gguf.Shape.read(self.folder / "config.json")

    def written(self, experts: str, dense: str, architecture: str = "qwen3moe", seed: int = 1, **values) -> bytes:
        path = self.folder / "model.gguf"
        random_gguf.write(self.shape(**values), path, experts, dense, architecture, seed)
        return path.read_bytes()

    def test_tensors_lie_one_behind_the_other_to_the_end(self):
        for experts, dense in (("q8_0", "q8_0"), ("q4_0", "q8_0"), ("bf16", "f16")):
            with self.subTest(experts=experts, dense=dense):
                data = self.written(experts, dense)
                reader = Reader(data)
                end = -(-reader.at // 32) * 32
                for name, (_, _, offset) in reader.tensors.items():
                    self.assertEqual(offset, end, name)
                    end = -(-(offset + reader.num_bytes(name)) // 32) * 32
                self.assertEqual(len(data), end)

    def test_the_shape_is_the_configurations(self):
        reader = Reader(self.written("q4_0", "q8_0"))
        self.assertEqual({name.removeprefix("blk.1."): tensor[:2] for name, tensor in reader.tensors.items()
                          if not name.startswith("blk.0.")}, {
            "token_embd.weight": ((64, 300), 8), "output_norm.weight": ((64,), 0), "output.weight": ((64, 300), 8),
            "attn_norm.weight": ((64,), 0), "attn_q.weight": ((64, 64), 8), "attn_k.weight": ((64, 32), 8),
            "attn_v.weight": ((64, 32), 8), "attn_output.weight": ((64, 64), 8), "attn_q_norm.weight": ((32,), 0),
            "attn_k_norm.weight": ((32,), 0), "ffn_norm.weight": ((64,), 0), "ffn_gate_inp.weight": ((64, 4), 0),
            "ffn_gate_exps.weight": ((64, 32, 4), 2), "ffn_up_exps.weight": ((64, 32, 4), 2),
            "ffn_down_exps.weight": ((32, 64, 4), 2)})
        self.assertEqual({key: reader.pairs[f"qwen3moe.{key}"] for key in (
            "block_count", "embedding_length", "expert_count", "expert_used_count", "expert_feed_forward_length",
            "attention.head_count", "attention.head_count_kv", "attention.key_length", "context_length")}, {
            "block_count": 2, "embedding_length": 64, "expert_count": 4, "expert_used_count": 2,
            "expert_feed_forward_length": 32, "attention.head_count": 2, "attention.head_count_kv": 1,
            "attention.key_length": 32, "context_length": 128})
        for key in ("tokens", "scores", "token_type"):
            self.assertEqual(len(reader.pairs[f"tokenizer.ggml.{key}"]), 300)
        pieces = reader.pairs["tokenizer.ggml.tokens"]
        self.assertEqual(len(set(pieces)), 300)
        # Any of them in any order is a text; line ends are looked up by their byte.
        self.assertEqual({piece for piece in pieces if piece.startswith("<0x")}, {f"<0x{byte:02X}>" for byte in range(128)})
        self.assertEqual(pieces[random_gguf.FIRST_PLAIN_TOKEN], f"\u2581{random_gguf.FIRST_PLAIN_TOKEN}")

    def test_as_olmoe_norms_span_all_heads(self):
        tensors = Reader(self.written("q8_0", "q8_0", "olmoe")).tensors
        self.assertEqual([tensors[f"blk.0.attn_{part}_norm.weight"][0] for part in "qk"], [(64,), (32,)])

    def test_weights_have_no_bias_and_the_size_that_was_asked_for(self):
        for kind, weight_type in random_gguf.TYPES.items():
            for exponent in (-6, 0):
                with self.subTest(kind=kind, exponent=exponent):
                    data = random_gguf.pool(weight_type, exponent, random.Random(3))[:weight_type.bytes * 20000]
                    values = decoded(kind, data)
                    size = math.sqrt(statistics.fmean(value * value for value in values))
                    self.assertLess(abs(statistics.fmean(values)), 5 * size / math.sqrt(len(values)))
                    self.assertGreater(size / 2 ** exponent, 0.9)
                    self.assertLess(size / 2 ** exponent, 1.6)
                    self.assertEqual(max(values), -min(values))

    def test_gates_and_norms(self):
        reader = Reader(self.written("q8_0", "q8_0", hidden_size=2048))
        gate = struct.unpack(f"<{2048 * 4}f", reader.bytes_of("blk.0.ffn_gate_inp.weight"))
        self.assertAlmostEqual(statistics.pstdev(gate) * 64, 1, delta=0.05)
        self.assertEqual(len(set(gate)), len(gate))
        self.assertEqual(set(struct.unpack("<2048f", reader.bytes_of("output_norm.weight"))), {1.0})
        self.assertNotEqual(reader.bytes_of("blk.0.ffn_gate_inp.weight"), reader.bytes_of("blk.1.ffn_gate_inp.weight"))
        self.assertNotEqual(reader.bytes_of("blk.0.ffn_up_exps.weight"), reader.bytes_of("blk.0.ffn_gate_exps.weight"))

    def test_a_tensor_larger_than_the_pool_is_filled(self):
        reader = Reader(self.written("q8_0", "q8_0", intermediate_size=1024, num_experts=64, hidden_size=256))
        data = reader.bytes_of("blk.1.ffn_down_exps.weight")
        self.assertGreater(len(data), 2 * random_gguf.POOL_BYTES)
        scale = random_gguf.pool(random_gguf.TYPES["q8_0"], random_gguf.MATRIX_EXPONENT, random.Random(1))[:2]
        self.assertEqual({data[at:at + 2] for at in range(0, len(data), 34)}, {scale})

    def test_the_seed_names_the_file(self):
        self.assertEqual(self.written("q4_0", "q8_0", seed=5), self.written("q4_0", "q8_0", seed=5))
        self.assertNotEqual(self.written("q4_0", "q8_0", seed=5), self.written("q4_0", "q8_0", seed=6))

    def test_what_does_not_fit_is_refused_and_leaves_no_file(self):
        with self.assertRaisesRegex(ValueError, "ffn_down_exps.weight: rows of 40 are not whole blocks of 32"):
            self.written("q8_0", "q8_0", intermediate_size=40)
        self.assertEqual([path.name for path in self.folder.iterdir()], ["config.json"])
        with self.assertRaisesRegex(ValueError, 'model_type "mixtral"'):
            self.shape(model_type="mixtral")
        with self.assertRaisesRegex(ValueError, "some layers are dense"):
            self.shape(model_type="qwen3_moe", moe_intermediate_size=32, decoder_sparse_step=2)

    def test_qwen_names_some_sizes_otherwise(self):
        shape = self.shape(model_type="qwen3_moe", moe_intermediate_size=96, head_dim=16)
        self.assertEqual((shape.intermediate, shape.head_dim), (96, 16))


if __name__ == "__main__":
    unittest.main()
