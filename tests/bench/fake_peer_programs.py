"""Stands in for moe_bench and for a peer's programs, for compare_peers_test.py.
Usage: fake_peer_programs.py PROGRAM FAULT LOG ARGUMENTS: what PROGRAM would print for its ARGUMENTS, or what FAULT makes of
it. Each run leaves its command line in LOG. Figures are round: a ratio shows which two made it."""

import http.server
import json
import pathlib
import signal
import sys
import time

PROGRAM, FAULT, LOG = sys.argv[1:4]
ARGUMENTS = sys.argv[4:]
HELP = {
    "llama-bench": "  -fa, --flash-attn <0|1>\n  -rtr, --run-time-repack <0|1>\n  -fmoe, --fused-moe <0|1>\n",
    # -fmoe itself is gone here: only its opposite is left.
    "llama-server": "-fa, --flash-attn on|off\n-rtr, --run-time-repack\n-no-fmoe, --no-fused-moe\n-cram, --cache-ram N\n",
    "llama-batched-bench": "-fa, --flash-attn on|off\n-rtr, --run-time-repack\n",
}


def value(flag: str) -> str:
    return ARGUMENTS[ARGUMENTS.index(flag) + 1]


def runs_before() -> int:
    """Of this program, --help left out."""
    return sum(line.split()[0] == PROGRAM for line in pathlib.Path(LOG).read_text().splitlines()) - 1


def moe_bench() -> None:
    tests = [(f"pp{value('-p')}", 1, 400)] if value("-n") == "0" else [
        (f"tg{value('-n')}", batch, 100 * batch) for batch in map(int, value("-b").split(","))]
    # A third round that is slower by half: the median does not see it.
    factor = 0.5 if runs_before() // 2 == 2 else 1
    mfu = None if FAULT == "moe_bench-knows-no-peak-once" and runs_before() < 2 else 0.25 * factor
    print(json.dumps({
        "schema": 1, "kind": "engine", "when": "2024-01-01T00:00:00Z",
        "host": {"cpu": "Fake CPU", "cores": 2, "memory_bytes": 1, "isa": "avx2", "read_bandwidth_bytes_per_s": 20e9,
                 "peak_flops": 100e9},
        "build": {"version": "0", "commit": "0", "compiler": "none"}, "config": {},
        "results": [
            {"test": test, "batch": batch, "tokens_per_s": speed, "distinct_experts": 7.5, "s_mbu": 0.5 * factor,
             "s_mfu": mfu, "repetitions": [speed * factor] * int(value("-r"))} for test, batch, speed in tests
            if FAULT != "moe_bench-misses-a-batch" or batch == 1]}))


def llama_bench() -> None:
    entries = [{"n_prompt": prompt, "n_gen": generate, "avg_ts": speed, "samples_ts": [speed] * int(value("-r"))}
               for prompt, generate, speed in ((int(value("-p")), 0, 200), (0, int(value("-n")), 50)) if prompt + generate]
    if FAULT == "bench-misses-decode":
        entries = entries[:1]
    if FAULT == "bench-zero":
        entries[0]["samples_ts"] = [0.0]
    print("a line of a log: [1, 2]\n" + json.dumps(entries, indent=2))


def llama_batched_bench() -> None:
    print("main: n_kv_max = 640, n_batch = 2048\n\n|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s |"
          " S_TG t/s |      T s |    S t/s |\n|-------|--------|------|--------|----------|----------|----------|----------"
          "|----------|----------|")
    for batch in map(int, value("-npl").split(",")):
        if FAULT != "batched-misses-a-row" or batch == 1:
            print(f"|     1 | {value('-ntg'):>6} | {batch:>4} |     99 |    0.010 |   100.00 |    0.100 | {80 * batch:>8.2f} "
                  "|    0.110 |    90.00 |", file=sys.stderr)


class Server(http.server.BaseHTTPRequestHandler):
    healthy = False

    def log_message(self, *_):
        pass

    def answer(self, code: int, body: object) -> None:
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        self.answer(200 if Server.healthy else 503, {})
        Server.healthy = True  # loading at the first question

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompts = asked["prompt"] if isinstance(asked["prompt"][0], list) else [asked["prompt"]]
        if len({tuple(prompt) for prompt in prompts}) < len(prompts) or not asked["ignore_eos"] or asked["cache_prompt"]:
            self.answer(400, "a fair server wants sequences of their own")
        elif FAULT == "server-refuses":
            self.answer(500, {"error": "out of slots"})
        elif FAULT == "server-dies":
            signal.raise_signal(signal.SIGKILL)
        else:
            count = asked["n_predict"]
            # (count - 1) tokens at 20 a second.
            answers = [{"content": f" {prompt[0]}" + (
                    " 7 7 7 7 7 7 7 7" if FAULT == "server-same-text" else f" {prompt[0] + 1}" * (count - 1)), "timings": {
                "predicted_n": count - (FAULT == "server-stops-early"), "predicted_ms": (count - 1) * 50}}
                for prompt in prompts]
            if FAULT == "server-drops-one" and len(prompts) > 1:
                answers.pop()
            self.answer(200, answers if len(prompts) > 1 else answers[0])


def llama_server() -> None:
    if FAULT == "server-does-not-start":
        sys.exit("error: failed to load the model")
    http.server.ThreadingHTTPServer((value("--host"), int(value("--port"))), Server).serve_forever()


def main() -> None:
    if "--help" in ARGUMENTS:
        print(HELP[PROGRAM], file=sys.stderr if PROGRAM == "llama-bench" else sys.stdout)
        sys.exit(PROGRAM == "llama-bench")
    with open(LOG, "a") as log:
        print(PROGRAM, *ARGUMENTS, file=log)
    if PROGRAM != "moe_bench":
        pathlib.Path("left-behind.log").touch()
    elif not pathlib.Path(value("--model")).is_dir():
        sys.exit(f"no folder {value('--model')}")
    if "-m" in ARGUMENTS and not pathlib.Path(value("-m")).is_file():
        sys.exit(f"no file {value('-m')}")
    short = PROGRAM.removeprefix("llama-")
    if FAULT == f"{short}-fails":
        print("starting", file=sys.stderr)
        sys.exit(f"{PROGRAM}: no memory for the model")
    elif FAULT == f"{short}-babbles":
        print("<html>hello</html>")
    elif FAULT == f"{short}-hangs":
        time.sleep(600)
    else:
        {"moe_bench": moe_bench, "llama-bench": llama_bench, "llama-server": llama_server,
         "llama-batched-bench": llama_batched_bench}[PROGRAM]()


if __name__ == "__main__":
    main()
