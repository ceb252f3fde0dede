"""A plain decoder in double precision, written from the families' definitions and from nothing of the project's code,
and random checkpoints in the published layout: the reference for options that no golden checkpoint has."""

import array
import json
import math
import pathlib
import random
import struct


def _vector(rng, size, spread):
    return [struct.unpack("f", struct.pack("f", rng.gauss(0, spread)))[0] for _ in range(size)]


class Weights:
    """Random fp32 tensors by name, made when first asked for; matrices are lists of rows (out, in)."""

    def __init__(self, seed: int):
        self._rng = random.Random(seed)
        self.tensors: dict[str, tuple[tuple[int, ...], list[float]]] = {}

    def matrix(self, name: str, rows: int, columns: int) -> list[list[float]]:
        if name not in self.tensors:
            self.tensors[name] = ((rows, columns), _vector(self._rng, rows * columns, 1.5 / math.sqrt(columns)))
        flat = self.tensors[name][1]
        return [flat[i:i + columns] for i in range(0, len(flat), columns)]

    def vector(self, name: str, size: int, middle: float = 0.0) -> list[float]:
        if name not in self.tensors:
            shifted = [struct.unpack("f", struct.pack("f", middle + v))[0] for v in _vector(self._rng, size, 0.3)]
            self.tensors[name] = ((size,), shifted)
        return self.tensors[name][1]

    def save(self, path: pathlib.Path) -> None:
        header, body = {}, b""
        for name, (shape, values) in self.tensors.items():
            data = array.array("f", values).tobytes()
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(body), len(body) + len(data)]}
            body += data
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def _times(matrix, x):
    return [math.fsum(w * v for w, v in zip(row, x)) for row in matrix]


def _plus(a, b):
    return [x + y for x, y in zip(a, b)]


def _rms(x, weight, eps):
    scale = 1 / math.sqrt(math.fsum(v * v for v in x) / len(x) + eps)
    return [w * v * scale for w, v in zip(weight, x)]


def _softmax(x):
    largest = max(x)
    exps = [math.exp(v - largest) for v in x]
    total = math.fsum(exps)
    return [v / total for v in exps]


