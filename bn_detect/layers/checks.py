"""What BatchNorm over mini-batch statistics cannot be given; torch refuses it, too."""

from torch import Tensor


def check_values(x: Tensor, eps: float, layer: str) -> None:
    """Raise where statistics of `x` mean nothing.

    Raises:
        NotImplementedError: values that are integers, booleans or complex.
        ValueError: eps is not positive, so that a constant channel would be divided by 0.
    """
    if not x.is_floating_point():
        raise NotImplementedError(f"{layer} takes floating-point values; got {x.dtype}")
    if eps <= 0:
        raise ValueError(f"{layer}: eps is {eps}; it must be positive")
