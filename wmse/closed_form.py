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
    return _SumOfCosines.apply(v)


def permuted(x: Tensor, orders: Tensor) -> Tensor:
    """x (d, n, k) with its rows in each of w orders, int64 (w, n), each a permutation: (d, w, n, k)."""
    return _Permuted.apply(x, orders)


class _Permuted(torch.autograd.Function):
    """Its gradient gathers by the inverse permutations what autograd would scatter."""

    @staticmethod
    def forward(ctx, x: Tensor, orders: Tensor) -> Tensor:
        ctx.save_for_backward(orders)
        return x.index_select(1, orders.flatten()).unflatten(1, orders.shape)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        places = ctx.saved_tensors[0].argsort(1)
        if len(places) == 1:
            return grad[:, 0].index_select(1, places[0]), None
        gathered = [part.index_select(1, place) for part, place in zip(grad.unbind(1), places, strict=True)]
        return torch.stack(gathered).sum(0), None


class _SumOfCosines(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v: Tensor) -> Tensor:
        lengths = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
        scale = lengths.clamp_min(1e-12).reciprocal_()
        unit = v * scale
        total = unit.sum(0)
        ctx.save_for_backward(unit, scale, total)
        return total.square().sum() - lengths.mul_(scale).square_().sum()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        refuse_second_derivative("the cosine distance")
        unit, scale, total = ctx.saved_tensors
        along = (unit * total).sum(-1, keepdim=True)
        return torch.addcmul(total, unit, along, value=-1).mul_(2 * grad * scale)
