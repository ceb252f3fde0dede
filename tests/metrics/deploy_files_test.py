#!/usr/bin/python3
"""Prometheus configuration, rules, dashboard and docs/metrics.md agree with each other and with metric_table.py.
Needs promtool, of Debian's package prometheus."""

import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import unittest

import dashboard
import fake_exporter
from metric_table import METRICS

HERE = pathlib.Path(__file__).resolve().parent
PROMETHEUS = dashboard.ROOT / "deploy" / "prometheus"
# The tables of docs/metrics.md: name, type, labels.
_DOCUMENTED = re.compile(r"^\| `(\w+)` \| (counter|gauge|histogram) \| ([^|]*)\|", re.MULTILINE)
_METRIC_NAME = re.compile(r"\b(?:moe|process)_[a-z0-9_]+")


def run(*command: object, stdin: str = "") -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in command], input=stdin, capture_output=True, text=True)


def generate(*arguments: object) -> subprocess.CompletedProcess:
    return run(sys.executable, "-B", PROMETHEUS / "generate.py", *arguments)


def base_name(series: str) -> str:
    """The metric that a series belongs to: a histogram's are three."""
    histograms = {metric.name for metric in METRICS if metric.kind == "histogram"}
    stem = re.sub(r"_(bucket|sum|count)$", "", series)
    return stem if stem in histograms else series


class GenerateTest(unittest.TestCase):
    def setUp(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = pathlib.Path(self._folder.name)
        self.addCleanup(self._folder.cleanup)

    def ready_file(self, content: object) -> pathlib.Path:
        path = self.folder / "ready.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def test_every_source_gives_a_configuration_that_promtool_accepts(self) -> None:
        ready = self.ready_file({"metrics": ["127.0.0.1:41001", "127.0.0.1:41002"]})
        for source in (["--ready-file", ready], ["--base-port", 9500, "--ranks", 3], ["--targets", "a:1,b:2"]):
            output = self.folder / "prometheus.yml"
            result = generate(*source, "--expert-metrics", "--output", output)
            self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "", ""))
            checked = run("promtool", "check", "config", output)
            self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)
            self.assertIn("1 rule files found", checked.stdout + checked.stderr)

    def test_ranks_are_labelled_in_the_order_of_the_ready_file(self) -> None:
        ready = self.ready_file({"metrics": ["127.0.0.1:41007", "127.0.0.1:41002"]})
        text = generate("--ready-file", ready).stdout
        self.assertRegex(text, r'\["127.0.0.1:41007"\]\s+labels: \{rank: "0"\}')
        self.assertRegex(text, r'\["127.0.0.1:41002"\]\s+labels: \{rank: "1"\}')
        self.assertIn("honor_labels: true", text)

    def test_rank_r_is_on_the_base_port_plus_r(self) -> None:
        text = generate("--host", "node7", "--base-port", 9400, "--ranks", 3).stdout
        self.assertEqual(re.findall(r'targets: \["([^"]+)"\]', text), ["node7:9400", "node7:9401", "node7:9402"])

    def test_expert_metrics_are_a_job_of_their_own_on_rank_0(self) -> None:
        without = generate("--ranks", 2).stdout
        text = generate("--ranks", 2, "--expert-metrics").stdout
        self.assertNotIn("/metrics/experts", without)
        self.assertTrue(text.startswith(without))
        self.assertEqual(re.findall(r'targets: \["([^"]+)"\]', text[len(without):]), ["127.0.0.1:9400"])

    def test_a_wildcard_is_scraped_on_the_loopback(self) -> None:
        text = generate("--ready-file", self.ready_file({"metrics": ["0.0.0.0:9400", "[::]:9401"]})).stdout
        self.assertEqual(re.findall(r'targets: \["([^"]+)"\]', text), ["127.0.0.1:9400", "[::1]:9401"])

    def test_bad_input_is_refused_in_one_line_that_names_it(self) -> None:
        cases = (
            (["--ready-file", self.folder / "none.json"], "none.json"),
            (["--ready-file", self.ready_file("{")], "ready.json"),
            (["--targets", "node7"], '"node7"'),
            (["--targets", "a:1,b:70000"], '"b:70000"'),
            (["--ranks", 0], "--ranks 0"),
            (["--scrape-interval", "5 parsecs"], '"5 parsecs"'),
        )
        for arguments, named in cases:
            result = generate(*arguments)
            self.assertEqual((result.returncode, result.stdout), (2, ""), arguments)
            self.assertIn(named, result.stderr)
            self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        for content in ({}, [], {"metrics": None}, {"metrics": []}, {"metrics": [9400]}):
            result = generate("--ready-file", self.ready_file(content))
            self.assertEqual(result.returncode, 2, content)
            self.assertIn('"metrics"', result.stderr)


