#!/usr/bin/python3
"""bench/rank_quota.sh: rank 0 is left alone, every other rank runs in a control group of its own that is gone after it."""

import os
import pathlib
import subprocess
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "bench/rank_quota.sh"
GROUPS = pathlib.Path("/sys/fs/cgroup/cpu")
CAN_LIMIT = os.access(GROUPS, os.W_OK) and (GROUPS / "cgroup.procs").exists()


def run(*arguments: str, rank: str | None = "1") -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name not in ("OMPI_COMM_WORLD_RANK", "PMI_RANK")}
    if rank is not None:
        environment["OMPI_COMM_WORLD_RANK"] = rank
    return subprocess.run([str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=60)


class RankQuotaTest(unittest.TestCase):

    def test_bad_usage_is_one_sentence(self):
        for arguments, rank, needle in (((), "1", "--help"), (("0.5",), "1", "--help"), (("2", "true"), "1", '"2"'),
                                        (("fast", "true"), "1", '"fast"'), (("0.5", "true"), None, "mpirun")):
            with self.subTest(arguments=arguments):
                done = run(*arguments, rank=rank)
                self.assertEqual((done.returncode, done.stdout), (2, ""))
                self.assertRegex(done.stderr, r"\Arank_quota.sh: .*\n\Z")
                self.assertIn(needle, done.stderr)

    def test_the_first_rank_is_not_limited(self):
        done = run("0.1", "cat", "/proc/self/cgroup", rank="0")
        self.assertEqual(done.returncode, 0)
        self.assertNotIn("moe-rank", done.stdout)

    @unittest.skipUnless(CAN_LIMIT, "no control groups of version 1 that this user may make")
    def test_other_ranks_run_in_a_group_of_their_own_that_goes_with_them(self):
        done = run("0.1", "sh", "-c", "cat /proc/self/cgroup; exit 7", rank="3")
        self.assertEqual(done.returncode, 7, done.stderr)
        (line,) = [line for line in done.stdout.splitlines() if "moe-rank-3-" in line]
        self.assertFalse((GROUPS / line.rpartition("/")[2]).exists())

    @unittest.skipUnless(CAN_LIMIT, "no control groups of version 1 that this user may make")
    def test_the_quota_is_the_share_of_a_period(self):
        done = run("0.25", "sh", "-c", 'cat /sys/fs/cgroup/cpu$(sed -n "s/.*cpu:\\(.*moe-rank.*\\)/\\1/p" /proc/self/cgroup)'
                                       "/cpu.cfs_quota_us", rank="1")
        self.assertEqual((done.returncode, done.stdout), (0, "2500\n"), done.stderr)


if __name__ == "__main__":
    unittest.main()
