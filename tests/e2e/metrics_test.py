"""Metrics of real jobs: every promised one is on the right ranks with the right labels, and the figures are true: they
are counted in another way here, or were measured by those who trained the models."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading

import serving

sys.path.insert(0, str(serving.ROOT / "tests/metrics"))
import metric_table  # noqa: E402

SPARSE_LAYERS, EXPERTS, PER_TOKEN = 4, 8, 2
EXPERT_PARAMETERS = 3 * 128 * 256
EMBEDDING_PARAMETERS = 256 * 128
ROUTED_PARAMETERS = SPARSE_LAYERS * EXPERTS * EXPERT_PARAMETERS
WINDOW = 256
MAX_SERIES = 400  # of one rank: the label sets are bounded


def readme_counts(model: str) -> dict[str, int]:
    """Total and active parameters as the model's README has them."""
    text = (serving.MODELS / model / "README.md").read_text()
    total, active = re.search(r"\| parameters \| total ([\d,]+), active ([\d,]+) \|", text).groups()
    return {"total": int(total.replace(",", "")), "active": int(active.replace(",", ""))}


def held_out_windows() -> list[list[int]]:
    text = (serving.MODELS / "held-out.txt").read_bytes()
    return [list(text[i:i + WINDOW]) for i in range(0, len(text), WINDOW)]


