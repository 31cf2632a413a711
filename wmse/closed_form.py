"""Gradients written out, where autograd would pass over memory twice as often."""

import torch
from torch import Tensor


def refuse_second_derivative(name: str) -> None:
    """For a closed-form backward: RuntimeError where autograd would record it, as it would get it wrong."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(f"{name} has no second derivative: call autograd without create_graph=True")


def unit_sum_square(v: Tensor) -> Tensor:
    """Squared length of the sum of d unit vectors, v / |v|, summed over what is between: (d, ..., k) to ().

    With u = v / |v| and s = sum_i u_i, the gradient with respect to v_i is 2 (s - (s . u_i) u_i) / |v_i|:
    what of s is orthogonal to u_i.
    """
    return _UnitSumSquare.apply(v)[0]


class _UnitSumSquare(torch.autograd.Function):
    @staticmethod
    def forward(v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scale = torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp_min_(1e-12).reciprocal_()
        unit = v * scale
        total = unit.sum(0)
        return total.square().sum(), unit, scale, total

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
