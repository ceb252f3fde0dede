"""Experts that move between the ranks of a job while clients call: by the operator's script and by call, over MPI and
gRPC and in one process; who is refused; that nothing of it shows in the tokens."""

import json
import pathlib
import random
import subprocess
import sys
import tempfile

import grpc
import serving
from fleet_test import PROMPTS, TOKENS, Stream, expected_tokens

SCRIPT = serving.ROOT / "bench/set_placement.py"
FAST = ("--migration-bandwidth", "0")


def get_placement(server):
    return server.cluster.GetPlacement(serving.pb.GetPlacementRequest(), timeout=serving.CALL_SECONDS)


def shuffled(placement, seed: int):
    """Every expert on a random worker, some on another one too."""
    choose = random.Random(seed)
    result = serving.pb.Placement(num_experts=placement.num_experts, workers=placement.workers)
    for layer in placement.layers:
        slots = [[] for _ in range(placement.workers)]
        for expert in range(placement.num_experts):
            for worker in choose.sample(range(placement.workers), choose.choice([1, 1, min(2, placement.workers)])):
                slots[worker].append(expert)
        result.layers.add(layer=layer.layer, workers=[serving.pb.WorkerSlots(experts=experts) for experts in slots])
    return result


def set_placement(server, placement) -> int:
    request = serving.pb.SetPlacementRequest(placement=placement)
    return server.cluster.SetPlacement(request, timeout=serving.CALL_SECONDS).generation


def await_generation(server, generation: int):
    serving.wait_until(lambda: server.get_cluster().placement_generation == generation
                       and server.get_cluster().migration.phase == serving.pb.MIGRATION_PHASE_IDLE,
                       f"placement generation {generation} is not in force: {server.get_cluster().migration}")
    return server.get_cluster()


class MigrationTest(serving.ServingTest):

    @classmethod
    def setUpClass(cls):
        cls.expected = expected_tokens()

    def check_moves_under_load(self, ranks: int, *flags):
        with serving.running(serving.MOE, ranks, *FAST, *flags) as server:
            with Stream(server, self.expected) as stream:
                for generation in range(2, 8):
                    placement = shuffled(get_placement(server), generation)
                    self.assertEqual(set_placement(server, placement), generation)
                    state = await_generation(server, generation)
                    self.assertEqual(list(get_placement(server).layers), list(placement.layers))
                    stream.wait_for(2)
            self.assertEqual((stream.failures, stream.wrong), ([], []))
            self.assertEqual(server.metric("moe_migrations_total", outcome="finished"), 6)
            self.assertEqual(server.metric("moe_migrations_total", outcome="failed"), 0)
            self.assertEqual(server.metric("moe_placement_generation"), 7)
            # What GetCluster says, and each rank's own metrics, are of the placement in force.
            for rank in state.ranks[1:]:
                slots = sum(len(hosted.experts) for hosted in rank.hosted)
                each = state.ranks[1].expert_parameters / sum(len(h.experts) for h in state.ranks[1].hosted)
                self.assertEqual(rank.expert_parameters, slots * each)
                own = server.metrics(rank.rank)
                self.assertEqual(own.get("moe_rank_parameters", part="experts"), rank.expert_parameters)
                self.assertEqual(own.get("moe_rank_weight_bytes", part="experts"), rank.weight_bytes)
            if ranks > 0:
                self.assertGreater(server.metric("moe_migration_bytes_total"), 0)

    def test_under_load_over_mpi(self):
        self.check_moves_under_load(4)

    def test_under_load_over_grpc(self):
        self.check_moves_under_load(3, "--transport", "grpc")

    def test_in_one_process_slots_change_places(self):
        self.check_moves_under_load(0)

    def test_the_script_moves_and_says_why_not(self):
        with serving.running(serving.MOE, 3, *FAST) as server, tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "new.json")

            def run():
                return subprocess.run([sys.executable, "-B", SCRIPT, path, "--server", server.address],
                                      capture_output=True, text=True, timeout=serving.CALL_SECONDS, check=False)
            wanted = shuffled(get_placement(server), 3)
            layers = [{"layer": layer.layer, "slots": [list(worker.experts) for worker in layer.workers]}
                      for layer in wanted.layers]
            path.write_text(json.dumps({"schema": 1, "num_experts": 8, "workers": 2, "layers": layers}))
            done = run()
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertIn("placement generation 2 is in force", done.stdout)
            self.assertEqual(list(get_placement(server).layers), list(wanted.layers))
            self.assertEqual([r.token_ids for r in server.generate(PROMPTS, TOKENS)], self.expected)

            path.write_text(json.dumps({"schema": 1, "num_experts": 8, "workers": 3, "layers": layers}))
            done = run()
            self.assertEqual(done.returncode, 1)
            self.assertIn("INVALID_ARGUMENT: workers 3 is not the cluster's 2", done.stderr)
            path.write_text("[]")
            self.assertEqual(run().returncode, 2)

    def test_the_measurement_completes(self):
        command = [sys.executable, "-B", serving.ROOT / "bench/migration_cost.py", "--program", serving.BIN_DIR / "moe_serve",
                   "--seconds", "1", "--every", "0.2", "--warmup", "0", "--batch", "4", "--tokens", "16", "--json"]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False,
                              timeout=serving.CALL_SECONDS, env=serving.clean_environment())
        self.assertEqual(done.returncode, 0, done.stderr)
        result = json.loads(done.stdout)
        self.assertEqual((result["wrong"], result["failures"]), (0, []))
        self.assertGreaterEqual(result["moves"], 1)
        self.assertEqual(result["moved_experts"], 4 * result["moves"])
        self.assertGreater(result["with"]["tokens_per_s"], 0)

    def test_one_at_a_time_within_its_bandwidth_and_a_drain_does_not_wait(self):
        with serving.running(serving.MOE, 3, "--migration-bandwidth", "1K") as server:
            now = get_placement(server)
            self.assertEqual(set_placement(server, shuffled(now, 5)), 2)
            self.assert_refused(grpc.StatusCode.FAILED_PRECONDITION, "generation 2 is under way",
                                call=lambda: set_placement(server, now))
            serving.wait_until(lambda: server.get_cluster().migration.phase == serving.pb.MIGRATION_PHASE_LOADING,
                               "nothing is loaded")
            self.assertEqual(server.get_cluster().placement_generation, 1)
            self.assertEqual([r.token_ids for r in server.generate(PROMPTS, TOKENS)], self.expected)


if __name__ == "__main__":
    serving.main()
