"""Writes a GGUF file of a configuration's shape with random weights, for engines that read that format: what
`--load-format dummy` is to moe_bench. Needs nothing but the standard library; the numbers follow from a seed.

Layout: the GGUF specification, version 3 (little-endian header, key-value pairs, tensor descriptions, aligned data).
Matrices are filled from a pool of random blocks, each piece from another place in it: speed depends neither on the
values nor on two rows being alike, and gigabytes take seconds. Gates are drawn one by one, so that routing is even."""

import array
import dataclasses
import json
import math
import os
import pathlib
import random
import struct
from typing import BinaryIO

ALIGNMENT = 32  # the format's default, which needs no key
POOL_BYTES = 8 << 20
FIRST_PLAIN_TOKEN = 3 + 128  # below are special tokens and single bytes
# Weights are about 2 to these. Matrices: what models are usually begun with (0.02). Embedding: as large as what a layer
# adds, so that a state depends on its token more than on what all tokens of a sequence have in common.
MATRIX_EXPONENT, EMBEDDING_EXPONENT = -6, 0


@dataclasses.dataclass(frozen=True)
class WeightType:
    """A block of `elements` numbers takes `bytes`; `id` is the format's."""
    id: int
    elements: int
    bytes: int


F32 = WeightType(0, 1, 4)
# q8_0 and q4_0: an fp16 scale, then 32 values of 8 or 4 bits; a 4-bit value is stored plus 8.
TYPES = {"f16": WeightType(1, 1, 2), "q4_0": WeightType(2, 32, 18), "q8_0": WeightType(8, 32, 34),
         "bf16": WeightType(30, 1, 2)}


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of a decoder in which every layer is sparse, with norms on queries and keys."""
    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    experts_per_token: int
    intermediate: int  # of an expert
    vocabulary: int
    context: int
    rope_theta: float
    epsilon: float

    @staticmethod
    def read(config_file: pathlib.Path) -> "Shape":
        """ValueError for a family that is not such a decoder."""
        config = json.loads(config_file.read_text())
        family = config.get("model_type")
        if family not in ("olmoe", "qwen3_moe"):
            raise ValueError(f'{config_file}: model_type "{family}" is not one that peers are compared on (olmoe, qwen3_moe)')
        if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
            raise ValueError(f"{config_file}: some layers are dense; peers are compared on models without such")
        heads = config["num_attention_heads"]
        return Shape(
            name=config_file.resolve().stem if config_file.is_symlink() else config_file.resolve().parent.name,
            layers=config["num_hidden_layers"], hidden=config["hidden_size"], heads=heads,
            kv_heads=config["num_key_value_heads"], head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            experts=config["num_experts"], experts_per_token=config["num_experts_per_tok"],
            intermediate=config.get("moe_intermediate_size", config["intermediate_size"]),
            vocabulary=config["vocab_size"], context=config["max_position_embeddings"],
            rope_theta=config["rope_theta"], epsilon=config["rms_norm_eps"])


@dataclasses.dataclass(frozen=True)
class Tensor:
    name: str
    dims: tuple[int, ...]  # the innermost first, as the format has them
    type: WeightType
    fill: str  # "pool", "embedding" (a pool, too), "ones" or "gate"

    @property
    def num_bytes(self) -> int:
        return math.prod(self.dims) // self.type.elements * self.type.bytes


def tensors(shape: Shape, architecture: str, expert_type: WeightType, dense_type: WeightType) -> list[Tensor]:
    """`architecture` "qwen3moe" has norms over each head, "olmoe" over all heads; no other difference in shape."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    per_head = architecture == "qwen3moe"
    hidden, experts = shape.hidden, shape.experts
    found = [Tensor("token_embd.weight", (hidden, shape.vocabulary), dense_type, "embedding"),
             Tensor("output_norm.weight", (hidden,), F32, "ones"),
             Tensor("output.weight", (hidden, shape.vocabulary), dense_type, "pool")]
    for layer in range(shape.layers):
        found += [Tensor(f"blk.{layer}.{name}.weight", dims, weight_type, fill) for name, dims, weight_type, fill in (
            ("attn_norm", (hidden,), F32, "ones"),
            ("attn_q", (hidden, queries), dense_type, "pool"),
            ("attn_k", (hidden, keys), dense_type, "pool"),
            ("attn_v", (hidden, keys), dense_type, "pool"),
            ("attn_output", (queries, hidden), dense_type, "pool"),
            ("attn_q_norm", (shape.head_dim if per_head else queries,), F32, "ones"),
            ("attn_k_norm", (shape.head_dim if per_head else keys,), F32, "ones"),
            ("ffn_norm", (hidden,), F32, "ones"),
            ("ffn_gate_inp", (hidden, experts), F32, "gate"),
            ("ffn_gate_exps", (hidden, shape.intermediate, experts), expert_type, "pool"),
            ("ffn_up_exps", (hidden, shape.intermediate, experts), expert_type, "pool"),
            ("ffn_down_exps", (shape.intermediate, hidden, experts), expert_type, "pool"))]
    return found


