"""The reader of the selective edit: a linear probe, fitted in closed form."""

import torch
from torch import Tensor


def fit_reader(inputs: Tensor, wanted: Tensor, weights: Tensor, ridge: float) -> Tensor:
    """What reads `wanted` from `inputs`: a vector a `(d_in,)`, by weighted ridge regression.

    `min over a: sum_i w_i (a . x_i - t_i)^2 + rho |S a|^2`, rho = `ridge` d_in mean(w): Hoerl and
    Kennard 1970, with the penalty in units of each input's spread. S = diag(standard deviation of
    x, or a tenth of its root mean square where that is more, so that an input that hardly varies
    is no intercept). `inputs` x `(n, d_in)` of any float dtype, `wanted` t `(n,)`, `weights` w
    `(n,)`. No intercept: what a matrix reads is linear in x. Solved in the smaller of its two
    forms, of `d_in` or of n equations.
    """
    x, root = inputs.float(), weights.float().sqrt().unsqueeze(1)
    size = x.square().mean(dim=0).sqrt()
    spread = x.std(dim=0, correction=0).maximum(0.1 * size).clamp(min=1e-12)
    scaled, goal = x / spread * root, wanted.float().unsqueeze(1) * root
    rho = ridge * x.shape[1] * float(weights.float().mean())
    if scaled.shape[1] <= len(scaled):
        gram = scaled.T @ scaled
        gram.diagonal().add_(rho)
        solved: Tensor = torch.linalg.solve(gram, scaled.T @ goal)
    else:
        gram = scaled @ scaled.T
        gram.diagonal().add_(rho)
        solved = scaled.T @ torch.linalg.solve(gram, goal)
    return solved.squeeze(1) / spread
