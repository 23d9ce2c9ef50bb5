"""Running means in float64: one pass, whatever the number of prompts."""

from torch import Tensor


class RunningMean:
    """The mean of `(layers, d_model)` over prompts, summed in float64 on the CPU."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None

    def update(self, batch: Tensor) -> None:
        """Adds a batch `(prompts, layers, d_model)`."""
        total = batch.double().sum(dim=0).cpu()
        self._sum = total if self._sum is None else self._sum + total
        self.count += batch.shape[0]

    @property
    def mean(self) -> Tensor:
        """`(layers, d_model)`, float64. Raises ValueError where nothing was added."""
        if self._sum is None:
            raise ValueError("the mean of no activations")
        return self._sum / self.count
