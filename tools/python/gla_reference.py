"""Gated linear attention and its gradients in float64, token by token: what the kernels are tested
against. Two sweeps over time, batched over everything else.
"""
import torch


def _pad(x, cu_seqlens):
    """[1, T, ...] tokens of packed sequences as [N, longest, ...], zeros behind each."""
    lengths = [end - begin for begin, end in zip(cu_seqlens, cu_seqlens[1:])]
    padded = x.new_zeros(len(lengths), max(lengths), *x.shape[2:])
    for n, length in enumerate(lengths):
        padded[n, :length] = x[0, cu_seqlens[n]:cu_seqlens[n + 1]]
    return padded


def _unpad(x, cu_seqlens):
    rows = [x[n, :end - begin] for n, (begin, end) in enumerate(zip(cu_seqlens, cu_seqlens[1:]))]
    return torch.cat(rows)[None]


def _suffix_sum(x, dim):
    return x.flip(dim).cumsum(dim).flip(dim)


def reference(q, k, v, g, scale=None, initial_state=None, do=None, dht=None, cu_seqlens=None):
    """Outputs and, given do and dht, gradients, as a dict of float64 tensors.

    cu_seqlens is a list here. A token of zeros (k, v, q, g) leaves the state as it is, so packed
    sequences are padded with them.
    """
    tensors = [None if x is None else x.detach().double() for x in (q, k, v, g, do)]
    if cu_seqlens is not None:
        tensors = [None if x is None else _pad(x, cu_seqlens) for x in tensors]
    q, k, v, g, do = tensors
    (N, T, H, K), V = q.shape, v.shape[-1]
    scale = K ** -0.5 if scale is None else scale
    decay = g.exp()
    state = q.new_zeros(N, H, K, V) if initial_state is None else initial_state.detach().double()
    state = state.clone()
    o, dq, dk, dv = (torch.zeros_like(x) for x in (v, q, k, v))
    for t in range(T):
        state.mul_(decay[:, t, :, :, None]).addcmul_(k[:, t, :, :, None], v[:, t, :, None, :])
        o[:, t] = scale * torch.matmul(q[:, t, :, None, :], state)[..., 0, :]
        if do is not None:
            dq[:, t] = scale * torch.matmul(state, do[:, t, :, :, None])[..., 0]
    result = {"o": o, "ht": state}
    if do is not None:
        dstate = torch.zeros_like(state) if dht is None else dht.detach().double().clone()
        tail = (state * dstate).sum(-1)
        for t in reversed(range(T)):
            dstate.addcmul_(scale * q[:, t, :, :, None], do[:, t, :, None, :])
            dk[:, t] = torch.matmul(dstate, v[:, t, :, :, None])[..., 0]
            dv[:, t] = torch.matmul(k[:, t, :, None, :], dstate)[..., 0, :]
            dstate.mul_(decay[:, t, :, :, None])
        # q_t dq_t - k_t dk_t is the gradient of the sum of the gates up to t, before what the final
        # state adds to all of them.
        dg = _suffix_sum(q * dq - k * dk, 1) + tail[:, None]
        dg[torch.isneginf(g)] = 0
        result |= {"dq": dq, "dk": dk, "dv": dv, "dg": dg, "dh0": dstate}
    if cu_seqlens is not None:
        result = {name: x if name in ("ht", "dh0") else _unpad(x, cu_seqlens)
                  for name, x in result.items()}
    return result


def recurrence(q, k, v, g, initial_state, scale):
    """o and the final state, as PyTorch operations that autograd can follow."""
    state, rows = initial_state, []
    for t in range(q.shape[1]):
        state = state * g[:, t, :, :, None].exp() + k[:, t, :, :, None] * v[:, t, :, None, :]
        rows.append(scale * (q[:, t, :, :, None] * state).sum(-2))
    return torch.stack(rows, 1), state
