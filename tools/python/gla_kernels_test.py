"""Tests gla_kernels.py on a Hopper GPU against float64. The last line is
`N passed, N failed, N skipped`. One file, because each group is a short list of cases
over the shared problem(), call() and check() and would be no clearer alone.

usage: python3 gla_kernels_test.py [--only=GROUP,...] [--quick] [--poison] [--fla=FOLDER]
                                   [--heads=KxV,...]

  --only   groups to run, of those that --list prints
  --quick  small shapes, few repeats, the reference on the CPU: for compute-sanitizer
  --poison what the wrapper allocates holds NaN before every call. For initcheck, which does not
           see what bulk copies write: what was not written shows as NaN instead
  --fla    the folder that holds fla's package folder (default: the FLA variable): adds the
           comparison of errors with fla's
  --heads  only cases of these head shapes; fla tunes for minutes per shape
"""
import argparse
import contextlib
import itertools
import math
import os
import sys
import threading
import traceback
import warnings

import torch
import torch.nn.functional as F

import gla_kernels
from gla_kernels import chunk_gla, fused_recurrent_gla
from gla_reference import recurrence, reference

DEVICE = "cuda"
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
GRADIENTS = "dq", "dk", "dv", "dg", "dh0"
OUTPUTS = ("o", "ht") + GRADIENTS

# Relative RMS. fla's own limits, of its tests of the two forms.
FLA_RECURRENT_LIMITS = dict.fromkeys(OUTPUTS, 0.005)
FLA_CHUNK_LIMITS = FLA_RECURRENT_LIMITS | {"o": 0.004}
# Ours, for inputs of mean zero in bfloat16.
CHUNK_LIMITS = dict.fromkeys(OUTPUTS, 0.004) | {"dg": 0.006}
# A strong decay makes dg small beside the products q dq and k dk that it is a difference of.
STRONG_DECAY_LIMITS = CHUNK_LIMITS | {"dg": 0.01}
RECURRENT_LIMITS = {
    FP32: dict.fromkeys(OUTPUTS, 1e-4),
    FP16: dict.fromkeys(OUTPUTS, 0.001),
    BF16: dict.fromkeys(OUTPUTS, 0.004),
}
FLA_ERROR_RATIO = 1.2

# K, V.
TUNED_HEADS = (256, 512), (128, 256), (128, 128), (64, 128)
OTHER_HEADS = ((1, 1), (3, 5), (16, 16), (60, 60), (64, 64), (65, 129), (100, 36), (128, 64),
               (256, 256), (320, 320), (512, 512), (512, 8), (8, 512))

options = argparse.Namespace()
GROUPS = {}


class Failure(Exception):
    pass


class Skip(Exception):
    pass


def group(function):
    """Registers a generator of (name, case); a case returns the text to print or raises."""
    GROUPS[function.__name__] = function
    return function


def require(condition, text):
    if not condition:
        raise Failure(text)


# ---- Inputs and calls ----------------------------------------------------------------------------


def dtype_name(dtype):
    return str(dtype).removeprefix("torch.")


def log_gates(shape, normalizer=16, dtype=FP32):
    return (F.logsigmoid(torch.randn(shape, device=DEVICE)) / normalizer).to(dtype)


def problem(B, T, H, K, V, dtype=BF16, gate_dtype=FP32, cu_seqlens=None, gates=None, seed=42):
    """Inputs of mean zero, an initial state, and gradients of both outputs."""
    torch.manual_seed(seed)
    N = B if cu_seqlens is None else len(cu_seqlens) - 1
    normal = lambda *shape, dtype=dtype: torch.randn(shape, device=DEVICE).to(dtype)
    p = dict(q=normal(B, T, H, K), k=normal(B, T, H, K), v=normal(B, T, H, V),
             g=log_gates((B, T, H, K)), initial_state=normal(N, H, K, V, dtype=FP32),
             do=normal(B, T, H, V), dht=normal(N, H, K, V, dtype=FP32), cu_seqlens=cu_seqlens)
    if gates is not None:
        p["g"] = gates(p["g"])
    p["g"] = p["g"].to(gate_dtype)
    return p


def fla_problem(B, T, H, D, normalizer, dtype, cu_seqlens=None, dht_dtype=FP32):
    """The inputs of fla's tests: uniform in [0, 1)."""
    torch.manual_seed(42)
    N = B if cu_seqlens is None else len(cu_seqlens) - 1
    uniform = lambda: torch.rand((B, T, H, D), dtype=dtype, device=DEVICE)
    q, k, v = uniform(), uniform(), uniform()
    g = F.logsigmoid(uniform()) / normalizer
    h0 = torch.rand((N, H, D, D), device=DEVICE)
    do = torch.randn_like(v)
    dht = torch.randn((N, H, D, D), dtype=dht_dtype, device=DEVICE)
    return dict(q=q, k=k, v=v, g=g, initial_state=h0, do=do, dht=dht.float(),
                cu_seqlens=cu_seqlens)


def indices(cu_seqlens, dtype=torch.int32):
    return None if cu_seqlens is None else torch.tensor(cu_seqlens, dtype=dtype, device=DEVICE)


def call(op, p, state_v_first=False, **kwargs):
    """Every output and gradient of an op, by name; states as [N, H, K, V]."""
    names = [name for name in ("q", "k", "v", "g", "initial_state") if p[name] is not None]
    x = {name: p[name].detach().clone() for name in names}
    if state_v_first and "initial_state" in x:
        x["initial_state"] = x["initial_state"].transpose(-1, -2).contiguous()
    for tensor in x.values():
        tensor.requires_grad_()
    o, ht = op(x["q"], x["k"], x["v"], x["g"], initial_state=x.get("initial_state"),
               output_final_state=p["dht"] is not None, state_v_first=state_v_first,
               cu_seqlens=indices(p["cu_seqlens"]), **kwargs)
    result, grad_outputs = {"o": o}, {"o": p["do"]}
    if ht is not None:
        result["ht"], grad_outputs["ht"] = ht, p["dht"]
        if state_v_first:
            grad_outputs["ht"] = p["dht"].transpose(-1, -2)
    gradients = torch.autograd.grad([result[name] for name in grad_outputs], list(x.values()),
                                    list(grad_outputs.values()))
    result |= dict(zip(GRADIENTS, gradients))
    if state_v_first:
        result = {name: y.transpose(-1, -2) if name in ("ht", "dh0") else y
                  for name, y in result.items()}
    return {name: y.detach() for name, y in result.items()}


