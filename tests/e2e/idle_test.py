"""A cluster that has nothing to do lets the machine be, and answers when it is called. How little it takes, and how
soon it answers, is measured elsewhere; here only a process that spins, or one that does not wake up, fails."""

import os
import pathlib
import time

import serving

RANKS = 8
SECONDS = 4
SPINNING_SHARE = 0.25  # of one processor, all ranks together; one thread that spins takes 1


def cpu_seconds(pids) -> float:
    ticks = 0
    for pid in pids:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])  # user and system
    return ticks / os.sysconf("SC_CLK_TCK")


class IdleTest(serving.ServingTest):

    def test_nothing_spins(self):
        with serving.running(serving.MOE, RANKS) as server:
            ranks = [rank.pid for rank in server.get_cluster().ranks]
            self.assertEqual(len(ranks), RANKS)
            server.generate([[1, 2, 3]], 50)
            server.wait_until_idle()
            begin, used = time.monotonic(), cpu_seconds(ranks)
            time.sleep(SECONDS)  # the thing measured, not something waited for
            share = (cpu_seconds(ranks) - used) / (time.monotonic() - begin)
            self.assertLess(share, SPINNING_SHARE)
            self.assertEqual(server.generate([[1, 2, 3]], 5)[0].reason, "LENGTH")
            # Work, counted the same way, does come to what would have been too much; how soon depends on the machine.
            used = cpu_seconds(ranks)
            def too_much() -> bool:
                server.generate([[1] * 100] * 64, 100)
                return cpu_seconds(ranks) - used > SPINNING_SHARE * SECONDS
            serving.wait_until(too_much, "work that does not show")


if __name__ == "__main__":
    serving.main()
