"""Loss of APC, slowly: one frame and one bin at a time, in float64.

Written from arXiv 1904.03240, not from the library.
"""

from __future__ import annotations

from torch import Tensor


def loss(
    context: list[Tensor], target: list[Tensor], weight: Tensor, bias: Tensor, n: int
) -> Tensor:
    """Sum over the frames t of one utterance of the mean of |target[t + n] - prediction of t|."""
    total = weight.new_zeros(())
    for t in range(len(context) - n):
        for row in range(len(bias)):
            predicted = (weight[row] * context[t]).sum() + bias[row]
            total = total + (target[t + n][row] - predicted).abs() / len(bias)
    return total


def least_squares(target: list[Tensor], n: int) -> float:
    """Error of the frame at t, every bin times the factor that serves it best."""
    pairs = [(target[t], target[t + n]) for t in range(len(target) - n)]
    total = 0.0
    for row in range(len(target[0])):
        above = sum(float(a[row] * b[row]) for a, b in pairs)
        factor = above / sum(float(a[row]) ** 2 for a, _ in pairs)
        total += sum(abs(float(b[row]) - factor * float(a[row])) for a, b in pairs)
    return total / len(target[0])
