"""The reader of the selective edit: a linear probe, fitted in closed form."""

import torch
from torch import Tensor


def fit_reader(inputs: Tensor, wanted: Tensor, weights: Tensor, ridge: float) -> Tensor:
    """What reads `wanted` from `inputs`: a vector a `(d_in,)`, by weighted ridge regression.

    `min over a: sum_i w_i (a . x_i - t_i)^2 + rho |S a|^2`, S = diag(standard deviation of x) and
    rho = `ridge` times the mean of `w_i |x_i / S|^2` (Hoerl and Kennard 1970, with the penalty in
    units of each input's spread). `inputs` x `(n, d_in)` of any float dtype, `wanted` t `(n,)`,
    `weights` w `(n,)`. No intercept: what a matrix reads is linear in x. Solved in the smaller of
    its two forms, of `d_in` or of n equations.
    """
    x, root = inputs.float(), weights.float().sqrt().unsqueeze(1)
    spread = x.std(dim=0) + 1e-6 * x.abs().mean().clamp(min=1e-12)
    scaled, goal = x / spread * root, wanted.float().unsqueeze(1) * root
    rho = ridge * float(scaled.square().sum()) / len(scaled)
    if scaled.shape[1] <= len(scaled):
        gram = scaled.T @ scaled
        gram.diagonal().add_(rho)
        solved: Tensor = torch.linalg.solve(gram, scaled.T @ goal)
    else:
        gram = scaled @ scaled.T
        gram.diagonal().add_(rho)
        solved = scaled.T @ torch.linalg.solve(gram, goal)
    return solved.squeeze(1) / spread
