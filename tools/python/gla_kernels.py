"""Gated linear attention on a Hopper GPU for PyTorch, with the signatures of fla's ops.

    from gla_kernels import chunk_gla, fused_recurrent_gla    # was: from fla.ops.gla import ...

Needs libgla_kernels.so beside this file, or its path in GLA_KERNELS_LIBRARY. Per sequence and head

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T        o_t = scale * S_t^T q_t

Differentiable once in q, k, v, the gate and the initial state. Nothing waits for the GPU, so calls
can be captured into a CUDA graph. Tensors that the kernels cannot take raise an error that names
the tensor; the values of cu_seqlens are trusted. kernels/c_api/gla_kernels.h has the details.
"""
import ctypes
import functools
import os
import warnings

import torch
from torch.autograd.function import once_differentiable

__all__ = ["chunk_gla", "fused_recurrent_gla"]

_VERSION = 1  # GLA_KERNELS_VERSION
_INVALID_ARGUMENT, _UNSUPPORTED = 1, 2
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in "BTHKVN"] + [
        ("dtype", ctypes.c_int32), ("gate_dtype", ctypes.c_int32)]


class _ChunkBytes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("saved", "fwd_workspace", "bwd_workspace")]


def _args_struct(fields):
    """A struct of gla_kernels.h: shape, scale, then pointers and, where named *_bytes, sizes."""
    kinds = [(name, ctypes.c_int64 if name.endswith("_bytes") else ctypes.c_void_p)
             for name in fields.split()]
    return type("Args", (ctypes.Structure,), {
        "_fields_": [("shape", _Shape), ("scale", ctypes.c_float)] + kinds})


_ChunkFwdArgs = _args_struct("q k v g initial_state cu_seqlens o final_state "
                             "saved saved_bytes workspace workspace_bytes")
_ChunkBwdArgs = _args_struct("q k v g initial_state cu_seqlens saved saved_bytes d_o d_final_state "
                             "dq dk dv dg d_initial_state workspace workspace_bytes")
_RecurrentFwdArgs = _args_struct("q k v g cu_seqlens slots initial_state o final_state")
_RecurrentBwdArgs = _args_struct("q k v g cu_seqlens initial_state d_o d_final_state "
                                 "dq dk dv dg d_initial_state workspace workspace_bytes")


def _load_library():
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "libgla_kernels.so")
    path = os.environ.get("GLA_KERNELS_LIBRARY", beside)
    library = ctypes.CDLL(path)
    version = library.gla_kernels_version()
    if version != _VERSION:
        raise ImportError(f"{path} has version {version}, this file needs {_VERSION}")
    library.gla_last_error.restype = ctypes.c_char_p
    for name in ("chunk_sizes", "chunk_fwd", "chunk_bwd", "recurrent_fwd", "recurrent_bwd_size",
                 "recurrent_bwd"):
        getattr(library, "gla_" + name).argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return library


_LIBRARY = _load_library()


def _raise_on(status):
    if status:
        kind = ValueError if status in (_INVALID_ARGUMENT, _UNSUPPORTED) else RuntimeError
        raise kind(_LIBRARY.gla_last_error().decode())


def _launch(function, args, device):
    if device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            return _launch(function, args, device)
    _raise_on(function(ctypes.byref(args), torch.cuda.current_stream().cuda_stream))


def _pointer(tensor):
    return None if tensor is None else tensor.data_ptr()


def _bytes(size, device):
    return torch.empty(size, dtype=torch.uint8, device=device)


