from typing import Any

from numpy.typing import NDArray

class _Digits:
    images: NDArray[Any]
    target: NDArray[Any]

def load_digits() -> _Digits: ...
