"""Gradients written out, where autograd would pass over memory twice as often."""

import torch
from torch import Tensor


def refuse_second_derivative(name: str) -> None:
    """For a closed-form backward: RuntimeError where autograd would record it, as it would get it wrong."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(f"{name} has no second derivative: call autograd without create_graph=True")


def sum_of_cosines(v: Tensor) -> Tensor:
    """cos(v_i, v_j), summed over ordered pairs i != j of d vectors and over images: (d, ..., k) to ().

    With u = v / |v| and s = sum_i u_i it is |s|^2 - sum_i |u_i|^2: no pair is ever formed. Its gradient with
    respect to v_i is 2 (s - (s . u_i) u_i) / |v_i|, what of s is orthogonal to u_i. A vector of length 0 has
    cosine 0 with any other.
    """
    return _SumOfCosines.apply(v)[0]


class _SumOfCosines(torch.autograd.Function):
    @staticmethod
    def forward(v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        lengths = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
        scale = lengths.clamp_min(1e-12).reciprocal_()
        unit = v * scale
        total = unit.sum(0)
        return total.square().sum() - (lengths * scale).square().sum(), unit, scale, total

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad: Tensor | None, *_) -> Tensor | None:
        if grad is None:
            return None
        refuse_second_derivative("the cosine distance")
        unit, scale, total = ctx.saved_tensors
        along = (unit * total).sum(-1, keepdim=True)
        return torch.addcmul(total, unit, along, value=-1).mul_(2 * grad * scale)
