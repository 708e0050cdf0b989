from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
from jax.typing import ArrayLike

Schedule: TypeAlias = Callable[[ArrayLike], ArrayLike]
_T = TypeVar("_T")

class GradientTransformation(NamedTuple):
    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]

def adam(learning_rate: float | jax.Array | Schedule) -> GradientTransformation: ...
def apply_updates(params: _T, updates: Any) -> _T: ...
def cosine_decay_schedule(init_value: float, decay_steps: int) -> Schedule: ...
def softmax_cross_entropy_with_integer_labels(
    logits: jax.Array, labels: jax.Array
) -> jax.Array: ...
