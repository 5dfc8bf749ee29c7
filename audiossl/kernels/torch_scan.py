"""The selective scan in plain torch: any device, any float type, forward and backward.

    h_t = exp(delta_t A) h_(t-1) + delta_t u_t B_t          (channels, states)
    y_t = h_t C_t                                           (channels,)

Blocks of `BLOCK` tokens: what does not look back (exponentials, products, sums over the states) is
done for a whole block at once, and only h_t = a_t h_(t-1) + b_t token by token, one call each. The
backward pass recomputes each block from the state before it, so nothing of size
tokens x channels x states is ever kept.

Mamba (Gu & Dao 2023, arXiv:2312.00752), algorithm 2 and section 3.3.2. The gradient of h_t is
g_t = dy_t C_t + a_(t+1) g_(t+1).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 64  # tokens: at SSAMBA-tiny's 384 channels a block's arrays take 1.5 MB each


def scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence above, from `state` on.

    u, delta: (batch, tokens, channels). A: (channels, states). B, C: (batch, tokens, states).
    state: (batch, channels, states). All of one float type.
    -> y (batch, tokens, channels), the state after the last token. Differentiable once.
    """
    u, delta, B, C = (value.transpose(0, 1).contiguous() for value in (u, delta, B, C))
    y, state = _Scan.apply(u, delta, A, B, C, state)  # type: ignore[misc]
    return y.transpose(0, 1), state


class _Scan(torch.autograd.Function):
    """`scan` with the tokens first: (tokens, batch, ...)."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        y = torch.empty_like(u)
        before = []  # the state before each block
        with _exactly(u):
            for part in _blocks(len(u)):
                before.append(state)
                states = _states(u[part], delta[part], A, B[part], state)[1]
                y[part] = (states @ C[part].unsqueeze(-1)).squeeze(-1)
                state = states[-1].clone()
        ctx.save_for_backward(u, delta, A, B, C, *before)
        return y, state.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dstate: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        u, delta, A, B, C, *before = ctx.saved_tensors
        du, ddelta, dB, dC = (torch.empty_like(value) for value in (u, delta, B, C))
        dA = torch.zeros_like(A)
        with _exactly(u):
            for part, state in zip(reversed(_blocks(len(u))), reversed(before), strict=True):
                step = delta[part] * u[part]  # what B_t is multiplied by
                decay, states = _states(u[part], delta[part], A, B[part], state)
                dC[part] = (dy[part].unsqueeze(2) @ states).squeeze(2)
                g = dy[part].unsqueeze(-1) * C[part].unsqueeze(2)
                dstate = _back(g, decay, dstate).clone()
                dB[part] = (step.unsqueeze(2) @ g).squeeze(2)
                dstep = (g @ B[part].unsqueeze(-1)).squeeze(-1)
                dexponent = decay.mul_(torch.cat([state.unsqueeze(0), states[:-1]]))
                dA += torch.einsum("tbdn,tbd->dn", dexponent, delta[part])
                du[part] = dstep * delta[part]
                ddelta[part] = dstep * u[part] + torch.einsum("tbdn,dn->tbd", dexponent, A)
        return du, ddelta, dA, dB, dC, dstate


def _blocks(tokens: int) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, tokens, BLOCK)]


def _states(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """exp(delta A) and h of each token of a block, both (tokens, batch, channels, states)."""
    decay = torch.exp(delta.unsqueeze(-1) * A)
    states = (delta * u).unsqueeze(-1) * B.unsqueeze(2)
    for a, h in zip(decay.unbind(), states.unbind(), strict=True):
        state = torch.addcmul(h, a, state, out=h)
    return decay, states


def _back(g: Tensor, decay: Tensor, after: Tensor) -> Tensor:
    """Turn each token's own dy_t C_t into g_t, and decay a_t into a_t g_t, both in place.

    after: a g of the token after the last -> that of the first.
    """
    for own, a in zip(reversed(g.unbind()), reversed(decay.unbind()), strict=True):
        after = a.mul_(own.add_(after))
    return after


def _exactly(value: Tensor) -> torch.autocast:
    """Products in the type of the arguments, also where autocast is on."""
    return torch.autocast(value.device.type, enabled=False)
