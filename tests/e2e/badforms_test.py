"""Checkpoints whose stored forms are wrong: FP8 and MXFP4 without what belongs to them, fused experts of other shapes,
tensors that no family knows. Each is refused by the tensor's name before anything is served."""

import json
import pathlib
import tempfile

import checkpoint_files
import serving

FP8 = serving.GOLDENS / "deepseek_v3_fp8"
MXFP4 = serving.GOLDENS / "gpt_oss"
FUSED = serving.GOLDENS / "granitemoe"
SWITCH = serving.GOLDENS / "switch_base"
LATENT = serving.GOLDENS / "deepseek_v2"
ADDRESSES = ("--listen", "127.0.0.1:0", "--metrics-port", 0)

PROJECTION = "model.layers.1.self_attn.o_proj.weight"
FP8_EXPERT = "model.layers.1.mlp.experts.3.down_proj.weight"
BLOCKS = "model.layers.2.mlp.experts.gate_up_proj_blocks"
SCALES = "model.layers.2.mlp.experts.gate_up_proj_scales"
FUSED_IN = "model.layers.1.block_sparse_moe.input_linear.weight"


class BadFormsTest(serving.ServingTest):

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="moe-bad-forms-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.copies = 0

    def copy(self, original: pathlib.Path) -> checkpoint_files.Checkpoint:
        self.copies += 1
        return checkpoint_files.Checkpoint(self.folder / f"copy-{self.copies}", original)

    def refuse(self, checkpoint: checkpoint_files.Checkpoint, *needles, ranks: int = 0) -> None:
        with self.subTest(needles=needles, ranks=ranks):
            outcome = serving.run(["--model", checkpoint.folder, *ADDRESSES], ranks)
            self.assertEqual(outcome.exit_code, 1, outcome.stderr)
            lines = outcome.own_lines()
            self.assertEqual(len(lines), 1, outcome.stderr)
            for needle in needles:
                self.assertIn(str(needle), lines[0])

    def test_copies_are_good_before_they_are_spoilt(self):
        for original in (FP8, MXFP4, FUSED, SWITCH, LATENT):
            with self.subTest(original.name), serving.running(self.copy(original).folder) as server:
                self.assertEqual(len(server.generate([[1, 2]], 3)[0].token_ids), 3)

    def test_fp8_needs_its_scales(self):
        for name in (PROJECTION, FP8_EXPERT):
            self.refuse(self.copy(FP8).remove_tensor(f"{name}_scale_inv"), f"{name}_scale_inv")
            rows, columns = self.copy(FP8).tensor(f"{name}_scale_inv")["shape"]
            for shape in ([rows * columns], [rows * columns, 1, 1]):
                self.refuse(self.copy(FP8).change_tensor(f"{name}_scale_inv", shape=shape), f"{name}_scale_inv")
        self.refuse(self.copy(FP8).remove_tensor(f"{FP8_EXPERT}_scale_inv"), f"{FP8_EXPERT}_scale_inv", ranks=3)

    def test_fp8_scales_are_for_blocks_of_128(self):
        # A block more of inputs than the matrix has.
        name = f"{PROJECTION}_scale_inv"
        rows, columns = self.copy(FP8).tensor(name)["shape"]
        checkpoint = self.copy(FP8).remove_tensor(name)
        checkpoint.add_tensor(name, "F32", [rows, columns + 1], bytes(4 * rows * (columns + 1)))
        self.refuse(checkpoint, name, columns + 1)

    def test_fp8_must_be_announced(self):
        self.refuse(self.copy(FP8).change_config(quantization_config=None), "F8_E4M3")
        quantization = json.loads((FP8 / "config.json").read_text())["quantization_config"]
        self.refuse(self.copy(FP8).change_config(quantization_config=quantization | {"weight_block_size": [64, 128]}),
                    "weight_block_size", 64)
        self.refuse(self.copy(FP8).change_config(quantization_config={"quant_method": "gptq", "bits": 4}),
                    "quant_method", "gptq")

    def test_mxfp4_needs_blocks_and_scales(self):
        self.refuse(self.copy(MXFP4).remove_tensor(SCALES), SCALES)
        self.refuse(self.copy(MXFP4).remove_tensor(BLOCKS), BLOCKS)
        experts, rows, blocks = self.copy(MXFP4).tensor(SCALES)["shape"]
        for shape in ([experts, blocks, rows], [experts, rows * blocks]):
            self.refuse(self.copy(MXFP4).change_tensor(SCALES, shape=shape), SCALES)
        experts, rows, blocks, half = self.copy(MXFP4).tensor(BLOCKS)["shape"]
        self.refuse(self.copy(MXFP4).change_tensor(BLOCKS, shape=[experts, rows, blocks * 2, half // 2]), BLOCKS)
        self.refuse(self.copy(MXFP4).change_tensor(BLOCKS, dtype="I8"), BLOCKS, "I8")
        self.refuse(self.copy(MXFP4).remove_tensor(SCALES), SCALES, ranks=3)

    def test_fused_experts_have_one_part_an_expert(self):
        experts, outputs, inputs = self.copy(FUSED).tensor(FUSED_IN)["shape"]
        for shape in ([experts // 2, outputs * 2, inputs], [experts, inputs, outputs], [experts * outputs, inputs]):
            self.refuse(self.copy(FUSED).change_tensor(FUSED_IN, shape=shape), FUSED_IN)
        self.refuse(self.copy(FUSED).change_config(num_local_experts=experts + 1), "block_sparse_moe", experts + 1)
        self.refuse(self.copy(FUSED).remove_tensor(FUSED_IN), FUSED_IN)

    def test_unknown_tensors(self):
        for original, name in ((FP8, "model.layers.1.self_attn.frob_proj.weight"), (MXFP4, "model.layers.0.frob"),
                               (FUSED, "model.layers.9.input_layernorm.weight"), (SWITCH, "encoder.block.9.frob"),
                               (LATENT, "model.frob.weight")):
            self.refuse(self.copy(original).add_tensor(name, "F32", [2, 3], bytes(24)), name)

    def test_tensors_under_another_name(self):
        for original, name in ((LATENT, "model.layers.0.self_attn.kv_b_proj.weight"),
                               (LATENT, "model.layers.1.mlp.shared_experts.up_proj.weight"),
                               (MXFP4, "model.layers.1.self_attn.sinks"), (MXFP4, "model.layers.0.mlp.router.bias"),
                               (FP8, "model.layers.1.mlp.gate.e_score_correction_bias"),
                               (SWITCH, "decoder.block.2.layer.1.EncDecAttention.k.weight"),
                               (SWITCH, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
                               (SWITCH, "decoder.block.3.layer.2.mlp.router.classifier.weight")):
            self.refuse(self.copy(original).rename_tensor(name, f"{name}_"), name)


if __name__ == "__main__":
    serving.main()