class RulesTest(unittest.TestCase):
    def test_rules_compute_what_they_say(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(PROMETHEUS / "rules.yml", folder)
            shutil.copy(HERE / "rules_test.yml", folder)
            result = run("promtool", "test", "rules", pathlib.Path(folder) / "rules_test.yml")
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_rules_are_over_metrics_that_exist(self) -> None:
        text = re.sub(r"#.*", "", (PROMETHEUS / "rules.yml").read_text())
        text = re.sub(r"record: .*|moe:\S+|- name: .*", "", text)
        used = {base_name(name) for name in _METRIC_NAME.findall(text)}
        self.assertTrue(used)
        self.assertLessEqual(used, {metric.name for metric in METRICS})


class DashboardTest(unittest.TestCase):
    def setUp(self) -> None:
        self.dashboard = dashboard.load()
        self.panels = dashboard.panels(self.dashboard)

    def test_shows_every_metric_of_ours_and_no_other(self) -> None:
        shown = {base_name(name) for query in dashboard.queries(self.dashboard)
                 for name in _METRIC_NAME.findall(query.expression)}
        names = {metric.name for metric in METRICS}
        self.assertEqual(shown - names, set())
        self.assertEqual({name for name in names - shown if name.startswith("moe_")}, set())

    def test_asks_the_chosen_datasource_through_variables_that_exist(self) -> None:
        declared = {variable["name"] for variable in self.dashboard["templating"]["list"]}
        for panel in self.panels:
            for target in [panel] + panel["targets"]:
                self.assertEqual(target["datasource"], {"type": "prometheus", "uid": "${datasource}"}, panel["title"])
            used = set(re.findall(r"\$(\w+)", json.dumps(panel["targets"])))
            self.assertLessEqual({name for name in used if not name.startswith("__")}, declared, panel["title"])

    def test_panels_have_titles_descriptions_and_ids_of_their_own(self) -> None:
        for key in ("id", "title"):
            values = [panel[key] for panel in self.dashboard["panels"]]
            self.assertEqual(len(values), len(set(values)), key)
        for panel in self.panels:
            self.assertTrue(panel["description"].endswith("."), panel["title"])

    def test_panels_do_not_overlap(self) -> None:
        taken: dict[tuple[int, int], str] = {}
        for panel in self.dashboard["panels"]:
            place = panel["gridPos"]
            self.assertLessEqual(place["x"] + place["w"], 24)
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    self.assertNotIn((x, y), taken, f'{panel["title"]} lies on {taken.get((x, y))}')
                    taken[x, y] = panel["title"]


class DocumentationTest(unittest.TestCase):
    def test_documents_every_metric_with_its_type_and_labels(self) -> None:
        text = (dashboard.ROOT / "docs" / "metrics.md").read_text()
        documented = {(name, kind, tuple(re.findall(r"`(\w+)`", labels)))
                      for name, kind, labels in _DOCUMENTED.findall(text)}
        self.assertEqual(documented, {(metric.name, metric.kind, metric.labels) for metric in METRICS})


class DockerTest(unittest.TestCase):
    DOCKER = dashboard.ROOT / "deploy" / "docker"

    def test_health_is_every_rank_answering(self) -> None:
        start = time.time()
        addresses = [fake_exporter.serve_rank(3, rank, start) for rank in range(3)]
        with tempfile.TemporaryDirectory() as folder:
            ready = pathlib.Path(folder) / "ready.json"
            health = lambda: run(self.DOCKER / "healthcheck.sh", ready)
            self.assertIn("is not there", health().stderr)
            ready.write_text(json.dumps({"metrics": addresses, "ranks": 3}))
            self.assertEqual((health().returncode, health().stderr), (0, ""))
            # Bound and closed again, so that nobody listens there.
            with socket.create_server(("127.0.0.1", 0)) as unused:
                addresses[2] = f"127.0.0.1:{unused.getsockname()[1]}"
            ready.write_text(json.dumps({"metrics": addresses, "ranks": 3}, indent=2))
            self.assertEqual((health().returncode, "rank 2" in health().stderr), (1, True))
            ready.write_text(json.dumps({"metrics": [], "ranks": 3}))
            self.assertEqual((health().returncode, "metrics are off" in health().stderr), (1, True))

    def test_the_image_has_the_libraries_that_the_build_links(self) -> None:
        text = (self.DOCKER / "Dockerfile").read_text()
        packages = re.search(r"no-install-recommends ([^&]+)&&", text)[1].replace("\\", "").split()
        for package in packages:
            # They come with the development packages that scripts/setup.sh installs.
            self.assertEqual(run("dpkg-query", "-W", "-f", "${db:Status-Status}", package).stdout, "installed", package)
        for copied in re.findall(r"^COPY --from=build /src/(deploy/\S+|models/)", text, re.MULTILINE):
            self.assertTrue((dashboard.ROOT / copied).exists(), copied)


class FakeExporterTest(unittest.TestCase):
    def test_what_it_serves_is_clean_under_promtool(self) -> None:
        cases = ((1, 0, "/metrics"), (3, 0, "/metrics"), (3, 2, "/metrics"), (3, 0, "/metrics/experts"))
        for ranks, rank, path in cases:
            text = fake_exporter.exposition(ranks, rank, path, 100.5)
            result = run("promtool", "check", "metrics", stdin=text)
            self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "", ""), (ranks, rank, path))

    def test_workers_do_not_serve_the_expert_path(self) -> None:
        self.assertIsNone(fake_exporter.exposition(3, 1, "/metrics/experts", 1))


if __name__ == "__main__":
    unittest.main()
