"""The clients of examples/ as a user runs them: text in, text out, and a sentence when something is wrong."""

import json
import subprocess
import sys

import serving

CLIENTS = {"python": [sys.executable, "-B", str(serving.ROOT / "examples/python_client.py")],
           "cpp": [str(serving.BIN_DIR / "cpp_client")]}


class ClientTest(serving.ServingTest):

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(serving.running(serving.MOE, 3))

    def ask(self, client: str, *arguments, address: str | None = None) -> subprocess.CompletedProcess:
        return subprocess.run([*CLIENTS[client], "--server", address or self.server.address, *map(str, arguments)],
                              capture_output=True, text=True, timeout=serving.CALL_SECONDS)

    def for_each_client(self):
        for client in CLIENTS:
            with self.subTest(client=client):
                yield client

    def tasks(self) -> list[dict]:
        """The first of each language, as one line of input gives one line of output."""
        by_language = {}
        for line in (serving.MODELS / "tasks.jsonl").read_text().splitlines():
            task = json.loads(line)
            by_language.setdefault(task["language"], task)
        return list(by_language.values())

    def test_one_text_is_answered_right(self):
        task = self.tasks()[1]
        for client in self.for_each_client():
            run = self.ask(client, "--stop-at-newline", task["prompt"])
            self.assertEqual((run.returncode, run.stdout, run.stderr), (0, task["answer"], ""))

    def test_a_batch_is_answered_in_its_order(self):
        tasks = self.tasks()
        for client in self.for_each_client():
            run = self.ask(client, "--stop-at-newline", "--usage", "--max-new-tokens", 72,
                           *[task["prompt"] for task in tasks])
            self.assertEqual((run.returncode, run.stdout), (0, "".join(task["answer"] for task in tasks)))
            self.assertEqual(run.stderr.count("prompt tokens"), len(tasks))
            for task in tasks:
                self.assertIn(f'{len(task["prompt"])} prompt tokens, {len(task["answer"])} generated', run.stderr)

    def test_token_ids(self):
        (expected,) = self.server.generate([[50, 53, 32]], 10, ignore_eos=False)
        for client in self.for_each_client():
            run = self.ask(client, "--ids", "--max-new-tokens", 10, "50 53 32")
            self.assertEqual((run.returncode, run.stdout), (0, " ".join(map(str, expected.token_ids)) + "\n"))

    def test_sampling_with_a_seed(self):
        (expected,) = self.server.generate([[50, 53, 32]], 10, ignore_eos=False, sampling=dict(temperature=1.5, seed=3))
        for client in self.for_each_client():
            run = self.ask(client, "--ids", "--max-new-tokens", 10, "--temperature", 1.5, "--seed", 3, "50 53 32")
            self.assertEqual((run.returncode, run.stdout), (0, " ".join(map(str, expected.token_ids)) + "\n"))

    def test_what_the_server_refuses(self):
        for client in self.for_each_client():
            run = self.ask(client, "--ids", "300")
            self.assertEqual((run.returncode, run.stdout), (1, ""))
            self.assertEqual(run.stderr.count("\n"), 1)
            self.assertIn("token_ids", run.stderr)
            self.assertIn("300", run.stderr)

    def test_no_server(self):
        for client in self.for_each_client():
            run = self.ask(client, "text", address="127.0.0.1:1")
            self.assertEqual((run.returncode, run.stdout, run.stderr.count("\n")), (1, "", 1))

    def test_bad_usage(self):
        for client in self.for_each_client():
            for arguments in (["--frobnicate", "text"], [], ["--ids", "12 x"], ["--max-new-tokens", "0", "text"]):
                run = self.ask(client, *arguments)
                self.assertEqual((run.returncode, run.stdout), (2, ""))
                self.assertNotEqual(run.stderr, "")


if __name__ == "__main__":
    serving.main()