class Decoder:
    """Llama, Mistral or Mixtral as `config` (a config.json's content) says."""

    def __init__(self, config: dict, seed: int):
        self.config = config
        self.weights = Weights(seed)
        self.hidden = config["hidden_size"]
        self.heads = config["num_attention_heads"]
        self.kv_heads = config.get("num_key_value_heads") or self.heads
        self.head_dim = config.get("head_dim") or self.hidden // self.heads
        self.frequencies = self._frequencies()

    def _frequencies(self) -> list[float]:
        config = self.config
        rope = config.get("rope_parameters") or {}
        family_theta = 1e6 if config["model_type"] == "mixtral" else 1e4
        theta = rope.get("rope_theta", config.get("rope_theta", family_theta))
        plain = [theta ** (-2 * i / self.head_dim) for i in range(self.head_dim // 2)]
        scaling = rope or config.get("rope_scaling") or {}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind == "default":
            return plain
        if kind == "linear":
            return [f / scaling["factor"] for f in plain]
        assert kind == "llama3"
        length = scaling.get("original_max_position_embeddings", config["max_position_embeddings"])
        low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
        def scaled(f):
            wavelength = 2 * math.pi / f
            if wavelength > length / low:
                return f / factor
            if wavelength < length / high:
                return f
            share = (length / wavelength - low) / (high - low)
            return (1 - share) * f / factor + share * f
        return [scaled(f) for f in plain]

    def _linear(self, name, x, rows, bias):
        y = _times(self.weights.matrix(f"{name}.weight", rows, len(x)), x)
        return _plus(y, self.weights.vector(f"{name}.bias", rows)) if bias else y

    def _rotated(self, head, position):
        half = self.head_dim // 2
        angles = [position * f for f in self.frequencies]
        first = [head[i] * math.cos(a) - head[i + half] * math.sin(a) for i, a in enumerate(angles)]
        second = [head[i + half] * math.cos(a) + head[i] * math.sin(a) for i, a in enumerate(angles)]
        return first + second

    def _heads(self, flat):
        return [flat[i:i + self.head_dim] for i in range(0, len(flat), self.head_dim)]

    def _attention(self, layer, rows):
        name = f"model.layers.{layer}.self_attn"
        bias = self.config.get("attention_bias", False)
        window = self.config.get("sliding_window")
        queries, keys, values = [], [], []
        for position, x in enumerate(rows):
            q = self._heads(self._linear(f"{name}.q_proj", x, self.heads * self.head_dim, bias))
            k = self._heads(self._linear(f"{name}.k_proj", x, self.kv_heads * self.head_dim, bias))
            queries.append([self._rotated(head, position) for head in q])
            keys.append([self._rotated(head, position) for head in k])
            values.append(self._heads(self._linear(f"{name}.v_proj", x, self.kv_heads * self.head_dim, bias)))
        out = []
        for i, query in enumerate(queries):
            seen = range(max(0, i - window + 1) if window else 0, i + 1)
            joined = []
            for h, head in enumerate(query):
                kv = h // (self.heads // self.kv_heads)
                scores = [math.fsum(a * b for a, b in zip(head, keys[j][kv])) / math.sqrt(self.head_dim) for j in seen]
                shares = _softmax(scores)
                joined += [math.fsum(p * values[j][kv][d] for p, j in zip(shares, seen)) for d in range(self.head_dim)]
            out.append(self._linear(f"{name}.o_proj", joined, self.hidden, bias))
        return out

    def _mlp(self, gate, up, down, x, bias=False):
        width = self.config["intermediate_size"]
        g = self._linear(gate, x, width, bias)
        u = self._linear(up, x, width, bias)
        return self._linear(down, [a / (1 + math.exp(-a)) * b for a, b in zip(g, u)], self.hidden, bias)

    def _ffn(self, layer, x):
        if self.config["model_type"] != "mixtral":
            name = f"model.layers.{layer}.mlp"
            return self._mlp(f"{name}.gate_proj", f"{name}.up_proj", f"{name}.down_proj", x,
                             self.config.get("mlp_bias", False))
        name = f"model.layers.{layer}.block_sparse_moe"
        shares = _softmax(self._linear(f"{name}.gate", x, self.config["num_local_experts"], False))
        chosen = sorted(range(len(shares)), key=lambda e: (-shares[e], e))[:self.config["num_experts_per_tok"]]
        total = math.fsum(shares[e] for e in chosen)
        out = [0.0] * self.hidden
        for e in range(len(shares)):  # all of them, so that every tensor exists; the others do not count
            expert = f"{name}.experts.{e}"
            y = self._mlp(f"{expert}.w1", f"{expert}.w3", f"{expert}.w2", x)
            if e in chosen:
                out = _plus(out, [shares[e] / total * v for v in y])
        return out

    def logits(self, token_ids: list[int]) -> list[list[float]]:
        """(positions, vocabulary)"""
        eps = self.config["rms_norm_eps"]
        vocabulary = self.config["vocab_size"]
        table = self.weights.matrix("model.embed_tokens.weight", vocabulary, self.hidden)
        rows = [table[token] for token in token_ids]
        for layer in range(self.config["num_hidden_layers"]):
            norm = self.weights.vector(f"model.layers.{layer}.input_layernorm.weight", self.hidden, 1.0)
            rows = [_plus(x, y) for x, y in zip(rows, self._attention(layer, [_rms(x, norm, eps) for x in rows]))]
            norm = self.weights.vector(f"model.layers.{layer}.post_attention_layernorm.weight", self.hidden, 1.0)
            rows = [_plus(x, self._ffn(layer, _rms(x, norm, eps))) for x in rows]
        norm = self.weights.vector("model.norm.weight", self.hidden, 1.0)
        tied = self.config.get("tie_word_embeddings", False)
        head = table if tied else self.weights.matrix("lm_head.weight", vocabulary, self.hidden)
        return [_times(head, _rms(x, norm, eps)) for x in rows]

    def save(self, folder: pathlib.Path) -> None:
        """The checkpoint. Call it after logits(), which makes the tensors."""
        (folder / "config.json").write_text(json.dumps(self.config))
        self.weights.save(folder / "model.safetensors")
