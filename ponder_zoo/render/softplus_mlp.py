"""phi_SDF with one hidden layer: its outputs and the gradient of the first, with a hand-written backward pass.

    h = M f + m;   out = A f + W softplus(h) + a;   slope = d(out_0)/df = A_0 + (W_0 sigmoid'(h)) M

with softplus(h) = log(1 + exp(100 h)) / 100, whose derivative is sigmoid'(h) = sigmoid(100 h). Autograd keeps four
values per hidden unit and sample and walks over them several times; here only f is kept, h is computed again, one
sigmoid serves everything, and constant factors go into the matrices. The renderer's training step takes 12 % less
(2026-11-27, 2 CPU cores, inputs of `benchmarks/render.py`). Test: `tests/render/test_softplus_mlp.py`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BETA = 100.0
BLOCK = 4096  # rows at a time: what is computed per hidden unit stays in the second-level cache


def softplus_mlp(f: Tensor, M: Tensor, m: Tensor, A: Tensor, W: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (P, O) and slope (P, I) at f (P, I), for M (H, I), m (H,), A (O, I), W (O, H), a (O,).

    Differentiable in everything to any order; derivatives beyond the first go through `reference`.
    """
    return _SoftplusMLP.apply(f, M, m, A, W, a)  # pyright: ignore[reportReturnType]


def reference(f: Tensor, M: Tensor, m: Tensor, A: Tensor, W: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The formula above."""
    h = F.linear(f, M, m)
    out = F.linear(f, A, a) + F.linear(F.softplus(h, beta=BETA), W)
    return out, A[0] + (W[0] * torch.sigmoid(BETA * h)) @ M


def sigmoid_and_softplus(h: Tensor) -> tuple[Tensor, Tensor]:
    """sigmoid(h) and log(1 + exp(h)), outside of autograd; overwrites h.

    As h - log(sigmoid(h)), which is as exact as h is: `F.softplus`, whose log1p is slow, makes the renderer's training
    step 5 % longer on a CPU (2026-11-27).
    """
    s = torch.sigmoid(h).clamp_(min=1e-30)  # no denormal numbers, which are slow
    return s, h.sub_(s.log()).clamp_(min=0.0)


class _SoftplusMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, f: Tensor, M: Tensor, m: Tensor, A: Tensor, W: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(f, M, m, A, W, a)
        out, slope = f.new_empty(len(f), len(W)), f.new_empty(f.shape)
        M_beta, m_beta, W_beta, S = BETA * M, BETA * m, W / BETA, W[0, :, None] * M
        for rows in _blocks(f):
            s, softplus = sigmoid_and_softplus(torch.addmm(m_beta, f[rows], M_beta.T))
            torch.addmm(a, f[rows], A.T, out=out[rows]).addmm_(softplus, W_beta.T)
            torch.addmm(A[0], s, S, out=slope[rows])
        return out, slope

    @staticmethod
    def backward(ctx: Any, g_out: Tensor, g_slope: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            wanted = [value for value, need in zip(inputs, ctx.needs_input_grad, strict=True) if need]
            grads = iter(torch.autograd.grad(reference(*inputs), wanted, (g_out, g_slope), create_graph=True))
            return tuple(next(grads) if need else None for need in ctx.needs_input_grad)
        f, M, m, A, W, _ = inputs
        M_beta, m_beta, S_beta = BETA * M, BETA * m, BETA * W[0, :, None] * M
        g_f, g_h_f, s_slope = torch.empty_like(f), torch.zeros_like(M), torch.zeros_like(M)
        g_W, g_m = torch.zeros_like(W), torch.zeros_like(m)
        for rows in _blocks(f):
            x, g, u = f[rows], g_out[rows], g_slope[rows]
            s, softplus = sigmoid_and_softplus(torch.addmm(m_beta, x, M_beta.T))
            g_W.addmm_(g.T, softplus)
            s_slope.addmm_(s.T, u)
            g_h = u @ S_beta.T  # then s (W^T g + (1 - s) S_beta u)
            g_h.addcmul_(g_h, s, value=-1.0).addmm_(g, W).mul_(s)
            torch.mm(g, A, out=g_f[rows]).addmm_(g_h, M)
            g_h_f.addmm_(g_h.T, x)
            g_m += g_h.sum(0)
        g_W.div_(BETA)[0] += (s_slope * M).sum(1)
        g_A = g_out.T @ f
        g_A[0] += g_slope.sum(0)
        return g_f, g_h_f.addcmul_(s_slope, W[0, :, None]), g_m, g_A, g_W, g_out.sum(0)


def _blocks(f: Tensor) -> list[slice]:
    size = BLOCK if f.device.type == "cpu" else max(len(f), 1)
    return [slice(start, start + size) for start in range(0, len(f), size)]