class _KeyValues:
    """Key-value pairs in the format's encoding."""
    U32, I32, F32, STRING, ARRAY = 4, 5, 6, 8, 9

    def __init__(self) -> None:
        self.count = 0
        self.bytes = bytearray()

    def add(self, key: str, value: str | int | float) -> None:
        self._key(key)
        if isinstance(value, str):
            self.bytes += struct.pack("<I", self.STRING) + packed(value)
        else:
            kind = (self.F32, "f") if isinstance(value, float) else (self.U32, "I")
            self.bytes += struct.pack(f"<I{kind[1]}", kind[0], value)

    def add_array(self, key: str, element_type: int, count: int, elements: bytes) -> None:
        self._key(key)
        self.bytes += struct.pack("<IIQ", self.ARRAY, element_type, count) + elements

    def _key(self, key: str) -> None:
        self.count += 1
        self.bytes += packed(key)


def packed(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def key_values(shape: Shape, architecture: str) -> _KeyValues:
    pairs = _KeyValues()
    pairs.add("general.architecture", architecture)
    pairs.add("general.name", f"{shape.name} with random weights")
    for key, value in (("context_length", shape.context), ("embedding_length", shape.hidden),
                       ("block_count", shape.layers), ("feed_forward_length", shape.intermediate),
                       ("expert_feed_forward_length", shape.intermediate), ("attention.head_count", shape.heads),
                       ("attention.head_count_kv", shape.kv_heads), ("attention.key_length", shape.head_dim),
                       ("attention.value_length", shape.head_dim), ("rope.freq_base", float(shape.rope_theta)),
                       ("attention.layer_norm_rms_epsilon", float(shape.epsilon)), ("expert_count", shape.experts),
                       ("expert_used_count", shape.experts_per_token), ("vocab_size", shape.vocabulary)):
        pairs.add(f"{architecture}.{key}", value)
    _add_vocabulary(pairs, shape.vocabulary)
    return pairs


def _add_vocabulary(pairs: _KeyValues, size: int) -> None:
    """Made-up pieces: readers want some. Three special ones, the ASCII bytes (as SentencePiece vocabularies have, but
    others could make a text that is not UTF-8), then a number each, so that a text shows which tokens it is made of."""
    normal, unknown, control, byte = 1, 2, 3, 6
    pieces = [("<unk>", unknown), ("<s>", control), ("</s>", control)]
    pieces += [(f"<0x{value:02X}>", byte) for value in range(FIRST_PLAIN_TOKEN - 3)]
    pieces = (pieces + [(f"\u2581{token}", normal) for token in range(len(pieces), size)])[:size]
    pairs.add("tokenizer.ggml.model", "llama")
    pairs.add_array("tokenizer.ggml.tokens", pairs.STRING, size, b"".join(packed(piece) for piece, _ in pieces))
    pairs.add_array("tokenizer.ggml.scores", pairs.F32, size, struct.pack(f"<{size}f", *(-float(t) for t in range(size))))
    pairs.add_array("tokenizer.ggml.token_type", pairs.I32, size, struct.pack(f"<{size}i", *(kind for _, kind in pieces)))
    for role, token in (("unknown", 0), ("bos", 1), ("eos", 2)):
        pairs.add(f"tokenizer.ggml.{role}_token_id", token)


def pool(weight_type: WeightType, exponent: int, draw: random.Random) -> bytes:
    """Whole blocks of random weights of about 2^exponent. Their mean is 0: the least bias on one side would grow from
    layer to layer until all tokens have one state, and one choice of experts."""
    blocks = POOL_BYTES // weight_type.bytes
    data = bytearray(draw.randbytes(blocks * weight_type.bytes))
    every_byte = bytes(range(256))
    if weight_type in (TYPES["q8_0"], TYPES["q4_0"]):
        eight_bits = weight_type == TYPES["q8_0"]
        # -128, and -8 (stored as 0), have no opposite and become 0 (stored as 0, and as 8).
        pair = bytes((value & 15 or 8) | (value >> 4 or 8) << 4 for value in every_byte)
        data = data.translate(every_byte.replace(b"\x80", b"\x00") if eight_bits else pair)
        # Even between -x and x: the deviation is x / sqrt(3).
        scale = struct.pack("<e", 2 ** exponent * math.sqrt(3) / (127 if eight_bits else 7))
        data[0::weight_type.bytes] = scale[:1] * blocks
        data[1::weight_type.bytes] = scale[1:] * blocks
    else:  # random sign and fraction, so 2^exponent to twice that
        bits = (exponent + 15) << 10 if weight_type == TYPES["f16"] else (exponent + 127) << 7
        fraction = 0x03FF if weight_type == TYPES["f16"] else 0x007F
        data[0::2] = data[0::2].translate(bytes(value & fraction | bits & 0xFF for value in every_byte))
        data[1::2] = data[1::2].translate(bytes(value & (fraction >> 8 | 0x80) | bits >> 8 for value in every_byte))
    return bytes(data)


def _write_from_pool(file: BinaryIO, source: bytes, block_bytes: int, remaining: int, draw: random.Random) -> None:
    view = memoryview(source)
    while remaining > 0:
        start = draw.randrange(len(source) // block_bytes) * block_bytes
        remaining -= file.write(view[start:start + remaining])


def _floats(tensor: Tensor, draw: random.Random) -> bytes:
    count = math.prod(tensor.dims)
    values = (1.0 for _ in range(count)) if tensor.fill == "ones" else (
        draw.gauss(0, 2 ** MATRIX_EXPONENT) for _ in range(count))
    return array.array("f", values).tobytes()


def write(shape: Shape, path: pathlib.Path, expert_type: str, dense_type: str, architecture: str = "qwen3moe",
          seed: int = 1) -> None:
    """Complete, or not there at all. Types are keys of TYPES: of the experts, and of all other matrices."""
    described = tensors(shape, architecture, TYPES[expert_type], TYPES[dense_type])
    for tensor in described:
        if tensor.dims[0] % tensor.type.elements:
            raise ValueError(f"{tensor.name}: rows of {tensor.dims[0]} are not whole blocks of {tensor.type.elements}")
    pairs = key_values(shape, architecture)
    header = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(described), pairs.count) + pairs.bytes)
    offset = 0  # from the begin of the data
    for tensor in described:
        dims = struct.pack(f"<I{len(tensor.dims)}Q", len(tensor.dims), *tensor.dims)
        header += packed(tensor.name) + dims + struct.pack("<IQ", tensor.type.id, offset)
        offset += -(-tensor.num_bytes // ALIGNMENT) * ALIGNMENT
    draw = random.Random(seed)
    pools = {("pool", kind): pool(kind, MATRIX_EXPONENT, draw) for kind in {TYPES[expert_type], TYPES[dense_type]}}
    pools["embedding", TYPES[dense_type]] = pool(TYPES[dense_type], EMBEDDING_EXPONENT, draw)
    unfinished = path.with_name(path.name + f".{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(header + bytes(-len(header) % ALIGNMENT))
            for tensor in described:
                if (tensor.fill, tensor.type) in pools:
                    _write_from_pool(file, pools[tensor.fill, tensor.type], tensor.type.bytes, tensor.num_bytes, draw)
                else:
                    file.write(_floats(tensor, draw))
                file.write(bytes(-tensor.num_bytes % ALIGNMENT))
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)