def expected(p, **kwargs):
    device = "cpu" if options.quick else DEVICE
    p = {name: x.to(device) if torch.is_tensor(x) else x for name, x in p.items()}
    return {name: x.to(DEVICE) for name, x in reference(**p, **kwargs).items()}


# ---- Comparisons ---------------------------------------------------------------------------------


def relative_rms(want, got):
    error = (want - got.double()).square().mean().sqrt()
    return (error / (want.square().mean().sqrt() + 1e-8)).item()


def compare(want, got, limits):
    """Errors as text; fails where one is over its limit, as fla's assert_close does."""
    errors, bad = [], []
    for name in got:
        error = relative_rms(want[name], got[name])
        errors.append(f"{name} {error:.1e}")
        close = (want[name] - got[name].double()).abs().max().item() <= 1e-6
        if not close and not error < limits[name]:  # NaN is not.
            bad.append(f"{name} {error:.3e} (limit {limits[name]})")
    require(not bad, ", ".join(bad))
    return " ".join(errors)


def check(op, p, limits, **kwargs):
    return compare(expected(p), call(op, p, **kwargs), limits)


def same_bits(a, b):
    integer = {2: torch.int16, 4: torch.int32}[a.element_size()]
    return torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))


def require_same_bits(want, got, what):
    different = [name for name in want if not same_bits(want[name], got[name])]
    require(not different, f"{what}: {', '.join(different)} differ")


# ---- The reference -------------------------------------------------------------------------------


@group
def reference_itself():
    """The reference's gradients are autograd's of the recurrence."""

    def case():
        p = problem(2, 21, 2, 5, 7, dtype=FP32)
        p["g"][:, 9, :, 2] = -30
        names = "q", "k", "v", "g", "initial_state"
        x = {name: p[name].double().requires_grad_() for name in names}
        o, ht = recurrence(*x.values(), 0.3)
        gradients = torch.autograd.grad([o, ht], list(x.values()),
                                        [p["do"].double(), p["dht"].double()])
        want = {"o": o, "ht": ht} | dict(zip(GRADIENTS, gradients))
        return compare(want, reference(**p, scale=0.3), dict.fromkeys(OUTPUTS, 1e-12))

    def packed():
        cu_seqlens = [0, 0, 5, 21, 21]
        p = problem(1, 21, 2, 5, 7, dtype=FP32, cu_seqlens=cu_seqlens)
        whole = reference(**p)
        for n, (begin, end) in enumerate(itertools.pairwise(cu_seqlens)):
            rows = {name: p[name][:, begin:end] for name in ("q", "k", "v", "g", "do")}
            one = reference(**rows, initial_state=p["initial_state"][n:n + 1],
                            dht=p["dht"][n:n + 1])
            for name, x in one.items():
                part = whole[name][n:n + 1] if name in ("ht", "dh0") else whole[name][:, begin:end]
                require(torch.allclose(part, x, rtol=1e-12, atol=1e-12), f"{name} of {n}")
        return ""

    yield "autograd", case
    yield "packed", packed


# ---- fla's own cases -----------------------------------------------------------------------------


def fla_case(op, limits, *problem_args, **problem_kwargs):
    return lambda: check(op, fla_problem(*problem_args, **problem_kwargs), limits)


def fla_name(B, T, H, D, normalizer, dtype):
    return f"B{B} T{T} H{H} D{D} normalizer {normalizer} {dtype_name(dtype)}"


@group
def fla_recurrent():
    for args in [(1, 63, 1, 64, 1, FP32), (2, 1024, 4, 60, 1, FP32), (2, 1024, 8, 128, 0.1, FP32),
                 (2, 1024, 8, 128, 1, FP32), (2, 1024, 8, 128, 10, FP32), (4, 2048, 8, 64, 1, FP32),
                 (2, 1024, 8, 128, 0.1, FP16), (2, 1024, 8, 128, 10, FP16)]:
        yield fla_name(*args), fla_case(fused_recurrent_gla, FLA_RECURRENT_LIMITS, *args,
                                        dht_dtype=args[-1])


@group
def fla_chunk():
    for args in [(1, 63, 1, 64, 1, FP16), (2, 1024, 4, 60, 1, FP16), (2, 1024, 8, 128, 0.1, FP16),
                 (2, 1024, 8, 128, 1, FP16), (2, 1024, 8, 128, 10, FP16), (4, 2048, 8, 64, 1, FP16),
                 (1, 128, 4, 256, 1, FP16), (1, 64, 2, 320, 1, FP16), (1, 128, 4, 512, 1, BF16)]:
        yield fla_name(*args), fla_case(chunk_gla, FLA_CHUNK_LIMITS, *args)


@group
def fla_state_v_first():

    def case(op, *args):
        p = fla_problem(*args)
        want = call(op, p)
        compare(expected(p), want, FLA_RECURRENT_LIMITS)
        return compare({name: x.double() for name, x in want.items()},
                       call(op, p, state_v_first=True), FLA_RECURRENT_LIMITS)

    def old_name():
        p = fla_problem(1, 4, 1, 64, 1, FP32)
        args = p["q"], p["k"], p["v"]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fused_recurrent_gla(*args, gk=p["g"], transpose_state_layout=True)
        require(any(w.category is DeprecationWarning for w in caught), "no DeprecationWarning")
        return raises(ValueError, "transpose_state_layout", fused_recurrent_gla, *args, gk=p["g"],
                      state_v_first=True, transpose_state_layout=True)

    for op in fused_recurrent_gla, chunk_gla:
        for args in (2, 256, 4, 64, 1, FP32), (2, 1024, 4, 128, 1, FP16):
            yield f"{op.__name__} {fla_name(*args)}", lambda op=op, args=args: case(op, *args)
    yield "transpose_state_layout", old_name


@group
def fla_varlen():
    for op, limits, cases in [
        (fused_recurrent_gla, FLA_RECURRENT_LIMITS, [
            (4, 64, [0, 15], FP32), (4, 64, [0, 256, 500, 1000], FP32),
            (4, 100, [0, 15, 100, 300, 1200, 2000], FP32),
            (4, 64, [0, 1, 100, 300, 1200, 2048], FP16),
            (4, 128, [0, 200, 512, 1200, 2048], FP16)]),
        (chunk_gla, FLA_CHUNK_LIMITS, [
            (4, 64, [0, 15], FP16), (4, 64, [0, 0, 16], FP16), (4, 64, [0, 256, 500, 1000], FP16),
            (4, 100, [0, 15, 100, 300, 1200, 2000], FP16)])]:
        for H, D, cu_seqlens, dtype in cases:
            yield (f"{op.__name__} H{H} D{D} {cu_seqlens} {dtype_name(dtype)}",
                   fla_case(op, limits, 1, cu_seqlens[-1], H, D, 1, dtype, cu_seqlens))