class _Plan:
    """What calls of one shape share."""

    def __init__(self, chunk, B, T, H, K, V, N, dtype, gate_dtype):
        self.chunk = chunk
        self.state_shape = (N, H, K, V)
        self.shape = _Shape(B, T, H, K, V, N, _DTYPES[dtype], _DTYPES[gate_dtype])
        if chunk:
            sizes = _ChunkBytes()
            _raise_on(_LIBRARY.gla_chunk_sizes(ctypes.byref(self.shape), ctypes.byref(sizes)))
            self.saved_bytes = sizes.saved
            self.fwd_workspace_bytes = sizes.fwd_workspace
            self.bwd_workspace_bytes = sizes.bwd_workspace
        else:
            size = ctypes.c_int64()
            _raise_on(_LIBRARY.gla_recurrent_bwd_size(ctypes.byref(self.shape), ctypes.byref(size)))
            self.saved_bytes = 0
            self.bwd_workspace_bytes = size.value

    def forward(self, scale, output_final_state, save, q, k, v, g, initial_state, cu_seqlens):
        """o, the final state or None, and what the backward pass reuses or None."""
        o = torch.empty_like(v)
        final_state = saved = None
        if output_final_state:
            final_state = torch.empty(self.state_shape, dtype=torch.float32, device=v.device)
        inputs = self.shape, scale, q.data_ptr(), k.data_ptr(), v.data_ptr(), g.data_ptr()
        if self.chunk:
            if save:
                saved = _bytes(self.saved_bytes, q.device)
            workspace = _bytes(self.fwd_workspace_bytes, q.device)
            _launch(_LIBRARY.gla_chunk_fwd, _ChunkFwdArgs(
                *inputs, _pointer(initial_state), _pointer(cu_seqlens), o.data_ptr(),
                _pointer(final_state), _pointer(saved), self.saved_bytes, workspace.data_ptr(),
                self.fwd_workspace_bytes), q.device)
        else:
            _launch(_LIBRARY.gla_recurrent_fwd, _RecurrentFwdArgs(
                *inputs, _pointer(cu_seqlens), None, _pointer(initial_state), o.data_ptr(),
                _pointer(final_state)), q.device)
        return o, final_state, saved

    def backward(self, scale, want_d_initial_state, q, k, v, g, initial_state, cu_seqlens, saved,
                 d_o, d_final_state):
        """dq, dk, dv, dg, and the initial state's gradient or None."""
        dq, dk, dv, dg = (torch.empty_like(x) for x in (q, k, v, g))
        d_initial_state = torch.empty_like(initial_state) if want_d_initial_state else None
        workspace = _bytes(self.bwd_workspace_bytes, q.device)
        inputs = self.shape, scale, q.data_ptr(), k.data_ptr(), v.data_ptr(), g.data_ptr()
        rest = (d_o.data_ptr(), _pointer(d_final_state), dq.data_ptr(), dk.data_ptr(),
                dv.data_ptr(), dg.data_ptr(), _pointer(d_initial_state), workspace.data_ptr(),
                self.bwd_workspace_bytes)
        if self.chunk:
            _launch(_LIBRARY.gla_chunk_bwd, _ChunkBwdArgs(
                *inputs, _pointer(initial_state), _pointer(cu_seqlens), saved.data_ptr(),
                self.saved_bytes, *rest), q.device)
        else:
            _launch(_LIBRARY.gla_recurrent_bwd, _RecurrentBwdArgs(
                *inputs, _pointer(cu_seqlens), _pointer(initial_state), *rest), q.device)
        return dq, dk, dv, dg, d_initial_state


_plan = functools.lru_cache(maxsize=4096)(_Plan)


class _Gla(torch.autograd.Function):

    @staticmethod
    def forward(ctx, plan, scale, output_final_state, *tensors):
        o, final_state, saved = plan.forward(scale, output_final_state, True, *tensors)
        ctx.save_for_backward(*tensors, saved)
        ctx.plan, ctx.scale = plan, scale
        ctx.set_materialize_grads(False)
        return o, final_state

    @staticmethod
    @once_differentiable
    def backward(ctx, d_o, d_final_state):
        saved = ctx.saved_tensors
        d_o = torch.zeros_like(saved[2]) if d_o is None else d_o.contiguous()
        if d_final_state is not None:
            d_final_state = d_final_state.contiguous()
        want_d_initial_state = ctx.needs_input_grad[7]
        gradients = ctx.plan.backward(ctx.scale, want_d_initial_state, *saved, d_o, d_final_state)
        return None, None, None, *gradients, None


def _check_is_tensor(name, x):
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, is a {type(x).__name__}")


def _check(name, x, shape, dtypes, device):
    _check_is_tensor(name, x)
    if x.shape == shape and x.dtype in dtypes and x.device == device and x.is_contiguous():
        return
    if x.device != device:
        raise ValueError(f"{name} must be on {device}, is on {x.device}")
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, has {list(x.shape)}")
    if x.dtype not in dtypes:
        names = " or ".join(str(dtype) for dtype in dtypes)
        raise ValueError(f"{name} must be {names}, is {x.dtype}")
    raise ValueError(f"{name} must be contiguous")


def _check_rank(name, x, rank):
    _check_is_tensor(name, x)
    if x.dim() != rank:
        raise ValueError(f"{name} must have {rank} dimensions, has {x.dim()}")


