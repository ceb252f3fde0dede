"""Should experts move? What a server, its metrics, its log and moe_plan say, of one load."""

import json
import pathlib
import shutil
import subprocess
import tempfile

import fleet
import serving

SKEWED = ("--routing", "zipf:1.2")


def windows(count: int, length: int = 200) -> list[list[int]]:
    text = (serving.MODELS / "held-out.txt").read_bytes()
    return [list(text[i * length:(i + 1) * length]) for i in range(count)]


def plan(*arguments) -> dict:
    done = subprocess.run([serving.BIN_DIR / "moe_plan", "placement", *map(str, arguments), "--json"],
                          stdout=subprocess.PIPE, check=True, text=True, env=serving.clean_environment())
    return json.loads(done.stdout)


class RebalanceTest(serving.ServingTest):

    def test_a_server_advises_and_a_plan_agrees(self):
        folder = pathlib.Path(tempfile.mkdtemp(prefix="moe-e2e-rebalance-"))
        self.addCleanup(shutil.rmtree, folder)
        trace = folder / "skewed.moetrace"
        with serving.running(serving.MOE, 3, *SKEWED, "--rebalance", "advise", "--rebalance-interval", "0.2",
                             "--trace", trace) as server:
            for _ in range(5):
                server.score(windows(8))
            server.wait_until_idle()

            # Nothing has come since, so that from the next look on all of them see the same window.
            def settled():
                verdict = server.get_cluster().verdict
                return verdict if verdict.window_steps == server.get_cluster().window_steps else None
            verdict = serving.wait_until(settled, "a verdict on all steps")
            self.assertNotIn(verdict.reason, ("", "few_rows", "one_worker", "no_experts"))
            self.assertEqual(verdict.rebalance, verdict.reason == "pays")
            self.assertRegex(verdict.sentence, "^(Yes|No)")
            self.assertLess(verdict.balancedness, 0.95)
            self.assertGreater(verdict.step_seconds, 0)
            ours = {candidate.algorithm: candidate for candidate in verdict.candidates}["auto"]
            self.assertGreater(ours.balancedness, verdict.balancedness)
            self.assertGreater(ours.slowest_gain, 0.02)
            self.assertGreater(ours.experts_moved, 0)
            self.assertIn(verdict.sentence.split(":")[0], server.log())
            self.assertIn("should experts move?", server.log())

            asked = server.cluster.Rebalance(serving.pb.RebalanceRequest(), timeout=serving.CALL_SECONDS)
            self.assertEqual(asked.verdict.balancedness, verdict.balancedness)
            self.assertEqual(asked.placement.generation, verdict.placement_generation + 1)
            metrics = server.metrics()
            self.assertAlmostEqual(metrics.get("moe_placement_balancedness"), verdict.balancedness)
            self.assertEqual(metrics.get("moe_rebalance_advised"), float(asked.verdict.rebalance))
            best = {candidate.algorithm: candidate for candidate in asked.verdict.candidates}[asked.verdict.best]
            self.assertAlmostEqual(metrics.get("moe_rebalance_gain_ratio"), best.gain, places=3)

            planned = plan("--server", server.address)
            self.assertAlmostEqual(planned["figures"]["balancedness_before"], verdict.balancedness)
            self.assertEqual(planned["workers"], 2)
            self.assertEqual(planned["verdict"]["reason"], asked.verdict.reason)
            self.assertGreater(planned["verdict"]["cost"]["row_seconds"], 0)
            self.assertEqual([candidate["experts_moved"] for candidate in planned["verdict"]["candidates"]],
                             [candidate.experts_moved for candidate in asked.verdict.candidates])
        traced = plan("--trace", trace, "--workers", 2)
        self.assertAlmostEqual(traced["verdict"]["balancedness"], verdict.balancedness, msg="the window is all there was")
        self.assertIsNone(traced["verdict"]["cost"], "nobody measured it")

    def test_auto_moves_once_and_no_token_changes(self):
        prompts = windows(8)
        with serving.running(serving.MOE, 0, *SKEWED) as server:
            plain = [result.token_ids for result in server.generate(prompts, 40)]
        # Two looks are needed: time enough to see how it is before.
        with serving.running(serving.MOE, 3, *SKEWED, "--rebalance", "auto", "--rebalance-interval", "2",
                             "--rebalance-cooldown", "0", "--rebalance-gain", "0") as server:
            before = self.balancedness(server)
            def moved():
                self.assertEqual([result.token_ids for result in server.generate(prompts, 40)], plain)
                return server.get_cluster().migration.finished
            serving.wait_until(moved, "experts that move", seconds=serving.START_SECONDS)
            for _ in range(5):
                self.assertEqual([result.token_ids for result in server.generate(prompts, 40)], plain)
            state = server.get_cluster()
            self.assertEqual((state.migration.finished, state.migration.failed), (1, 0), server.log())
            self.assertEqual(state.placement_generation, 2)
            self.assertEqual(server.metric("moe_migrations_total", outcome="finished"), 1)
            self.assertGreater(self.balancedness(server), before)

    def test_auto_moves_over_a_fleet_whose_lost_workers_are_no_places(self):
        prompts = windows(8)
        with serving.running(serving.MOE, 0, *SKEWED) as server:
            plain = [result.token_ids for result in server.generate(prompts, 40)]
        with fleet.running(serving.MOE, 2) as workers, \
                workers.router(*SKEWED, "--rebalance", "auto", "--rebalance-interval", "2", "--rebalance-cooldown", "0",
                               "--rebalance-gain", "0", "--load-window-steps", "64") as server:
            def measured():
                self.assertEqual([result.token_ids for result in server.generate(prompts, 40)], plain)
                state = server.get_cluster()
                return state if state.HasField("last_move") else None
            state = serving.wait_until(measured, "a move that has been measured", seconds=serving.START_SECONDS)
            self.assertEqual((state.migration.finished, state.migration.failed), (1, 0), server.log())
            self.assertEqual(state.last_move.placement_generation, 2)
            self.assertGreater(state.last_move.step_seconds_before, 0)
            self.assertAlmostEqual(server.metric("moe_moved_step_seconds"), state.last_move.step_seconds)
            self.assertTrue(state.last_move.HasField("expected_step_seconds"))
            self.assertRegex(server.log(), "placement generation 2: expected step .* ms, measured .* ms, error .* %")

            lost = workers.workers[1]
            lost.kill()
            serving.wait_until(lambda: not server.get_cluster().ranks[2].up, "a worker that was killed is up")
            verdict = server.cluster.Rebalance(serving.pb.RebalanceRequest(), timeout=serving.CALL_SECONDS)
            self.assertEqual((verdict.verdict.rebalance, verdict.verdict.reason), (False, "workers_lost"))
            self.assertIn(lost.address, verdict.verdict.sentence)
            self.assertFalse(verdict.HasField("placement"))
            planned = subprocess.run([serving.BIN_DIR / "moe_plan", "placement", "--server", server.address],
                                     capture_output=True, text=True, env=serving.clean_environment())
            self.assertIn("rank 2 is lost", planned.stderr)
            lost.start()
            serving.wait_until(lambda: server.get_cluster().ranks[2].up, "a worker that has come back is not up")
            self.assertEqual([result.token_ids for result in server.generate(prompts, 40)], plain)
            verdict = server.cluster.Rebalance(serving.pb.RebalanceRequest(), timeout=serving.CALL_SECONDS)
            self.assertNotEqual(verdict.verdict.reason, "workers_lost")

    def balancedness(self, server) -> float:
        server.generate(windows(8), 40)
        return server.cluster.Rebalance(serving.pb.RebalanceRequest(), timeout=serving.CALL_SECONDS).verdict.balancedness

    def test_before_the_first_look_there_is_no_verdict(self):
        with serving.running(serving.MOE, 0, "--rebalance", "advise", "--rebalance-interval", "3600") as server:
            server.score(windows(8))
            self.assertFalse(server.get_cluster().HasField("verdict"))

    def test_without_the_flag_nobody_looks_but_who_asks(self):
        with serving.running(serving.MOE) as server:
            server.score(windows(8))
            self.assertFalse(server.get_cluster().HasField("verdict"))
            asked = server.cluster.Rebalance(serving.pb.RebalanceRequest(), timeout=serving.CALL_SECONDS)
            self.assertEqual((asked.verdict.rebalance, asked.verdict.reason), (False, "one_worker"))
            self.assertFalse(asked.HasField("placement"))

    def test_what_cannot_be_done_is_refused_at_start(self):
        for flags, needle in ((("--rebalance", "maybe"), "maybe"),
                              (("--rebalance-interval", "0"), "--rebalance-interval"),
                              (("--rebalance-gain", "2"), "--rebalance-gain"),
                              (("--rebalance-cooldown", "-1"), "--rebalance-cooldown")):
            outcome = serving.run(["--model", serving.MOE, *flags])
            self.assertEqual(outcome.exit_code, 2, outcome.stderr)
            self.assertIn(needle, outcome.stderr)
            self.assertEqual(len(outcome.own_lines()), 1)


if __name__ == "__main__":
    serving.main()