# ---- Errors --------------------------------------------------------------------------------------


def raises(kind, text, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except kind as error:
        require(text in str(error), f"{text!r} is not in {str(error)!r}")
        return str(error)
    raise Failure(f"no {kind.__name__}")


@group
def errors():
    p = problem(2, 5, 2, 64, 128)
    good = {name: p[name] for name in ("q", "k", "v", "g", "initial_state")}

    def bad(text, kind=ValueError, op=chunk_gla, **changes):
        args = good | changes
        if op is fused_recurrent_gla:
            args["gk"] = args.pop("g")
        return lambda: raises(kind, text, op, **args)

    misaligned = torch.empty(p["k"].numel() + 1, dtype=BF16, device=DEVICE)[1:].view_as(p["k"])
    yield "q rank", bad("q must have 4 dimensions", q=p["q"][0])
    yield "q type", bad("q must be a tensor", TypeError, q=None)
    yield "k type", bad("k must be a tensor", TypeError, k=[1.0])
    yield "q device", bad("q must be on a CUDA device, is on cpu", q=p["q"].cpu())
    yield "v device", bad("v must be on", v=p["v"].cpu())
    yield "k shape", bad("k must have shape [2, 5, 2, 64], has [2, 4, 2, 64]",
                         k=p["k"][:, :4].contiguous())
    yield "v shape", bad("v must have shape [2, 5, 2, 128], has [2, 5, 1, 128]",
                         v=p["v"][:, :, :1].contiguous())
    yield "g shape", bad("g must have shape", g=p["g"][..., :32].contiguous())
    yield "gk shape", bad("gk must have shape", op=fused_recurrent_gla,
                          g=p["g"][..., :32].contiguous())
    yield "k dtype", bad("k must be torch.bfloat16, is torch.float32", k=p["k"].float())
    yield "q dtype", bad("q must be torch.float32 or", q=p["q"].double())
    yield "g dtype", bad("g must be", g=p["g"].double())
    yield "initial_state dtype", bad("initial_state must be torch.float32",
                                     initial_state=p["initial_state"].half())
    yield "initial_state shape", bad("initial_state must have shape [2, 2, 64, 128]",
                                     initial_state=p["initial_state"][:1])
    yield "v not contiguous", bad("v must be contiguous",
                                  v=p["v"].transpose(1, 2).contiguous().transpose(1, 2))
    yield "k misaligned", bad("gla_chunk_fwd: k is at address", k=misaligned)
    yield "cu_seqlens batch", bad("q must have batch size 1", cu_seqlens=indices([0, 5]))
    one = {name: x[:1].contiguous() for name, x in good.items()}
    yield "cu_seqlens dtype", bad("cu_seqlens must be torch.int32 or torch.int64", **one,
                                  cu_seqlens=torch.tensor([0.0, 5.0], device=DEVICE))
    yield "cu_seqlens device", bad("cu_seqlens must be on", **one, cu_seqlens=torch.tensor([0, 5]))
    yield "cu_seqlens type", bad("cu_seqlens must be a tensor", TypeError, **one,
                                 cu_seqlens=[0, 5])
    yield "cu_seqlens count", bad("initial_state must have shape [2, 2, 64, 128]", **one,
                                  cu_seqlens=indices([0, 2, 5]))
    wide = torch.zeros(1, 4, 1, 520, dtype=BF16, device=DEVICE)
    yield "K too large", bad("K is 520, must be at most 512", q=wide, k=wide, v=wide, g=wide,
                             initial_state=None)
    empty = {name: x[:, :0] for name, x in good.items() if name != "initial_state"}
    yield "no tokens", bad("T is 0", **empty)
    yield "gv", bad("gv is not supported", NotImplementedError, fused_recurrent_gla, gv=p["v"])
    yield "reverse", bad("reverse is not supported", NotImplementedError, fused_recurrent_gla,
                         reverse=True)


# ---- Gates ---------------------------------------------------------------------------------------


def one_channel(value):
    def gates(g):
        g[..., g.shape[-1] // 2] = value
        return g
    return gates


def resets(g):
    """A twentieth of the gates forget: single channels, and all channels of some tokens."""
    g[torch.rand_like(g) < 0.05] = -torch.inf
    g[:, torch.rand(g.shape[1], device=g.device) < 0.05] = -torch.inf
    return g


GATE_FAMILIES = {
    "normalizer 16": (lambda g: g, CHUNK_LIMITS),
    "normalizer 1": (lambda g: g * 16, CHUNK_LIMITS),
    "normalizer 0.1": (lambda g: g * 160, STRONG_DECAY_LIMITS),
    "zero": (torch.zeros_like, CHUNK_LIMITS),
    "one channel -30": (one_channel(-30), CHUNK_LIMITS),
    "one channel -inf": (one_channel(-torch.inf), CHUNK_LIMITS),
    "-7 everywhere": (lambda g: torch.full_like(g, -7), STRONG_DECAY_LIMITS),
    "-100 everywhere": (lambda g: torch.full_like(g, -100), STRONG_DECAY_LIMITS),
    "-inf everywhere": (lambda g: torch.full_like(g, -torch.inf), STRONG_DECAY_LIMITS),
    "resets": (resets, CHUNK_LIMITS),
}


@group
def gate_families():
    B, T, H = (1, 70, 1) if options.quick else (2, 333, 2)
    heads = TUNED_HEADS + ((60, 60),)
    for (K, V), (name, (gates, limits)) in itertools.product(heads, GATE_FAMILIES.items()):
        for dtype, gate_dtype in (BF16, FP32), (BF16, BF16), (FP16, FP32):
            yield (f"{K}x{V} {name} {dtype_name(dtype)} gates {dtype_name(gate_dtype)}",
                   lambda K=K, V=V, gates=gates, limits=limits, dtype=dtype, gate_dtype=gate_dtype:
                   check(chunk_gla, problem(B, T, H, K, V, dtype, gate_dtype, gates=gates), limits))


@group
def short():
    """Few tokens, strong gates: dg is far below what a token's query and key add for each other.

    Gradients are large, for compare() forgives what is below 1e-6.
    """
    heads = TUNED_HEADS[-1:] if options.quick else TUNED_HEADS + ((60, 60),)
    for (K, V), (T, gate) in itertools.product(
            heads, ((3, -18), (4, -14), (6, -9.5), (8, -7), (16, -3.6))):
        def case(K=K, V=V, T=T, gate=gate):
            p = problem(2, T, 2, K, V, gates=lambda g: torch.full_like(g, gate))
            p |= {"do": p["do"] * 2**20, "initial_state": None, "dht": None}
            return check(chunk_gla, p, STRONG_DECAY_LIMITS)
        yield f"{K}x{V} T{T} gates {gate}", case


@group
def guard_boundary():
    """Sums of a chunk's gates around where it may change its path, in all channels or one."""
    for (K, V), total in itertools.product(TUNED_HEADS[-1:] if options.quick else TUNED_HEADS,
                                           (-13.8, -13.9, -20, -40, -59.9, -60, -60.1, -64, -77.5,
                                            -77.7, -80, -87, -89, -200)):
        def everywhere(g, total=total):
            return torch.full_like(g, total / 64)

        def one(g, total=total):
            g[..., 3] = total / 64
            return g

        for name, gates in ("all channels", everywhere), ("one channel", one):
            yield (f"{K}x{V} {total} {name}",
                   lambda K=K, V=V, gates=gates: check(
                       chunk_gla, problem(1, 200, 2, K, V, gates=gates), STRONG_DECAY_LIMITS))


def mixed_gates(g):
    """Makes a twentieth of the channels of half of the chunks steep."""
    B, T, H, K = g.shape
    chunks = -(-T // 64)
    steep = torch.rand((B, chunks, H, K), device=DEVICE) < 0.05
    steep &= torch.rand((B, chunks, H, 1), device=DEVICE) < 0.5
    g[steep.repeat_interleave(64, dim=1)[:, :T]] *= 40
    return g


@group
def guard_mixed():
    """Paths that change from chunk to chunk and channel to channel, where each block of the GPU
    has several segments to work on."""
    if options.quick:
        return
    for (K, V), gate_dtype, cu_seqlens in itertools.product(
            ((256, 512), (128, 256)), (FP32, BF16), (None, [0, 700, 700, 892, 3000, 4000])):
        args = 1, 4000, 2048 // K, K, V, BF16, gate_dtype, cu_seqlens
        yield f"{K}x{V} {cu_seqlens} gates {dtype_name(gate_dtype)}", lambda args=args: check(
            chunk_gla, problem(*args, gates=mixed_gates), STRONG_DECAY_LIMITS)


@group
def guard_rounding():
    """Sums of a chunk's gates so close to where it changes its path that the order of adding them
    decides: all passes must take the same."""

    def gates(g):
        for chunk in g.split(64, dim=1):
            chunk *= -86 * math.log(2) / chunk.double().sum(1, keepdim=True)
        return g

    for K, V in TUNED_HEADS[-1:] if options.quick else TUNED_HEADS:
        yield f"{K}x{V}", lambda K=K, V=V: check(
            chunk_gla, problem(1, 256, 4, K, V, gate_dtype=FP32, gates=gates), STRONG_DECAY_LIMITS)


# ---- Shapes --------------------------------------------------------------------------------------


@group
def lengths():
    tokens = (1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 191, 192, 193, 257, 320, 384, 385, 1025,
              2048)
    for (K, V), T in itertools.product(TUNED_HEADS + ((60, 60),), tokens):
        if not options.quick or T <= 129:
            yield f"{K}x{V} T{T}", lambda K=K, V=V, T=T: check(
                chunk_gla, problem(2, T, 2, K, V), CHUNK_LIMITS)


@group
def heads():
    for K, V in TUNED_HEADS + OTHER_HEADS:
        for dtype in BF16, FP16:
            yield f"{K}x{V} {dtype_name(dtype)}", lambda K=K, V=V, dtype=dtype: check(
                chunk_gla, problem(2, 70 if options.quick else 130, 3, K, V, dtype), CHUNK_LIMITS)


@group
def batches():
    """Few and many sequences and heads: how the work is split over the GPU depends on them."""
    shapes = [(1, 300, 1), (3, 100, 5), (1, 1000, 1), (33, 65, 1), (1, 65, 40), (16, 130, 16)]
    for (B, T, H), (K, V) in itertools.product(shapes[:2] if options.quick else shapes,
                                               TUNED_HEADS[-1:] if options.quick else TUNED_HEADS):
        yield f"B{B} T{T} H{H} {K}x{V}", lambda B=B, T=T, H=H, K=K, V=V: check(
            chunk_gla, problem(B, T, H, K, V), CHUNK_LIMITS)
    # The gradient kernel begins with a rehearsal, beside the reverse pass. Packed, the first items
    # that clusters have by their place are an empty sequence's.
    for (K, V), gate_dtype in itertools.product(TUNED_HEADS[:2], (FP32, BF16)):
        name = f"rehearsed {K}x{V} gates {dtype_name(gate_dtype)}"
        yield name, lambda K=K, V=V, g=gate_dtype: check(
            chunk_gla, problem(35, 5, 2, K, V, gate_dtype=g), CHUNK_LIMITS)
        yield f"packed, {name}", lambda K=K, V=V, g=gate_dtype: check(
            chunk_gla, problem(1, 175, 2, K, V, gate_dtype=g,
                               cu_seqlens=[0] + list(range(0, 176, 5))), CHUNK_LIMITS)
    # Blocks of 128 values for just over a third of the GPU: sequences are cut in two.
    for K, V in TUNED_HEADS[-1:] if options.quick else TUNED_HEADS:
        H = 16 * 128 // V
        yield f"B3 T500 H{H} {K}x{V}", lambda K=K, V=V, H=H: check(
            chunk_gla, problem(3, 500, H, K, V), CHUNK_LIMITS)
        yield f"[0, 0, 64, 90, 500] H{H} {K}x{V}", lambda K=K, V=V, H=H: check(
            chunk_gla, problem(1, 500, H, K, V, cu_seqlens=[0, 0, 64, 90, 500]), CHUNK_LIMITS)
    if not options.quick:
        for T in 256, 320:
            yield f"B4 T{T} H4 256x512", lambda T=T: check(
                chunk_gla, problem(4, T, 4, 256, 512), CHUNK_LIMITS)
        yield "B1 T32768 H4 256x512", lambda: check(
            chunk_gla, problem(1, 32768, 4, 256, 512), CHUNK_LIMITS)


@group
def pieces():
    """Few heads: six or eight pieces a sequence, of two chunks each, by kernels that start while
    the one before ends."""
    for (K, V), (B, T, H) in [((256, 512), (1, 1024, 2)), ((256, 512), (1, 700, 1)),
                              ((128, 256), (1, 1024, 2)), ((128, 128), (1, 1024, 2)),
                              ((64, 128), (1, 1024, 1))]:
        yield f"B{B} T{T} H{H} {K}x{V}", lambda B=B, T=T, H=H, K=K, V=V: check(
            chunk_gla, problem(B, T, H, K, V, gate_dtype=BF16), CHUNK_LIMITS)


@group
def forgotten():
    """Four pieces of 32 chunks, of which the first pass leaves out those that no channel
    remembers at the piece's end."""
    if options.quick:
        return
    length = 2048  # of a piece

    def where(first, last, g, channels=slice(None)):
        """Strong gates in some of each piece's tokens and some channels, none in others."""
        kept = torch.zeros_like(g).unflatten(1, (-1, length))
        kept[:, :, first:last, :, channels] = 4 * g.unflatten(1, (-1, length))[
            :, :, first:last, :, channels]
        return kept.flatten(1, 2)

    for name, gates in [("everywhere", lambda g: g), ("early", lambda g: where(0, 1024, g)),
                        ("late", lambda g: where(1024, length, g)),
                        ("but in one channel", lambda g: where(0, length, g, slice(0, 255)))]:
        yield f"256x512 {name}", lambda gates=gates: check(
            chunk_gla, problem(1, 4 * length, 8, 256, 512, gate_dtype=BF16, gates=gates),
            CHUNK_LIMITS)


@group
def packed():
    sequences = [[0, 1], [0, 64, 128], [0, 0, 16], [0, 1, 2, 3, 130, 130, 131], [0, 63, 128, 257],
                 [0, 0, 0, 65, 65], list(range(0, 101, 2)), [0, 1000, 1000, 1333],
                 [0, 192, 384, 385, 769]]
    for cu_seqlens, (K, V) in itertools.product(
            sequences[:5] if options.quick else sequences,
            TUNED_HEADS + ((60, 60),)):
        name = f"{K}x{V} {cu_seqlens if len(cu_seqlens) < 9 else '50 of 2'}"
        args = 1, cu_seqlens[-1], 2, K, V
        yield name, lambda args=args, c=cu_seqlens: check(
            chunk_gla, problem(*args, cu_seqlens=c), CHUNK_LIMITS)
        yield f"recurrent {name}", lambda args=args, c=cu_seqlens: check(
            fused_recurrent_gla, problem(*args, cu_seqlens=c), RECURRENT_LIMITS[BF16])

    def int64():
        p = problem(1, 100, 2, 64, 128, cu_seqlens=[0, 30, 100])
        q, k, v, g = p["q"], p["k"], p["v"], p["g"]
        a = chunk_gla(q, k, v, g, cu_seqlens=indices([0, 30, 100]))[0]
        b = chunk_gla(q, k, v, g, cu_seqlens=indices([0, 30, 100], torch.int64))[0]
        require(same_bits(a, b), "int64 cu_seqlens give other bits")
        return ""

    yield "int64", int64


@group
def threads():
    """A thread's first work on the GPU may be ours, as in autograd's own threads."""

    def case(op):
        p = problem(1, 100, 2, 256, 512, gate_dtype=BF16)
        args = p["q"], p["k"], p["v"], p["g"]
        want, spare, got = op(*args)[0], op(*args)[0], []
        torch.cuda.synchronize()
        # PyTorch's allocator, which may call CUDA, has all memory of a call in its cache.
        del spare
        thread = threading.Thread(target=lambda: got.append(op(*args)[0]))
        thread.start()
        thread.join()
        require(got, "the thread failed")
        require_same_bits({"o": want}, {"o": got[0]}, "in another thread")
        return ""

    for op in chunk_gla, fused_recurrent_gla:
        yield op.__name__, lambda op=op: case(op)


# ---- Options -------------------------------------------------------------------------------------


@group
def states():
    for op, (K, V) in itertools.product((chunk_gla, fused_recurrent_gla),
                                        ((64, 128), (60, 60)) if options.quick else TUNED_HEADS):
        for h0, dht in itertools.product((False, True), repeat=2):
            def case(op=op, K=K, V=V, h0=h0, dht=dht):
                p = problem(2, 100, 2, K, V)
                p |= {"initial_state": p["initial_state"] if h0 else None,
                      "dht": p["dht"] if dht else None}
                return check(op, p, CHUNK_LIMITS)
            yield f"{op.__name__} {K}x{V} h0 {h0} dht {dht}", case


@group
def recurrent():
    # The fourth and the last have the kernel for decoding, in bfloat16.
    cases = [(3, 1, 4, 256, 512), (2, 7, 2, 128, 256), (2, 64, 2, 65, 129), (130, 1, 1, 64, 128),
             (1, 33, 3, 512, 512), (2, 20, 2, 1, 1), (300, 1, 2, 64, 128), (16, 1, 4, 256, 512)]
    types = (FP32, FP32), (FP32, BF16), (BF16, FP32), (BF16, BF16), (FP16, FP32), (FP16, FP16)
    for shape, (dtype, gate_dtype) in itertools.product(cases[:4] if options.quick else cases,
                                                        types):
        limits = RECURRENT_LIMITS[dtype] | {"dg": RECURRENT_LIMITS[gate_dtype]["dg"]}
        yield (f"{shape} {dtype_name(dtype)} gates {dtype_name(gate_dtype)}",
               lambda shape=shape, types=(dtype, gate_dtype), limits=limits: check(
                   fused_recurrent_gla, problem(*shape, *types), limits))
    for name, (gates, limits) in GATE_FAMILIES.items():
        yield name, lambda gates=gates, limits=limits: check(
            fused_recurrent_gla, problem(2, 70, 2, 64, 128, gates=gates), limits)


@group
def autograd():

    def some(wanted):
        """Gradients only of what asks for one are those of all together."""
        p = problem(2, 70, 2, 64, 128)
        want = call(chunk_gla, p)
        x = {name: p[name].clone().requires_grad_(name in wanted)
             for name in ("q", "k", "v", "g", "initial_state")}
        o, ht = chunk_gla(**x, output_final_state=True)
        torch.autograd.backward([o, ht], [p["do"], p["dht"]])
        for name, gradient in zip(x, GRADIENTS):
            got = x[name].grad
            require((got is not None) == (name in wanted), f"gradient of {name}")
            require(got is None or same_bits(got, want[gradient]), f"{gradient} differs")
        return ""

    def final_state_only():
        p = problem(2, 70, 2, 64, 128)
        x = {name: p[name].clone().requires_grad_()
             for name in ("q", "k", "v", "g", "initial_state")}
        ht = chunk_gla(**x, output_final_state=True)[1]
        gradients = torch.autograd.grad(ht, list(x.values()), p["dht"])
        want = expected(p | {"do": torch.zeros_like(p["do"])})
        return compare(want, dict(zip(GRADIENTS, gradients)), CHUNK_LIMITS)

    def gate_types():
        p = problem(2, 70, 2, 64, 128, FP16, FP16)
        gradients = call(chunk_gla, p)
        require(gradients["dg"].dtype == FP16, f"dg is {gradients['dg'].dtype}")
        return compare(expected(p), gradients, CHUNK_LIMITS)

    def no_gates():
        p = problem(2, 30, 2, 64, 128)
        args = p["q"], p["k"], p["v"]
        require(same_bits(fused_recurrent_gla(*args)[0],
                          fused_recurrent_gla(*args, gk=torch.zeros_like(p["q"]))[0]),
                "gk=None is not a gate of 1")
        return ""

    def strides():
        """The gradient of o may come in any strides."""
        p = problem(2, 70, 2, 64, 128)
        p["do"] = p["do"][:, :, :, :1].expand(-1, -1, -1, 128)
        return compare(expected(p), call(chunk_gla, p), CHUNK_LIMITS)

    def scales():
        p = problem(1, 70, 2, 64, 128)
        return compare(expected(p, scale=0.7), call(chunk_gla, p, scale=0.7), CHUNK_LIMITS)

    for wanted in ["v"], ["q", "g"], ["initial_state"], ["k", "initial_state"]:
        yield f"only {wanted}", lambda wanted=wanted: some(wanted)
    yield "final state only", final_state_only
    yield "float16 gates", gate_types
    yield "no gates", no_gates
    yield "expanded gradient", strides
    yield "scale", scales


# ---- Behaviour -----------------------------------------------------------------------------------


@group
def causality():
    """What changes at a token leaves earlier outputs as they are."""

    def change(p, t, gate):
        changed = {name: x.clone() if torch.is_tensor(x) else x for name, x in p.items()}
        for name in "q", "k", "v":
            changed[name][:, t:] = torch.randn_like(changed[name][:, t:])
        if gate is not None:
            changed["g"][:, t:, :, 5] = gate
        return changed

    def case(K, V, t, gate):
        p = problem(2, 300, 2, K, V)
        before, after = (chunk_gla(x["q"], x["k"], x["v"], x["g"])[0]
                         for x in (p, change(p, t, gate)))
        # A strong gate can change the path of the whole chunk that it is in.
        exact = t if gate in (None, -0.5) else t // 64 * 64
        require(same_bits(before[:, :exact], after[:, :exact]), f"o before token {exact} differs")
        if exact == t:
            return "same bits"
        error = relative_rms(before[:, exact:t].double(), after[:, exact:t])
        require(error < CHUNK_LIMITS["o"], f"o of the chunk's earlier tokens: {error:.1e}")
        return f"same bits, in the chunk {error:.1e}"

    for (K, V), t, gate in itertools.product(TUNED_HEADS + ((60, 60),), (1, 64, 100, 127, 290),
                                             (None, -0.5, -40.0, -torch.inf)):
        if not options.quick or ((K, V) == (64, 128) and t in (64, 100)):
            yield f"{K}x{V} t{t} gate {gate}", lambda K=K, V=V, t=t, gate=gate: case(K, V, t, gate)


def piece_shapes(V):
    """(B, T, H) by the number of pieces that a sequence is cut into, from NumPieces of
    kernels/gla/chunk_gla_cuda.cu. (With heads of 128 values the backward pass has no two.)"""
    heads = lambda blocks: blocks * 128 // V
    return {1: (1, 333, heads(68)), 2: (3, 500, heads(16)), 11: (1, 1300, 2)}


@group
def last_keys():
    """Final states behind strong gates: little more than what the last tokens add. Below 256
    channels their keys have second bf16 parts, without which errors are 1.4e-3 to 1.7e-3; but not
    those of the chunk before, which count behind a last chunk of one token."""

    def case(gate_dtype, B, T, H, K, V, **kwargs):
        one_token = T % 64 == 1 and "cu_seqlens" not in kwargs
        limit = 0.0013 if K == 256 or one_token else 1e-4
        return check(chunk_gla, problem(B, T, H, K, V, gate_dtype=gate_dtype,
                                        gates=lambda g: g * 16, **kwargs),
                     CHUNK_LIMITS | {"ht": limit})

    for (K, V), gate_dtype in itertools.product(TUNED_HEADS[-1:] if options.quick else TUNED_HEADS,
                                                (BF16, FP32)):
        shapes = [(1, 70, 1)] if options.quick else [(2, T, 2) for T in (1024, 1025, 1044, 1081)]
        for B, T, H in shapes + ([] if options.quick else list(piece_shapes(V).values())):
            yield (f"{K}x{V} B{B} T{T} H{H} gates {dtype_name(gate_dtype)}",
                   lambda d=gate_dtype, s=(B, T, H, K, V): case(d, *s))
        # Many pieces, the last of them empty; two, of which the later one only catches up.
        cu_seqlens = [0, 0, 100, 1012, 1345]
        for H in (2, 16 * 128 // V):
            yield (f"{K}x{V} {cu_seqlens} H{H} gates {dtype_name(gate_dtype)}",
                   lambda d=gate_dtype, s=(1, 1345, H, K, V), c=cu_seqlens:
                   case(d, *s, cu_seqlens=c))


@group
def score_rests():
    """o where it is mostly of scores near by: 2.7e-3 at 128x256 before they had second parts."""
    if options.quick:
        return
    for (K, V), gate_dtype in itertools.product(TUNED_HEADS[1:], (FP32, BF16)):
        yield f"{K}x{V} gates {dtype_name(gate_dtype)}", lambda K=K, V=V, g=gate_dtype: check(
            chunk_gla, problem(2, 1024, 4, K, V, gate_dtype=g, gates=lambda g: g * 16),
            CHUNK_LIMITS | {"o": 0.0025})


@group
def second_parts():
    """Gradients that without second parts are 2.5 to 3.3e-3: of heads of 128 values, and dv."""
    if options.quick:
        return
    near_by = {"dq": 0.00199, "dk": 0.00211, "dv": 0.00206, "dg": 0.00214}
    far_too = {"dq": 0.00225, "dk": 0.0023, "dv": 0.00248, "dg": 0.00258}
    for K, times, gate_dtype in itertools.product((128, 64), (16, 1), (FP32, BF16)):
        limits = CHUNK_LIMITS | (near_by if times == 16 else far_too)
        yield (f"{K}x128 gates times {times} {dtype_name(gate_dtype)}",
               lambda K=K, times=times, g=gate_dtype, limits=limits: check(
                   chunk_gla, problem(2, 1024, 4, K, 128, gate_dtype=g,
                                      gates=lambda g, times=times: g * times), limits))
    for (times, dv), gate_dtype in itertools.product(((16, 0.00211), (1, 0.00263)), (FP32, BF16)):
        yield (f"128x256 gates times {times} {dtype_name(gate_dtype)}",
               lambda times=times, dv=dv, g=gate_dtype: check(
                   chunk_gla, problem(2, 1024, 4, 128, 256, gate_dtype=g,
                                      gates=lambda g, times=times: g * times),
                   CHUNK_LIMITS | {"dv": dv}))


@group
def repeats():
    """The same bits every time, whatever else the memory held."""

    def case(op, p, count):
        first = call(op, p)
        for _ in range(count):
            garbage = torch.full((1 << 20,), torch.nan, device=DEVICE)  # noqa: F841, freed at once
            del garbage
            require_same_bits(first, call(op, p), "a repeat")
        return f"{count} times"

    def forward_only(p):
        """Where no states are stored; called, and twice in a graph."""
        want = {name: y for name, y in call(chunk_gla, p).items() if name in ("o", "ht")}

        @torch.no_grad()
        def forward():
            o, ht = chunk_gla(p["q"], p["k"], p["v"], p["g"], initial_state=p["initial_state"],
                              output_final_state=True)
            return {"o": o, "ht": ht}

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            forward()
            replayed = forward()
        for _ in range(count):
            require_same_bits(want, forward(), "forward only")
            graph.replay()
            require_same_bits(want, replayed, "a replay of it")
        return f"{count} times"

    count = 3 if options.quick else 200
    # Of the tuned head shapes, in three pieces.
    for K, V in ((64, 128), (60, 60)) if options.quick else TUNED_HEADS + ((60, 60), (512, 512)):
        yield f"{K}x{V}", lambda K=K, V=V: case(chunk_gla, problem(2, 333, 2, K, V), count)
        yield f"{K}x{V} strong decay", lambda K=K, V=V: case(
            chunk_gla, problem(2, 333, 2, K, V, gates=lambda g: g * 60), count)
    for K, V in () if options.quick else TUNED_HEADS:
        for number, (B, T, H) in piece_shapes(V).items():
            yield f"{K}x{V} pieces: {number}", lambda B=B, T=T, H=H, K=K, V=V: case(
                chunk_gla, problem(B, T, H, K, V), count)
    for K, V in () if options.quick else TUNED_HEADS[:2]:  # as in `batches`
        yield f"{K}x{V} rehearsed", lambda K=K, V=V: case(
            chunk_gla, problem(4, 1024, 4, K, V), count)
    # Blocks have several items, and warps that add terms of steep channels hold up others' loads.
    for (K, V), gate_dtype in () if options.quick else itertools.product(TUNED_HEADS, (FP32, BF16)):
        yield f"{K}x{V} mixed gates {dtype_name(gate_dtype)}", lambda K=K, V=V, d=gate_dtype: case(
            chunk_gla, problem(1, 4000, 2048 // K, K, V, gate_dtype=d, gates=mixed_gates), count)
    for B, T, H in () if options.quick else ((8, 1024, 4), *piece_shapes(512).values()):
        yield f"256x512 forward only {B},{T},{H}", lambda B=B, T=T, H=H: forward_only(
            problem(B, T, H, 256, 512))
    yield "packed", lambda: case(
        chunk_gla, problem(1, 257, 2, 64, 128, cu_seqlens=[0, 63, 63, 128, 257]), count)
    yield "recurrent", lambda: case(fused_recurrent_gla, problem(2, 33, 2, 64, 128), count)


@contextlib.contextmanager
def poisoned_memory():
    """Every tensor that the wrapper allocates starts as NaN."""
    empty, empty_like = torch.empty, torch.empty_like

    def poison(x):
        if x.dtype == torch.uint8:
            return x.fill_(255)
        return x.fill_(torch.nan) if x.is_floating_point() else x

    torch.empty = lambda *args, **kwargs: poison(empty(*args, **kwargs))
    torch.empty_like = lambda *args, **kwargs: poison(empty_like(*args, **kwargs))
    try:
        yield
    finally:
        torch.empty, torch.empty_like = empty, empty_like


@group
def poison():
    """Outputs, what is saved and workspaces hold NaN before the call."""

    def case(op, p):
        want = call(op, p)
        with poisoned_memory():
            require_same_bits(want, call(op, p), "with poisoned memory")
        return compare(expected(p), want, STRONG_DECAY_LIMITS)

    for K, V in ((64, 128), (60, 60)) if options.quick else TUNED_HEADS + ((60, 60), (320, 100)):
        for name, gates in ("mild", lambda g: g), ("strong", lambda g: g * 60):
            yield f"{K}x{V} {name}", lambda K=K, V=V, gates=gates: case(
                chunk_gla, problem(2, 100, 2, K, V, gates=gates))
        yield f"{K}x{V} packed", lambda K=K, V=V: case(
            chunk_gla, problem(1, 131, 2, K, V, cu_seqlens=[0, 1, 65, 65, 131]))
        # States that are zero are not stored. In two pieces, packed, in six or eight pieces.
        for absent in ("initial_state",), ("dht",), ("initial_state", "dht"):
            yield f"{K}x{V} no {', '.join(absent)}", lambda K=K, V=V, absent=absent: case(
                chunk_gla, problem(2, 250, 2, K, V) | dict.fromkeys(absent))
        for name, T, cu_seqlens in ("packed", 700, [0, 0, 250, 300, 700]), ("long", 1024, None):
            yield f"{K}x{V} no states, {name}", lambda K=K, V=V, T=T, c=cu_seqlens: case(
                chunk_gla, problem(1, T, 1, K, V, cu_seqlens=c) |
                {"initial_state": None, "dht": None})
        yield f"{K}x{V} recurrent", lambda K=K, V=V: case(
            fused_recurrent_gla, problem(2, 20, 2, K, V))


@group
def neighbours():
    """NaN and infinity in one sequence do not reach the others."""

    def case(op, p, rows, states):
        want = call(op, p)
        for name in "q", "k", "v", "g", "do":
            p[name][rows] = torch.nan
        p["k"][rows][..., ::2] = torch.inf
        p["initial_state"][states] = torch.nan
        got = call(op, p)
        for name, x in want.items():
            bad = states if name in ("ht", "dh0") else rows
            keep = torch.ones(x.shape, dtype=torch.bool, device=x.device)
            keep[bad] = False
            require(same_bits(x[keep], got[name][keep]), f"{name} of the other sequences differs")
        return ""

    heads = ((64, 128),) if options.quick else TUNED_HEADS + ((60, 60),)
    for op, (K, V) in itertools.product((chunk_gla, fused_recurrent_gla), heads):
        name = f"{op.__name__} {K}x{V}"
        yield f"{name} batch", lambda op=op, K=K, V=V: case(
            op, problem(3, 100, 2, K, V), (1,), (1,))
        for n, rows in enumerate([slice(0, 30), slice(30, 99), slice(99, 160)]):
            yield f"{name} packed {n}", lambda op=op, K=K, V=V, n=n, rows=rows: case(
                op, problem(1, 160, 2, K, V, cu_seqlens=[0, 30, 99, 160]), (0, rows), (n,))


@group
def decoding():
    """A prompt by chunks, then token by token, is one pass over everything."""

    def case(K, V, prompt):
        p = problem(2, prompt + 4, 2, K, V)
        inputs = [p[name] for name in ("q", "k", "v", "g")]
        part = lambda begin, end: [x[:, begin:end].contiguous() for x in inputs]
        o, state = chunk_gla(*part(0, prompt), initial_state=p["initial_state"],
                             output_final_state=True)
        rows = [o]
        for t in range(prompt, prompt + 4):
            o, state = fused_recurrent_gla(*part(t, t + 1), initial_state=state,
                                           output_final_state=True)
            rows.append(o)
        return compare(expected(p), {"o": torch.cat(rows, 1), "ht": state}, CHUNK_LIMITS)

    for (K, V), prompt in itertools.product(TUNED_HEADS + ((60, 60),), (1, 64, 100)):
        if not options.quick or (K, V) == (64, 128):
            yield f"{K}x{V} prompt {prompt}", lambda K=K, V=V, prompt=prompt: case(K, V, prompt)


@group
def cuda_graphs():
    """A captured forward and backward pass replays to the same bits on other inputs."""

    def case(op, shape):
        p, other = problem(*shape), problem(*shape, seed=7)
        call(op, p)
        x = {name: p[name].clone().requires_grad_()
             for name in ("q", "k", "v", "g", "initial_state")}

        def step():
            o, ht = op(x["q"], x["k"], x["v"], x["g"], initial_state=x["initial_state"],
                       output_final_state=True)
            gradients = torch.autograd.grad([o, ht], list(x.values()), [p["do"], p["dht"]])
            return {"o": o, "ht": ht} | dict(zip(GRADIENTS, gradients))

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = step()
        with torch.no_grad():
            for name in x:
                x[name].copy_(other[name])
        graph.replay()
        torch.cuda.synchronize()
        other |= {"do": p["do"], "dht": p["dht"]}
        require_same_bits(call(op, other), {name: y.detach() for name, y in result.items()},
                          "a replay")
        return ""

    if options.quick:
        return
    for op, (K, V) in itertools.product((chunk_gla, fused_recurrent_gla),
                                        TUNED_HEADS + ((60, 60),)):
        yield f"{op.__name__} {K}x{V}", lambda op=op, K=K, V=V: case(op, (2, 130, 2, K, V))


# ---- Beside fla ----------------------------------------------------------------------------------


@group
def beside_fla():
    """In bfloat16 no output's error is over FLA_ERROR_RATIO times that of fla."""

    def case(K, V, normalizer):
        if not options.fla:
            raise Skip("fla's folder is not given")
        from fla.ops.gla import chunk_gla as fla_chunk_gla
        p = problem(2, 1024, 4, K, V, gate_dtype=BF16, gates=lambda g: g * (16 / normalizer))
        want, ours, theirs = expected(p), call(chunk_gla, p), call(fla_chunk_gla, p)
        errors = {name: relative_rms(want[name], ours[name]) for name in want}
        ratios = {name: error / relative_rms(want[name], theirs[name])
                  for name, error in errors.items()}
        bad = [name for name, ratio in ratios.items() if not ratio <= FLA_ERROR_RATIO]
        text = " ".join(f"{name} {errors[name]:.1e} ({ratio:.2f})"
                        for name, ratio in ratios.items())
        require(not bad, f"{', '.join(bad)} too far: {text}")
        return text

    for (K, V), normalizer in itertools.product(TUNED_HEADS, (16, 1)):
        yield f"{K}x{V} normalizer {normalizer}", lambda K=K, V=V, n=normalizer: case(K, V, n)


# ---- Running -------------------------------------------------------------------------------------


def is_wanted(name):
    """A case has its head shape in its name."""
    return not options.heads or any(head in name.split() for head in options.heads.split(","))


def run_case(case):
    """One of "PASS", "FAIL", "SKIP", and what to print."""
    try:
        return "PASS", case()
    except Skip as skip:
        return "SKIP", str(skip)
    except Failure as failure:
        return "FAIL", str(failure)
    except Exception:
        return "FAIL", traceback.format_exc()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--poison", action="store_true")
    parser.add_argument("--heads", default="")
    parser.add_argument("--fla", default=os.environ.get("FLA"))
    parser.add_argument("--list", action="store_true")
    parser.parse_args(namespace=options)
    if options.list:
        sys.exit("\n".join(GROUPS))
    if options.fla:
        sys.path.insert(0, options.fla)
    names = options.only.split(",") if options.only else list(GROUPS)
    unknown = [name for name in names if name not in GROUPS]
    if unknown:
        sys.exit(f"no group {', '.join(unknown)}: --list prints them")
    if options.quick and not options.only:
        names = [name for name in names if not name.startswith(("fla_", "beside_fla"))]
    if options.quick:
        torch.set_num_threads(2)  # tensors are small: more threads would wait for each other
    counts = dict.fromkeys(("PASS", "FAIL", "SKIP"), 0)
    with poisoned_memory() if options.poison else contextlib.nullcontext():
        for group_name in names:
            for name, case in GROUPS[group_name]():
                if not is_wanted(name):
                    continue
                outcome, text = run_case(case)
                counts[outcome] += 1
                print(f"{outcome} {group_name}: {name}: {text}", flush=True)
    if not any(counts.values()):
        sys.exit(f"no case is selected by --only={options.only} --heads={options.heads}"
                 f"{' --quick' if options.quick else ''}")
    print("{PASS} passed, {FAIL} failed, {SKIP} skipped".format(**counts))
    sys.exit(counts["FAIL"] > 0)


if __name__ == "__main__":
    main()
