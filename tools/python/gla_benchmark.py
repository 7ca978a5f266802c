"""Times gla_kernels.py on one GPU, beside fla's ops and PyTorch's softmax attention.

usage: python3 gla_benchmark.py [--shapes=SUBSTRING;...] [--fla=FOLDER] [--json=FILE] [--no-softmax]

A row per shape B,T,H,K,V and implementation, in microseconds: the forward pass and forward +
backward, called from Python one after the other, and inside a CUDA graph, where launching costs the
host nothing. Ratios are their time over ours. Softmax attention has heads of 128 and the same model
width H*V. bfloat16, random data, gates log_sigmoid(normal) / 16, no initial state; medians, a
second of rest before each timing.

  --fla   the folder that holds fla's package folder (default: the FLA variable). Its first calls
          compile and tune for minutes unless Triton's cache is warm.
"""
import argparse
import json
import os
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import gla_kernels

TRAINING = [  # B, T, H, K, V
    (8, 2048, 4, 256, 512),
    (32, 2048, 4, 128, 256),
    (8, 2048, 4, 128, 256),
    (1, 32768, 4, 256, 512),
    (1, 2048, 4, 256, 512),
    (8, 2048, 16, 128, 128),
    (8, 2048, 16, 64, 128),
]
DECODING = [(1, 1, 4, 256, 512), (64, 1, 4, 256, 512), (256, 1, 4, 256, 512)]
SOFTMAX_HEAD = 128
MODES = "fwd", "fwd_graph", "fwdbwd", "fwdbwd_graph"
MIN_SECONDS = 0.1
# Before each timing, so that it does not depend on how hot the one before left the GPU.
REST_SECONDS = 1
MIN_RUNS, MAX_RUNS = 10, 300
# Calls rotate among inputs of together so many bytes that the L2 cache does not help.
ROTATED_BYTES = 192 << 20
MAX_VARIANTS = 8


def seconds(queue):
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    queue()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def median_seconds(queue, calls=1):
    """Of one of the `calls` calls that `queue` makes."""
    torch.cuda.synchronize()
    time.sleep(REST_SECONDS)
    for _ in range(2):
        queue()
    once = max(seconds(queue), 1e-7)
    runs = min(max(int(MIN_SECONDS / once), MIN_RUNS), MAX_RUNS)
    return statistics.median(seconds(queue) for _ in range(runs)) / calls


def call_all(variants):
    for variant in variants:
        variant()


def eager_seconds(variants):
    return median_seconds(lambda: call_all(variants), len(variants))


def graph_seconds(variants):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call_all(variants)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call_all(variants)
    return median_seconds(graph.replay, len(variants))


def normal(*shape):
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def gla_inputs(B, T, H, K, V):
    g = (F.logsigmoid(torch.randn(B, T, H, K, device="cuda")) / 16).bfloat16()
    return normal(B, T, H, K), normal(B, T, H, K), normal(B, T, H, V), g


def softmax_inputs(B, T, H, K, V):
    heads = H * V // SOFTMAX_HEAD
    return tuple(normal(B, heads, T, SOFTMAX_HEAD) for _ in range(3))


def input_sets(make, shape):
    first = make(*shape)
    size = sum(x.numel() * x.element_size() for x in first)
    count = min(max(ROTATED_BYTES // size + 1, 2), MAX_VARIANTS)
    return [first] + [make(*shape) for _ in range(count - 1)]


def time_training(forward, make, shape):
    """Seconds by mode, or what went wrong."""
    torch.manual_seed(0)
    sets = input_sets(make, shape)
    with_grad = [tuple(x.detach().requires_grad_() for x in inputs) for inputs in sets]
    d_o = torch.randn_like(forward(*sets[0]))
    fwd = [lambda inputs=inputs: forward(*inputs) for inputs in sets]
    fwdbwd = [lambda inputs=inputs: torch.autograd.grad(forward(*inputs), inputs, d_o)
              for inputs in with_grad]
    timers = {"fwd": (eager_seconds, fwd), "fwd_graph": (graph_seconds, fwd),
              "fwdbwd": (eager_seconds, fwdbwd), "fwdbwd_graph": (graph_seconds, fwdbwd)}
    return measure(timers)


def time_decoding(op, shape):
    torch.manual_seed(0)
    B, _, H, K, V = shape
    q, k, v, g = gla_inputs(*shape)
    count = min(max(ROTATED_BYTES // (4 * B * H * K * V) + 1, 2), 64)
    states = [torch.randn(B, H, K, V, device="cuda") for _ in range(count)]
    step = [lambda state=state: op(q, k, v, g, initial_state=state, output_final_state=True)
            for state in states]
    return measure({"fwd": (eager_seconds, step), "fwd_graph": (graph_seconds, step)})


def measure(timers):
    times = {}
    for mode, (timer, variants) in timers.items():
        try:
            times[mode] = timer(variants)
        except Exception as error:  # A peer may not take a shape, or not be captured.
            print(f"  {mode}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
            torch.cuda.synchronize()
    return times


def sdpa(backend):
    def forward(q, k, v):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return forward


def training_implementations(options):
    """(name, forward, inputs), ours first."""
    yield "gla_kernels", lambda *x: gla_kernels.chunk_gla(*x)[0], gla_inputs
    if options.fla:
        from fla.ops.gla import chunk_gla
        yield "fla", lambda *x: chunk_gla(*x)[0], gla_inputs
    if options.softmax:
        yield "softmax flash", sdpa(SDPBackend.FLASH_ATTENTION), softmax_inputs
        yield "softmax cudnn", sdpa(SDPBackend.CUDNN_ATTENTION), softmax_inputs


def decoding_implementations(options):
    yield "gla_kernels", gla_kernels.fused_recurrent_gla
    if options.fla:
        from fla.ops.gla import fused_recurrent_gla
        yield "fla", fused_recurrent_gla


def print_row(row, ours):
    cells = []
    for mode in MODES:
        us = row["us"].get(mode)
        ratio = f"{us / ours[mode]:.2f}x" if us and mode in ours else ""
        cells.append(f"{us:10.1f} {ratio:>7}" if us else f"{'-':>10} {'':7}")
    print(f"{row['shape']:20} {row['name']:14} {' '.join(cells)}", flush=True)


def benchmark(shapes, implementations, timer, rows):
    for shape in shapes:
        ours = {}
        for name, *implementation in implementations:
            times = timer(*implementation, shape)
            row = {"shape": ",".join(map(str, shape)), "name": name,
                   "us": {mode: 1e6 * time for mode, time in times.items()}}
            ours = ours or row["us"]
            print_row(row, ours)
            rows.append(row)
            torch.cuda.empty_cache()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", default="")
    parser.add_argument("--fla", default=os.environ.get("FLA"))
    parser.add_argument("--json")
    parser.add_argument("--no-softmax", dest="softmax", action="store_false")
    options = parser.parse_args()
    if options.fla:
        sys.path.insert(0, options.fla)
    wanted = lambda shape: any(part in ",".join(map(str, shape))
                               for part in options.shapes.split(";"))
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    titles = "fwd", "fwd graph", "fwd+bwd", "f+b graph"
    print(f"{'B,T,H,K,V':20} {'':14} " + " ".join(f"{t:>10} {'ratio':>7}" for t in titles))
    rows = []
    for shapes, implementations, timer in (
            (TRAINING, training_implementations, time_training),
            (DECODING, decoding_implementations, time_decoding)):
        benchmark(filter(wanted, shapes), list(implementations(options)), timer, rows)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
