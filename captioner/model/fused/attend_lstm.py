"""The recurrence of Show, Attend and Tell as one function with its own backward pass.

Attention and LSTM feed each other at every step, so the fused LSTM alone cannot serve. Made for
CPUs; `ShowAttendTell.forward` has the definition, step by step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from captioner.model.attention import Places, additive_scores, additive_scores_backward
from captioner.model.fused.buffers import reused
from captioner.model.lstm import lstm_cell_, lstm_cell_backward_

if TYPE_CHECKING:
    from captioner.model.decoder import PackedCaptions


class AttendRecurrence(torch.autograd.Function):
    """Hidden (tokens, H), gated context z (tokens, D) and attention (tokens, L) of all steps.

    Inputs: word embeddings (tokens, E); keys (B, L, A), doubled as for `AdditiveScores`; values
    (B, L, D); h and c (rows, H); the weights of query (A, H), gate (D, H) and its bias, score (A,),
    and of the LSTM over [word, context], with both biases in one. At a `blocked` step h enters the
    LSTM as a constant, and with `detach_attention` also the attention.
    """

    @staticmethod
    def forward(
        ctx: Any,
        words: Tensor,
        keys: Tensor,
        values: Tensor,
        h: Tensor,
        c: Tensor,
        query: Tensor,
        gate: Tensor,
        gate_bias: Tensor,
        score: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias: Tensor,
        captions: PackedCaptions,
        blocked: list[bool],
        detach_attention: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        tokens, E, H, D = len(words), words.shape[1], h.shape[1], values.shape[2]
        all_gates = reused(tokens, 4 * H, like=words)
        torch.addmm(bias, words, weight_ih[:, :E].t(), out=all_gates)
        kept = [reused(tokens, X, like=words) for X in (H, H, len(query), D, D)]
        hidden, context = reused(tokens, H, like=words), reused(tokens, D, like=words)
        attention = words.new_empty(tokens, values.shape[1])
        places = Places.of(captions.image, len(values))
        doubled = 2 * score
        before = h, c
        buffers = (all_gates, *kept, hidden, context, attention)
        for step in zip(*(b.split(captions.batch_sizes) for b in buffers), strict=True):
            gates, cell, squashed, q, opened, seen, next_h, z, looked = step
            n = len(gates)
            h, c = h[:n], c[:n]
            torch.mm(h, query.t(), out=q).mul_(2)
            torch.addmm(gate_bias, h, gate.t(), out=opened).sigmoid_()
            scores = additive_scores(keys, q, doubled, captions.image[:n])
            torch.softmax(scores, -1, out=looked)
            seen.copy_(places.first(n).weighted_sum(looked, values))
            torch.mul(opened, seen, out=z)
            gates.addmm_(z, weight_ih[:, E:].t()).addmm_(h, weight_hh.t())
            lstm_cell_(gates, c, cell, squashed, next_h)
            h, c = next_h, cell
        ctx.save_for_backward(
            words, keys, values, *before, query, gate, score, weight_ih, weight_hh,
            hidden, context, attention,
        )  # fmt: skip
        ctx.captions, ctx.places, ctx.kept = captions, places, (all_gates, *kept)
        ctx.blocked, ctx.detach_attention = blocked, detach_attention
        ctx.set_materialize_grads(False)
        return hidden, context, attention

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (
            words, keys, values, h0, c0, query, gate, score, weight_ih, weight_hh,
            hidden, context, attention,
        ) = ctx.saved_tensors  # fmt: skip
        captions, places, sizes = ctx.captions, ctx.places, ctx.captions.batch_sizes
        E, doubled = words.shape[1], 2 * score
        gates, cells, squashed, q, opened, seen = (kept.split(sizes) for kept in ctx.kept)
        d_gates, d_q, d_opened, d_seen = made = [
            reused(*kept.shape, like=kept) for kept in (ctx.kept[i] for i in (0, 3, 4, 5))
        ]
        made_by_step = list(zip(*(grad.split(sizes) for grad in made), strict=True))
        from_hidden, from_context, from_attention = (
            None if grad is None else grad.split(sizes) for grad in grads
        )
        looked, c_before = attention.split(sizes), [c0, *cells]
        dh, dc, slope = torch.zeros_like(h0), torch.zeros_like(c0), torch.empty_like(c0)
        d_keys, d_score = torch.zeros_like(keys), torch.zeros_like(score)
        for t, n in reversed(list(enumerate(sizes))):
            step_gates, step_q, step_opened, step_seen = made_by_step[t]
            dh_t, dc_t = dh[:n], dc[:n]
            if from_hidden is not None:
                dh_t += from_hidden[t]
            lstm_cell_backward_(
                gates[t], c_before[t][:n], squashed[t], dh_t, dc_t, step_gates, slope[:n]
            )
            dz = torch.mm(step_gates, weight_ih[:, E:], out=step_seen)
            if from_context is not None:
                dz += from_context[t]
            torch.addcmul(opened[t], opened[t], opened[t], value=-1, out=step_opened)
            step_opened.mul_(seen[t]).mul_(dz)
            dz.mul_(opened[t])  # now the gradient of the context before its gate: step_seen
            d_looked = places.first(n).weighted_sum(step_seen, values.transpose(1, 2))
            if from_attention is not None:
                d_looked += from_attention[t]
            d_looked -= (d_looked * looked[t]).sum(-1, keepdim=True)
            d_scores = d_looked.mul_(looked[t])
            step_q.copy_(
                additive_scores_backward(
                    d_scores, keys, q[t], doubled, captions.image[:n], d_keys, d_score
                )
            ).mul_(2)
            if ctx.blocked[t]:
                dh_t.zero_()
            else:
                torch.mm(step_gates, weight_hh, out=dh_t)
            if not (ctx.blocked[t] and ctx.detach_attention):
                dh_t.addmm_(step_q, query).addmm_(step_opened, gate)

        h_before = [h0, *hidden.split(sizes)]
        all_before = torch.cat([h[:n] for h, n in zip(h_before, sizes, strict=False)])
        d_weight_ih = torch.empty_like(weight_ih)
        torch.mm(d_gates.t(), words, out=d_weight_ih[:, :E])
        torch.mm(d_gates.t(), context, out=d_weight_ih[:, E:])
        d_values = None
        if ctx.needs_input_grad[2]:
            tokens = Places.of(captions.image_of_token, len(values))
            d_values = torch.bmm(tokens.spread(attention).transpose(1, 2), tokens.spread(d_seen))
        return (
            d_gates @ weight_ih[:, :E],
            d_keys.mul_(doubled),
            d_values,
            dh,
            dc,
            d_q.t() @ all_before,
            d_opened.t() @ all_before,
            d_opened.sum(0),
            2 * d_score,
            d_weight_ih,
            d_gates.t() @ all_before,
            d_gates.sum(0),
            *(None,) * 3,
        )
