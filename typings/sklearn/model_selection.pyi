from collections.abc import Sequence
from typing import Any, TypeVar

from numpy.typing import NDArray

_T = TypeVar("_T")

def train_test_split(
    *arrays: Sequence[_T],
    test_size: float | None = None,
    random_state: int | None = None,
    stratify: NDArray[Any] | None = None,
) -> list[list[_T]]: ...
