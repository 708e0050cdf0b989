"""Floating-point operations of a program, counted from its jaxpr.

Only products count, 2 for each multiply-add: hardware is rated by them, and their number is the
same whatever the compiler makes of the rest.

    (m, k) x (k, n)     2 m k n, times the lengths of the batch axes
    convolution         the same for each of min(i w, w o, o i) places along a spatial axis with i
                        inputs, w positions of the kernel and o outputs: outputs times kernel for
                        a usual one, inputs times kernel for a transposed one
    scan, fori_loop     the body, times the length
    while_loop          the body once, as the number of iterations is not known
    cond, switch        the branch with the most
    complex numbers     as real ones

Custom kernels, calls of other code, decompositions and Fourier transforms are unknown, and count
as 0.

The gradient of a product has twice its operations; what `jax.checkpoint` recomputes counts once
more.
"""

import functools
import math
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


class Flops(NamedTuple):
    """A number of floating-point operations."""

    total: int
    """The number that is known."""
    unknown: frozenset[str] = frozenset()
    """What makes the count only a bound or a part: "while", "cond", or the name of a primitive."""

    def __add__(self, other: "Flops") -> "Flops":  # type: ignore[override]  # not of a tuple
        return Flops(self.total + other.total, self.unknown | other.unknown)


def flops(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Flops:
    """Return the floating-point operations of the products of a function, without running it.

    Matrix products and convolutions count, 2 for each multiply-add, complex ones as real ones.
    Sums, exponentials and the like are 0. What has products that can't be counted is named in
    `unknown`: kernels, callbacks, Fourier transforms, decompositions such as Cholesky's, and loops
    of unknown length.

    Args:
        function: any function that JAX can trace.
        *args: its arguments, or their shapes and dtypes.
        **kwargs: arguments by keyword, of any type.

    >>> import jax, jax.numpy as jnp, mlax
    >>> x = jax.ShapeDtypeStruct((8, 3), jnp.float32)
    >>> mlax.flops(lambda x: x.T @ x, x).total
    144
    """
    jaxpr = jax.make_jaxpr(lambda *args: function(*args, **kwargs))(*args)
    return by_scope(jaxpr, "", lambda outer, name_stack: outer).get("", Flops(0))


K = TypeVar("K", bound=Hashable)
Scope: TypeAlias = Callable[[K, str], K]
"""Returns the scope of an equation from that of the function around it and its name stack."""


def by_scope(jaxpr: ClosedJaxpr, outermost: K, scope: Scope[K]) -> dict[K, Flops]:
    """Return the operations in each scope that has any."""
    counts: dict[K, Flops] = {}
    for name_stacks, found in _Counter().of(jaxpr.jaxpr):
        name = functools.reduce(scope, name_stacks, outermost)
        counts[name] = counts[name] + found if name in counts else found
    return counts


Counts: TypeAlias = list[tuple[tuple[str, ...], Flops]]
"""Operations, each with the name stacks of the equations around it, the outermost first."""


class _Counter:
    """Counts each function once, as equal layers share one."""

    def __init__(self) -> None:
        self._known: dict[int, Counts] = {}

    def of(self, jaxpr: Jaxpr) -> Counts:
        """Return the operations of a function."""
        if id(jaxpr) not in self._known:
            self._known[id(jaxpr)] = [
                ((str(eqn.source_info.name_stack), *inner), found)
                for eqn in jaxpr.eqns for inner, found in self._of_equation(eqn)
            ]
        return self._known[id(jaxpr)]

    def _of_equation(self, eqn: JaxprEqn) -> Counts:
        primitive, times, unknown = eqn.primitive.name, 1, frozenset[str]()
        if primitive in _COUNTED:
            return [((), Flops(_COUNTED[primitive](eqn)))]
        if primitive in _OPAQUE:
            return [((), Flops(0, frozenset({primitive})))]
        bodies = [self.of(body) for body in bodies_of(eqn)]
        if primitive == "cond":
            totals = [sum(flops.total for _, flops in branch) for branch in bodies]
            bodies = [bodies[totals.index(max(totals))]]
            unknown = frozenset({"cond"} if len(set(totals)) > 1 else ())
        elif primitive == "scan":
            times = eqn.params["length"]
        elif primitive == "while":
            unknown = frozenset({"while"})
        elif primitive == "shard_map":
            sizes = dict(eqn.params["mesh"].shape)
            times = math.prod(sizes[axis] for axis in eqn.params["newly_manual_axes"])
        return [
            (inner, Flops(times * found.total, found.unknown | unknown))
            for body in bodies for inner, found in body
        ]


def bodies_of(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    """Yield the functions that an equation runs."""
    for value in eqn.params.values():
        for entry in value if isinstance(value, tuple | list) else (value,):
            if isinstance(entry, ClosedJaxpr):
                yield entry.jaxpr
            elif isinstance(entry, Jaxpr):
                yield entry


def _shapes(variables: list[Any]) -> list[tuple[int, ...]]:
    return [variable.aval.shape for variable in variables]


def _dot_general(eqn: JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    (left, _), (y,) = _shapes(eqn.invars), _shapes(eqn.outvars)
    return 2 * math.prod((*y, *(left[axis] for axis in contracted)))


def _ragged_dot(eqn: JaxprEqn) -> int:
    # Each row of the left side meets one group, whatever the sizes of the groups.
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    (left, *_), (y,) = _shapes(eqn.invars), _shapes(eqn.outvars)
    if set(numbers.lhs_ragged_dimensions) <= set(contracted):  # y has an axis of groups
        y = y[1:]
    return 2 * math.prod((*y, *(left[axis] for axis in contracted)))


def _convolution(eqn: JaxprEqn) -> int:
    numbers = eqn.params["dimension_numbers"]
    (x, kernel), (y,) = _shapes(eqn.invars), _shapes(eqn.outvars)
    _, _, *inputs = (x[axis] for axis in numbers.lhs_spec)
    _, in_channels, *window = (kernel[axis] for axis in numbers.rhs_spec)
    batch, out_channels, *outputs = (y[axis] for axis in numbers.out_spec)
    # Two of input, output and kernel position determine the third: the other triples are padding.
    places = (min(i * w, w * o, o * i) for i, w, o in zip(inputs, window, outputs, strict=True))
    products: int = math.prod((batch, in_channels, out_channels, *places))
    return 2 * products


_COUNTED: dict[str, Callable[[JaxprEqn], int]] = {
    "dot_general": _dot_general,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _convolution,
}

_OPAQUE = frozenset({
    "pallas_call", "tpu_custom_call", "ffi_call", "custom_call", "pure_callback", "io_callback",
    "dot_product_attention_fwd", "dot_product_attention_bwd", "scaled_matmul",
    "dot_product_attention_fp8_fwd", "dot_product_attention_fp8_bwd",
    "cholesky", "cholesky_update", "eig", "eigh", "fft", "geqp3", "geqrf", "hessenberg",
    "householder_product", "lu", "ormqr", "qr", "schur", "svd", "symmetric_product",
    "triangular_solve", "tridiagonal", "tridiagonal_solve",
})