class ExposedTest(serving.ServingTest):

    def check_ranks(self, server: serving.Server, roles: list[set[str]]) -> None:
        """roles[rank]: the places of metric_table whose metrics that rank exports."""
        for rank, places in enumerate(roles):
            pages = {"/metrics": server.metrics(rank)}
            if metric_table.EXPERT_PATH in places:
                pages["/metrics/experts"] = server.metrics(rank, "/metrics/experts")
            else:
                self.assertEqual(server.http_get("/metrics/experts", rank)[0], 404)
            for metric in metric_table.METRICS:
                page = "/metrics/experts" if metric.where == metric_table.EXPERT_PATH else "/metrics"
                with self.subTest(rank=rank, metric=metric.name):
                    self.check_metric(server, metric, pages.get(page), expected=metric.where in places)
            self.assertLess(sum(map(len, pages["/metrics"].samples.values())), MAX_SERIES)
            for page, metrics in pages.items():
                with self.subTest(rank=rank, page=page):
                    checked = subprocess.run(["promtool", "check", "metrics"], input=metrics.text, text=True,
                                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                    self.assertEqual((checked.returncode, checked.stdout), (0, ""))

    def check_metric(self, server, metric, page: serving.Metrics | None, expected: bool) -> None:
        name = f"{metric.name}_count" if metric.kind == "histogram" else metric.name
        if not expected:
            self.assertTrue(page is None or name not in page)
            return
        self.assertIn(f"# TYPE {metric.name} {metric.kind}\n", page.text)
        self.assertRegex(page.text, rf"# HELP {metric.name} \S")
        series = [dict(labels) for labels in page.samples[name]]
        for labels in series:
            self.assertEqual(set(labels), set(metric.labels))
        for label in set(metric.labels) & {"scope", "part", "expert", "layer", "rank", "phase", "outcome", "transport"}:
            wanted = metric_table.label_values(label, server.ranks)
            if metric.name == "moe_migrations_total":
                wanted = ["finished", "failed"]
            self.assertEqual({labels[label] for labels in series}, set(wanted))

    def test_every_metric_is_where_it_is_promised(self):
        router, worker = {metric_table.EVERY, metric_table.ROUTER}, {metric_table.EVERY, metric_table.WORKER}
        with serving.running(serving.MOE, 4, "--expert-metrics") as server:
            server.generate([[1, 2, 3]], 20)
            self.check_ranks(server, [router | {metric_table.EXPERT_PATH}, worker, worker, worker])
        with serving.running(serving.MOE) as server:
            server.generate([[1, 2, 3]], 20)
            self.check_ranks(server, [router | worker])

    def test_builds_are_told_apart(self):
        version = re.fullmatch(r"moe_serve (\S+) \((\S+)\)\n", serving.run(["--version"]).stdout)
        for ranks, roles in ((0, ["both"]), (3, ["router", "worker", "worker"])):
            with serving.running(serving.MOE, ranks) as server:
                for rank, role in enumerate(roles):
                    labels = dict(version=version[1], commit=version[2], role=role, backend="cpu", weight_type="bf16",
                                  transport="mpi" if ranks else "inprocess")
                    self.assertEqual(server.metric("moe_build_info", rank, **labels), 1)

    def test_addresses(self):
        with serving.running(serving.MOE, 3, metrics_port=0) as server:
            self.assertEqual(server.metrics_addresses, [])
        with contextlib.ExitStack() as stack:
            port = stack.enter_context(FreePorts(3)).first
            stack.close()
            with serving.running(serving.MOE, 3, metrics_port=port) as server:
                self.assertEqual(server.metrics_addresses, [f"127.0.0.1:{port + rank}" for rank in range(3)])
                for rank in range(3):
                    self.assertIn("moe_build_info", server.metrics(rank))
                states = server.get_cluster().ranks
                self.assertEqual([rank.metrics_address for rank in states], server.metrics_addresses)


class FreePorts:
    """Holds so many neighbouring ports while the block runs."""

    def __init__(self, count: int):
        self.count = count
        self.first = 0
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> "FreePorts":
        for self.first in range(20000, 30000, self.count):
            with contextlib.suppress(OSError):
                for port in range(self.first, self.first + self.count):
                    self._sockets.append(socket.socket())
                    self._sockets[-1].bind(("127.0.0.1", port))
                return self
            self.__exit__()
        raise AssertionError("no free ports")

    def __exit__(self, *exception) -> None:
        for one in self._sockets:
            one.close()
        self._sockets.clear()


class FiguresTest(serving.ServingTest):

    def test_parameters(self):
        for name, ranks in (("eight-languages-moe", 4), ("eight-languages-dense", 0), ("eight-languages-collapsed", 0)):
            with self.subTest(model=name), serving.running(serving.MODELS / name, ranks) as server:
                counts = readme_counts(name)
                counts["active_without_embedding"] = counts["active"] - EMBEDDING_PARAMETERS
                routed = counts["total"] - counts["active"] and ROUTED_PARAMETERS
                description = server.model().parameters
                for scope, count in counts.items():
                    self.assertEqual(server.metric("moe_model_parameters", scope=scope), count)
                    self.assertEqual(getattr(description, scope), count)
                for part, count in (("experts", routed), ("dense", counts["total"] - routed)):
                    def hosted(metric: str) -> list[float]:
                        return [server.metric(metric, rank, part=part) for rank in range(server.ranks)]
                    self.assertEqual(sum(hosted("moe_rank_parameters")), count)
                    # As bf16, and what packing adds.
                    self.assertGreaterEqual(sum(hosted("moe_rank_weight_bytes")), 2 * count)
                    self.assertLessEqual(sum(hosted("moe_rank_weight_bytes")), 4 * count)
                    if ranks and part == "dense":
                        self.assertEqual(hosted("moe_rank_parameters")[1:], [0] * (ranks - 1))

    def test_rows_and_tokens(self):
        prompts, tokens = [[1, 2, 3], list(range(100)), [7] * 30], 12
        positions = sum(map(len, prompts)) + len(prompts) * (tokens - 1)
        with serving.running(serving.MOE, 4, "--expert-metrics", "--redundant-experts", 2) as server:
            before = server.metrics()
            self.assertEqual(before.get("moe_steps_total"), 0)
            results = server.generate(prompts, tokens, return_routing=True)
            server.wait_until_idle()
            router = server.metrics()
            per_layer = server.metrics(0, "/metrics/experts").samples["moe_expert_layer_tokens_total"]
            worker_rows = {str(rank): server.metric("moe_worker_rows_total", rank) for rank in (1, 2, 3)}

        self.assertEqual(sum(worker_rows.values()), positions * PER_TOKEN * SPARSE_LAYERS)
        self.assertEqual(router.by_label("moe_rank_rows_total", "rank"), worker_rows)
        self.assertTrue(all(worker_rows.values()))
        # The clients' own account: routing came with the tokens.
        routed = {}
        for result in results:
            for layer in result.routing:
                for expert in layer.expert_ids:
                    routed[layer.layer, expert] = routed.get((layer.layer, expert), 0) + 1
        counted = {(int(dict(key)["layer"]), int(dict(key)["expert"])): value for key, value in per_layer.items()}
        self.assertEqual({key: value for key, value in counted.items() if value}, routed)
        self.assertEqual(router.by_label("moe_expert_tokens_total", "expert"),
                         {str(expert): sum(value for key, value in counted.items() if key[1] == expert)
                          for expert in range(EXPERTS)})
        self.assertEqual(sum(result.finish.usage.expert_rows for result in results), sum(worker_rows.values()))
        self.assertEqual(router.get("moe_batch_tokens_sum"), positions)
        self.assertEqual(router.get("moe_batch_tokens_count"), router.get("moe_steps_total"))
        self.assertEqual(router.get("moe_exchange_seconds_count"), sum(
            router.get("moe_exchange_seconds_count", rank=rank, transport="mpi") for rank in worker_rows))

    def test_touched_parameters(self):
        with serving.running(serving.MOE, 3) as server:
            active = readme_counts(serving.MOE.name)["active"]
            def touched_by(request) -> tuple[float, float]:
                before = server.metrics()
                request()
                server.wait_until_idle()
                after = server.metrics()
                return tuple(after.get(name) - before.get(name)
                             for name in ("moe_steps_total", "moe_step_touched_parameters_total"))
            self.assertEqual(touched_by(lambda: server.score([[5]])), (1, active))
            self.assertEqual(touched_by(lambda: server.generate([[5]], 1)), (1, active))
            self.assertEqual(touched_by(lambda: server.generate([[5]], 10)), (10, 10 * active))
            # Each expert counts once a step, however many tokens use it.
            prompt = list(range(60))
            (score,) = server.score([prompt], return_routing=True)
            distinct = sum(len(set(layer.expert_ids)) for layer in score.routing)
            dense = active - SPARSE_LAYERS * PER_TOKEN * EXPERT_PARAMETERS
            self.assertGreater(distinct, SPARSE_LAYERS * PER_TOKEN)
            self.assertEqual(touched_by(lambda: server.score([prompt])), (1, dense + distinct * EXPERT_PARAMETERS))

    def test_requests(self):
        lengths = (1, 2, 5, 30)
        with serving.running(serving.MOE) as server:
            for length in lengths:
                server.generate([[9]], length)
            server.score([[1, 2, 3]])
            call = server.inference.Generate(serving.generate_request([[9]] * 50, 500), timeout=serving.CALL_SECONDS)
            next(call)
            call.cancel()
            server.wait_until_idle()
            metrics = server.metrics()
        outcomes = metrics.by_label("moe_requests_total", "outcome")
        finished = outcomes["finished"]
        self.assertGreaterEqual(finished, len(lengths))
        self.assertEqual(sum(outcomes.values()), len(lengths) + 50)
        self.assertGreater(outcomes["cancelled"], 0)
        self.assertEqual(metrics.get("moe_request_e2e_seconds_count"), finished)
        for name in ("queue", "time_to_first_token", "e2e"):
            self.assertEqual(metrics.get(f"moe_request_{name}_seconds_count"), finished)
        # All prompts have one token, but for Score's three, so that every other position gave one; of n tokens of a
        # sequence n - 1 come after another.
        generated = metrics.get("moe_batch_tokens_sum") - 3
        self.assertGreaterEqual(generated, metrics.get("moe_generated_tokens_total"))
        begun = generated - metrics.get("moe_request_inter_token_seconds_count")
        self.assertLessEqual(finished, begun)
        self.assertLessEqual(begun, sum(outcomes.values()))
        self.assertEqual(metrics.get("moe_request_time_per_output_token_seconds_count"), finished - lengths.count(1))
        phases = metrics.by_label("moe_step_phase_seconds_total", "phase")
        self.assertLessEqual(sum(phases.values()), metrics.get("moe_step_seconds_sum"))
        self.assertGreater(sum(phases.values()), 0.5 * metrics.get("moe_step_seconds_sum"))
        self.assertTrue(all(value >= 0 for value in phases.values()), phases)


class RoutingTest(serving.ServingTest):
    """Against the figures that each model's README and golden.json have, made with another implementation."""

    def check_model(self, name: str, collapsed: int) -> None:
        golden = json.loads((serving.MODELS / name / "golden.json").read_text())["val_expert_counts"]
        table = re.findall(r"^\| (\d) \|(?: [\d.]+ \|){8} ([\d.]+) \| ([\d.]+) \| (\d) \|$",
                           (serving.MODELS / name / "README.md").read_text(), re.MULTILINE)
        self.assertEqual(len(table), SPARSE_LAYERS)
        with serving.running(serving.MODELS / name, 0, "--expert-metrics") as server:
            windows = held_out_windows()
            for i in range(0, len(windows), 32):
                server.score(windows[i:i + 32])
            cluster = server.get_cluster()  # answered between two steps, so that the gauges have seen all of them
            metrics, experts = server.metrics(), server.metrics(0, "/metrics/experts")
        for layer, balancedness, entropy, dead in table:
            with self.subTest(model=name, layer=layer):
                for expert, count in enumerate(golden[int(layer)]):
                    given = experts.get("moe_expert_layer_tokens_total", layer=layer, expert=str(expert))
                    # Two scores that are equal but for rounding may swap: a handful of 65,536 tokens.
                    self.assertAlmostEqual(given, count, delta=8)
                gauge = {name: metrics.get(f"moe_layer_{name}", layer=layer)
                         for name in ("balancedness", "entropy", "dead_experts", "collapsed")}
                self.assertAlmostEqual(gauge["balancedness"], float(balancedness), delta=0.001)
                self.assertAlmostEqual(gauge["entropy"], float(entropy), delta=0.001)
                self.assertEqual((gauge["dead_experts"], gauge["collapsed"]), (int(dead), collapsed))
                load = cluster.layers[int(layer)]
                self.assertEqual((load.dead_experts, load.collapsed), (int(dead), bool(collapsed)))

    def test_healthy_model(self):
        self.check_model("eight-languages-moe", collapsed=0)

    def test_collapsed_model_is_noticed(self):
        self.check_model("eight-languages-collapsed", collapsed=1)


class DashboardTest(serving.ServingTest):

    def test_every_query_is_answered_by_a_cluster_under_load(self):
        with serving.running(serving.MOE, 3, "--expert-metrics") as server:
            stop = threading.Event()
            def load() -> None:
                while not stop.is_set():
                    server.generate([[1, 2, 3]] * 2, 40)
                    stop.wait(0.2)
            thread = threading.Thread(target=load)
            thread.start()
            try:
                program = serving.ROOT / "tests/metrics/dashboard_queries_test.py"
                asked = subprocess.run(
                    [sys.executable, "-B", str(program), "--ready-file", str(server.ready_path), "--expert-metrics"],
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            finally:
                stop.set()
                thread.join()
            self.assertEqual(asked.returncode, 0, asked.stdout)
            self.assertRegex(asked.stdout, r"[1-9]\d* queries answered")


if __name__ == "__main__":
    serving.main()
