"""The metrics that moe_serve promises (docs/metrics.md), as data: the fake exporter serves them, and the tests compare
documentation, dashboard and rules with them."""

import typing

PHASES = ("attention", "gate", "dispatch", "experts", "wait", "combine", "head", "sample")
SECONDS = tuple(1e-4 * 2**i for i in range(16))
LAYERS = 4
EXPERTS = 8

ROUTER, WORKER, EVERY, EXPERT_PATH = "router", "worker", "every", "expert path"


class Metric(typing.NamedTuple):
    name: str
    kind: str   # counter, gauge or histogram
    labels: tuple[str, ...]
    where: str  # ROUTER, WORKER, EVERY rank, or the router's EXPERT_PATH


METRICS = (
    Metric("moe_model_parameters", "gauge", ("scope",), ROUTER),
    Metric("moe_rank_parameters", "gauge", ("part",), EVERY),
    Metric("moe_rank_weight_bytes", "gauge", ("part",), EVERY),
    Metric("moe_steps_total", "counter", (), ROUTER),
    Metric("moe_step_touched_parameters_total", "counter", (), ROUTER),
    Metric("moe_step_micro_batches_total", "counter", (), ROUTER),
    Metric("moe_expert_tokens_total", "counter", ("expert",), ROUTER),
    Metric("moe_layer_balancedness", "gauge", ("layer",), ROUTER),
    Metric("moe_layer_imbalance", "gauge", ("layer",), ROUTER),
    Metric("moe_layer_cv", "gauge", ("layer",), ROUTER),
    Metric("moe_layer_jain", "gauge", ("layer",), ROUTER),
    Metric("moe_layer_entropy", "gauge", ("layer",), ROUTER),
    Metric("moe_layer_gini", "gauge", ("layer",), ROUTER),
    Metric("moe_layer_dead_experts", "gauge", ("layer",), ROUTER),
    Metric("moe_layer_collapsed", "gauge", ("layer",), ROUTER),
    Metric("moe_layer_dead_experts_alarm", "gauge", ("layer",), ROUTER),
    Metric("moe_layer_collapsed_alarm", "gauge", ("layer",), ROUTER),
    Metric("moe_load_window_steps", "gauge", (), ROUTER),
    Metric("moe_load_window_seconds", "gauge", (), ROUTER),
    Metric("moe_routing_info", "gauge", ("routing",), ROUTER),
    Metric("moe_trace_recording", "gauge", (), ROUTER),
    Metric("moe_trace_steps_total", "counter", (), ROUTER),
    Metric("moe_trace_dropped_steps_total", "counter", (), ROUTER),
    Metric("moe_trace_bytes_total", "counter", (), ROUTER),
    Metric("moe_expert_layer_tokens_total", "counter", ("layer", "expert"), EXPERT_PATH),
    Metric("moe_rank_rows_total", "counter", ("rank",), ROUTER),
    Metric("moe_rank_busy_seconds_total", "counter", ("rank",), ROUTER),
    Metric("moe_worker_rows_total", "counter", (), WORKER),
    Metric("moe_worker_busy_seconds_total", "counter", (), WORKER),
    Metric("moe_exchange_seconds", "histogram", ("rank", "transport"), ROUTER),
    Metric("moe_step_seconds", "histogram", (), ROUTER),
    Metric("moe_step_phase_seconds_total", "counter", ("phase",), ROUTER),
    Metric("moe_expert_ffn_seconds", "histogram", (), WORKER),
    Metric("moe_request_queue_seconds", "histogram", (), ROUTER),
    Metric("moe_request_time_to_first_token_seconds", "histogram", (), ROUTER),
    Metric("moe_request_inter_token_seconds", "histogram", (), ROUTER),
    Metric("moe_request_time_per_output_token_seconds", "histogram", (), ROUTER),
    Metric("moe_request_e2e_seconds", "histogram", (), ROUTER),
    Metric("moe_requests_total", "counter", ("outcome",), ROUTER),
    Metric("moe_requests_running", "gauge", (), ROUTER),
    Metric("moe_requests_waiting", "gauge", (), ROUTER),
    Metric("moe_kv_tokens_used", "gauge", (), ROUTER),
    Metric("moe_kv_tokens_capacity", "gauge", (), ROUTER),
    Metric("moe_prompt_tokens_total", "counter", (), ROUTER),
    Metric("moe_generated_tokens_total", "counter", (), ROUTER),
    Metric("moe_batch_tokens", "histogram", (), ROUTER),
    Metric("moe_worker_up", "gauge", ("rank",), ROUTER),
    Metric("moe_worker_returns_total", "counter", ("rank",), ROUTER),
    Metric("moe_step_retries_total", "counter", (), ROUTER),
    Metric("moe_migrations_total", "counter", ("outcome",), ROUTER),
    Metric("moe_migration_bytes_total", "counter", (), ROUTER),
    Metric("moe_placement_generation", "gauge", (), ROUTER),
    Metric("moe_placement_balancedness", "gauge", (), ROUTER),
    Metric("moe_rebalance_advised", "gauge", (), ROUTER),
    Metric("moe_rebalance_gain_ratio", "gauge", (), ROUTER),
    Metric("moe_moved_step_seconds", "gauge", (), ROUTER),
    Metric("moe_moved_step_before_seconds", "gauge", (), ROUTER),
    Metric("moe_moved_step_expected_seconds", "gauge", (), ROUTER),
    Metric("moe_migration_slowdown_ratio", "gauge", (), ROUTER),
    Metric("moe_build_info", "gauge", ("version", "commit", "role", "transport", "backend", "weight_type"), EVERY),
    Metric("process_resident_memory_bytes", "gauge", (), EVERY),
    Metric("process_virtual_memory_bytes", "gauge", (), EVERY),
    Metric("process_cpu_seconds_total", "counter", (), EVERY),
    Metric("process_open_fds", "gauge", (), EVERY),
    Metric("process_max_fds", "gauge", (), EVERY),
    Metric("process_start_time_seconds", "gauge", (), EVERY),
    Metric("process_threads", "gauge", (), EVERY),
)


def label_values(label: str, ranks: int) -> list[str]:
    """What a label may be on a cluster of so many ranks."""
    workers = [str(rank) for rank in range(1, ranks)] or ["0"]
    return {
        "scope": ["total", "active", "active_without_embedding"],
        "part": ["experts", "dense"],
        "expert": [str(expert) for expert in range(EXPERTS)],
        "layer": [str(layer) for layer in range(LAYERS)],
        "rank": workers,
        "transport": ["mpi" if ranks > 1 else "inprocess"],
        "phase": list(PHASES),
        "outcome": ["finished", "cancelled", "rejected", "failed"],
        "version": ["0.1.0"],
        "commit": ["0123456789ab"],
        "role": ["router"],
        "routing": ["gate"],
        "backend": ["cpu"],
        "weight_type": ["bf16"],
    }[label]