def _check_cuda(name, x):
    if not x.is_cuda:
        raise ValueError(f"{name} must be on a CUDA device, is on {x.device}")


def _gla(chunk, gate_name, q, k, v, g, scale, initial_state, output_final_state, state_v_first,
         cu_seqlens):
    _check_rank("q", q, 4)
    _check_rank("v", v, 4)
    _check_cuda("q", q)
    (B, T, H, K), V, device = q.shape, v.shape[-1], q.device
    if scale is None:
        scale = K ** -0.5
    N = B
    if cu_seqlens is not None:
        if B != 1:
            raise ValueError(f"q must have batch size 1 with cu_seqlens, has {B}")
        _check_rank("cu_seqlens", cu_seqlens, 1)
        _check("cu_seqlens", cu_seqlens, cu_seqlens.shape, (torch.int32, torch.int64), device)
        cu_seqlens = cu_seqlens.to(torch.int32)
        N = cu_seqlens.shape[0] - 1
    if state_v_first and initial_state is not None:
        initial_state = initial_state.transpose(-1, -2).contiguous()
    _check("q", q, q.shape, _DTYPES, device)
    _check("k", k, q.shape, (q.dtype,), device)
    _check("v", v, (B, T, H, V), (q.dtype,), device)
    _check(gate_name, g, q.shape, _DTYPES, device)
    if initial_state is not None:
        _check("initial_state", initial_state, (N, H, K, V), (torch.float32,), device)
    plan = _plan(chunk, B, T, H, K, V, N, q.dtype, g.dtype)
    tensors = q, k, v, g, initial_state, cu_seqlens
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        o, final_state = _Gla.apply(plan, scale, output_final_state, *tensors)
    else:
        o, final_state, _ = plan.forward(scale, output_final_state, False, *tensors)
    if state_v_first and output_final_state:
        final_state = final_state.transpose(-1, -2)
    return o, final_state


@torch.compiler.disable
def chunk_gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False,
              state_v_first=False, cu_seqlens=None, cu_seqlens_cpu=None):
    """Outputs o [B, T, H, V] and the final state [N, H, K, V] or None, chunk by chunk.

    Args:
      q, k: [B, T, H, K], bfloat16 or float16. float32 goes through the much slower recurrent form.
      v: [B, T, H, V], the same type.
      g: [B, T, H, K], natural logs of the gates, <= 0; -inf forgets. float16 is widened to float32.
      scale: of the scores; None: K ** -0.5.
      initial_state: float32 [N, H, K, V]; None: zero.
      output_final_state: whether the final state is wanted.
      state_v_first: states are [N, H, V, K] instead; the final one is a view, which costs nothing
        to pass in again.
      cu_seqlens: int32 or int64 [N + 1] on the device, with B = 1: the sequences are tokens
        [cu_seqlens[n], cu_seqlens[n+1]). The first entry is 0, the last T.
      cu_seqlens_cpu: ignored; here because fla has it.
    """
    del cu_seqlens_cpu
    chunk = not isinstance(q, torch.Tensor) or q.dtype != torch.float32
    if chunk and isinstance(g, torch.Tensor) and g.dtype == torch.float16:
        g = g.float()
    return _gla(chunk, "g", q, k, v, g, scale, initial_state, output_final_state, state_v_first,
                cu_seqlens)


@torch.compiler.disable
def fused_recurrent_gla(q, k, v, gk=None, gv=None, scale=None, initial_state=None,
                        output_final_state=False, reverse=False, state_v_first=False,
                        cu_seqlens=None, transpose_state_layout=None):
    """The same, token by token in float32 arithmetic: for decoding and short sequences.

    Args as in chunk_gla, with gk for g (None: no decay) and any type for q, k, v and for gk. gv and
    reverse are not supported. transpose_state_layout is fla's old name of state_v_first.
    """
    if gv is not None:
        raise NotImplementedError("gv is not supported: only gates of the key dimension, gk")
    if reverse:
        raise NotImplementedError("reverse is not supported")
    if transpose_state_layout is not None:
        if state_v_first:
            raise ValueError("transpose_state_layout is the old name of state_v_first: pass one")
        warnings.warn("transpose_state_layout is now state_v_first", DeprecationWarning,
                      stacklevel=2)
        state_v_first = transpose_state_layout
    if gk is None:
        gk = torch.zeros_like(k)
    return _gla(False, "gk", q, k, v, gk, scale, initial_state, output_final_state, state_v_first,
                cu_seqlens)
