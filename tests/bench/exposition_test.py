#!/usr/bin/python3
"""bench/exposition.py: samples, sums and quantiles against figures worked out by hand."""

import math
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "bench"))
import exposition  # noqa: E402

TEXT = """# HELP moe_rows rows
# TYPE moe_rows counter
moe_rows{rank="1",kind="a"} 3
moe_rows{rank="2",kind="a"} 4.5 1700000000000
moe_rows{rank="2",kind="say \\"b, c\\""} 1e+02
plain 7
"""


class ExpositionTest(unittest.TestCase):
    def test_samples_have_names_labels_and_values(self):
        samples = exposition.parse(TEXT)
        self.assertEqual(len(samples), 4)
        self.assertEqual(samples[0], ("moe_rows", {"rank": "1", "kind": "a"}, 3))
        self.assertEqual(samples[2][1]["kind"], 'say \\"b, c\\"')
        self.assertEqual(samples[3], ("plain", {}, 7))

    def test_what_is_no_sample_is_named(self):
        with self.assertRaisesRegex(ValueError, "<html>"):
            exposition.parse("<html>\n")

    def test_totals_select_by_label_and_rank(self):
        snapshot = exposition.Snapshot([TEXT, "plain 2\n"])
        self.assertEqual(snapshot.total("moe_rows"), 107.5)
        self.assertEqual(snapshot.total("moe_rows", kind="a"), 7.5)
        self.assertEqual(snapshot.total("plain"), 9)
        self.assertEqual(snapshot.total("plain", rank=1), 2)
        self.assertEqual(snapshot.total("nothing"), 0)
        self.assertEqual(snapshot.by_label("moe_rows", "rank"), {"1": 3, "2": 104.5})

    def test_buckets_are_summed_over_ranks(self):
        text = 'h_bucket{le="1"} 2\nh_bucket{le="+Inf"} 5\n'
        self.assertEqual(exposition.Snapshot([text, text]).buckets("h"), {1.0: 4, math.inf: 10})

    def test_quantiles_are_linear_within_a_bucket(self):
        buckets = {1.0: 2, 2.0: 6, 4.0: 10, math.inf: 10}
        self.assertAlmostEqual(exposition.quantile(0.1, buckets), 0.5)  # rank 1 of the 2 in (0, 1]
        self.assertAlmostEqual(exposition.quantile(0.5, buckets), 1.75)  # rank 5: 3 of the 4 in (1, 2]
        self.assertAlmostEqual(exposition.quantile(1, buckets), 4)

    def test_above_the_last_bound_the_quantile_is_that_bound(self):
        self.assertEqual(exposition.quantile(0.99, {1.0: 1, math.inf: 10}), 1)

    def test_of_nothing_there_is_no_quantile(self):
        self.assertIsNone(exposition.quantile(0.5, {}))
        self.assertIsNone(exposition.quantile(0.5, {1.0: 0, math.inf: 0}))

    def test_the_difference_is_what_came_between(self):
        self.assertEqual(exposition.difference({1.0: 5, math.inf: 7}, {1.0: 2, math.inf: 3}), {1.0: 3, math.inf: 4})


if __name__ == "__main__":
    unittest.main()
