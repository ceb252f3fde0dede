"""Weights that are quantised once and kept: the second start, also on other ranks, says the same tokens and that it has
read them, and whatever is wrong with the files is said and changes nothing else."""

import os
import pathlib
import re
import shutil
import tempfile

import serving

PROMPTS = ([1], [5, 9, 200], list(range(40)))
NEW_TOKENS = 12
# 4 layers of 8 experts, the attention of each, and the head.
FILES = 4 * 8 + 4 + 1


class WeightCacheTest(serving.ServingTest):

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="moe-cache-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.model = self.folder / "model"
        shutil.copytree(serving.MOE, self.model, ignore=shutil.ignore_patterns("moe-cache"))

    def serve(self, *flags, ranks: int = 0) -> tuple[list, str]:
        """What the model answers, and the log."""
        with serving.running(self.model, ranks, "--threads", 1, *flags) as server:
            tokens = [result.token_ids for result in server.generate(PROMPTS, NEW_TOKENS)]
            return tokens, server.log()

    def files(self, verb: str, log: str) -> int:
        """Files that all ranks say they have read, or written."""
        return sum(map(int, re.findall(rf"weight cache .*{verb} (\d+) files", log)))

    def kept(self, folder: pathlib.Path) -> list[pathlib.Path]:
        return sorted(path for path in folder.rglob("*") if path.is_file())

    def test_the_second_start_reads_what_the_first_wrote(self):
        for weight_type in ("int8", "int4"):
            with self.subTest(weight_type):
                kept = self.folder / f"kept-{weight_type}"
                flags = ("--weight-type", weight_type, "--weight-cache", kept)
                expected, log = self.serve("--weight-type", weight_type, "--weight-cache", "off")
                self.assertNotIn("weight cache", log)
                first, log = self.serve(*flags)
                self.assertEqual((self.files("read", log), self.files("wrote", log)), (0, FILES), log)
                second, log = self.serve(*flags)
                self.assertEqual((self.files("read", log), self.files("wrote", log)), (FILES, 0), log)
                over_ranks, log = self.serve(*flags, "--redundant-experts", 2, ranks=4)
                self.assertEqual((self.files("read", log), self.files("wrote", log)), (FILES + 4 * 2, 0), log)
                self.assertEqual([first, second, over_ranks], [expected] * 3)
                self.assertEqual(len(self.kept(kept / "model")), FILES)
        self.assertFalse((self.model / "moe-cache").exists())

    def test_ranks_write_it_together_beside_the_model(self):
        first, log = self.serve("--weight-type", "int4", "--redundant-experts", 6, ranks=3)
        self.assertGreaterEqual(self.files("read", log) + self.files("wrote", log), FILES)
        self.assertNotIn("cannot write", log)
        kept = self.kept(self.model / "moe-cache")
        self.assertEqual(len(kept), FILES, kept)
        second, log = self.serve("--weight-type", "int4")
        self.assertEqual((self.files("read", log), self.files("wrote", log)), (FILES, 0), log)
        self.assertEqual(second, first)

    def test_stale_and_damaged_files_are_named_and_made_anew(self):
        expected, _ = self.serve("--weight-type", "int4")
        head, expert = (self.model / "moe-cache" / name for name in ("int8/head.moew", "int4/layer-002/expert-005.moew"))
        content = bytearray(expert.read_bytes())
        content[-1] ^= 1
        expert.write_bytes(content)
        os.truncate(head, 100)
        tokens, log = self.serve("--weight-type", "int4", ranks=3)
        self.assertEqual(tokens, expected)
        self.assertEqual((self.files("read", log), self.files("wrote", log)), (FILES - 2, 2), log)
        for path in (head, expert):
            (line,) = [line for line in log.splitlines() if str(path) in line]
            self.assertIn("refused", line)

        os.utime(self.model / "model.safetensors")
        tokens, log = self.serve("--weight-type", "int4")
        self.assertEqual(tokens, expected)
        self.assertEqual((self.files("read", log), self.files("wrote", log)), (0, FILES), log)
        self.assertEqual(log.count("stale"), 1, log)

    def test_nothing_is_kept_unless_it_is_quantised(self):
        for flags in (("--weight-type", "bf16"), ("--weight-type", "int8", "--load-format", "dummy"),
                      ("--weight-type", "int8", "--weight-cache", "off")):
            with self.subTest(flags=flags):
                _, log = self.serve(*flags)
                self.assertNotIn("weight cache", log)
                self.assertFalse((self.model / "moe-cache").exists())

    def test_a_place_that_cannot_be_written_is_a_warning(self):
        (self.model / "moe-cache").write_text("a file where a folder should be")
        tokens, log = self.serve("--weight-type", "int8", ranks=3)
        self.assertEqual([len(sequence) for sequence in tokens], [NEW_TOKENS] * len(PROMPTS))
        self.assertEqual(self.files("read", log) + self.files("wrote", log), 0, log)
        lines = [line for line in log.splitlines() if "cannot write" in line]
        self.assertEqual(len(lines), 3, log)  # one of each rank
        for line in lines:
            self.assertIn(str(self.model / "moe-cache"), line)


if __name__ == "__main__":
    serving.main()
