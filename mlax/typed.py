"""The transformations of jax, typed so that signatures survive them.

`jit`, `grad`, `value_and_grad`, `vmap` and `checkpoint` in this module are the very objects that
jax exports. Only a type checker sees a difference: the transformed function keeps the parameters
and the result of the original, where jax declares `Any`.

>>> import jax
>>> from mlax import typed
>>> typed.jit is jax.jit
True
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar
from typing import overload, runtime_checkable

from jax.stages import Lowered, Traced

__all__ = ["Jitted", "checkpoint", "grad", "jit", "value_and_grad", "vmap"]

H = ParamSpec("H")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
A = TypeVar("A")
P = TypeVar("P")


@runtime_checkable
class Jitted(Protocol[H, R_co]):
    """A jitted function: a call has the parameters and the result of the function."""

    def __call__(self, *args: H.args, **kwargs: H.kwargs) -> R_co:
        """Call the compiled function, compiling it first if necessary."""
        ...

    def lower(self, *args: H.args, **kwargs: H.kwargs) -> Lowered:
        """Return the function lowered for these arguments."""
        ...

    def trace(self, *args: H.args, **kwargs: H.kwargs) -> Traced:
        """Return the function traced for these arguments."""
        ...

    def eval_shape(self, *args: H.args, **kwargs: H.kwargs) -> Any:
        """Return the result with a `jax.ShapeDtypeStruct` for each array."""
        ...

    def clear_cache(self) -> None:
        """Discard the compiled programs."""
        ...


if not TYPE_CHECKING:
    from jax import checkpoint, grad, jit, value_and_grad, vmap
else:
    # fmt: off
    @overload
    def jit(
        fun: Callable[H, R], /, *, in_shardings: Any = ..., out_shardings: Any = ...,
        static_argnums: int | Sequence[int] | None = None,
        static_argnames: str | Iterable[str] | None = None,
        donate_argnums: int | Sequence[int] | None = None,
        donate_argnames: str | Iterable[str] | None = None,
        keep_unused: bool = False, device: Any = None, backend: str | None = None,
        inline: bool = False, compiler_options: dict[str, Any] | None = None,
    ) -> Jitted[H, R]: ...
    @overload
    def jit(
        *, in_shardings: Any = ..., out_shardings: Any = ...,
        static_argnums: int | Sequence[int] | None = None,
        static_argnames: str | Iterable[str] | None = None,
        donate_argnums: int | Sequence[int] | None = None,
        donate_argnames: str | Iterable[str] | None = None,
        keep_unused: bool = False, device: Any = None, backend: str | None = None,
        inline: bool = False, compiler_options: dict[str, Any] | None = None,
    ) -> Callable[[Callable[H, R]], Jitted[H, R]]: ...
    def jit(*args: Any, **kwargs: Any) -> Any:
        """The same object as `jax.jit`."""

    @overload
    def value_and_grad(
        fun: Callable[Concatenate[P, H], tuple[R, A]],
        argnums: Literal[0] = 0, *, has_aux: Literal[True],
        holomorphic: bool = False, allow_int: bool = False, reduce_axes: Sequence[Hashable] = (),
    ) -> Callable[Concatenate[P, H], tuple[tuple[R, A], P]]: ...
    @overload
    def value_and_grad(
        fun: Callable[Concatenate[P, H], R],
        argnums: Literal[0] = 0, has_aux: Literal[False] = False,
        holomorphic: bool = False, allow_int: bool = False, reduce_axes: Sequence[Hashable] = (),
    ) -> Callable[Concatenate[P, H], tuple[R, P]]: ...
    @overload
    def value_and_grad(
        fun: Callable[Concatenate[P, H], R], argnums: int | Sequence[int],
        has_aux: Literal[False] = False,
        holomorphic: bool = False, allow_int: bool = False, reduce_axes: Sequence[Hashable] = (),
    ) -> Callable[Concatenate[P, H], tuple[R, Any]]: ...
    @overload
    def value_and_grad(
        fun: Callable[Concatenate[P, H], tuple[R, A]], argnums: int | Sequence[int] = 0, *,
        has_aux: bool,
        holomorphic: bool = False, allow_int: bool = False, reduce_axes: Sequence[Hashable] = (),
    ) -> Callable[Concatenate[P, H], tuple[Any, Any]]: ...
    def value_and_grad(*args: Any, **kwargs: Any) -> Any:
        """The same object as `jax.value_and_grad`."""

    @overload
    def grad(
        fun: Callable[Concatenate[P, H], tuple[R, A]],
        argnums: Literal[0] = 0, *, has_aux: Literal[True],
        holomorphic: bool = False, allow_int: bool = False, reduce_axes: Sequence[Hashable] = (),
    ) -> Callable[Concatenate[P, H], tuple[P, A]]: ...
    @overload
    def grad(
        fun: Callable[Concatenate[P, H], R],
        argnums: Literal[0] = 0, has_aux: Literal[False] = False,
        holomorphic: bool = False, allow_int: bool = False, reduce_axes: Sequence[Hashable] = (),
    ) -> Callable[Concatenate[P, H], P]: ...
    @overload
    def grad(
        fun: Callable[Concatenate[P, H], R], argnums: int | Sequence[int],
        has_aux: Literal[False] = False,
        holomorphic: bool = False, allow_int: bool = False, reduce_axes: Sequence[Hashable] = (),
    ) -> Callable[Concatenate[P, H], Any]: ...
    @overload
    def grad(
        fun: Callable[Concatenate[P, H], tuple[R, A]], argnums: int | Sequence[int] = 0, *,
        has_aux: bool,
        holomorphic: bool = False, allow_int: bool = False, reduce_axes: Sequence[Hashable] = (),
    ) -> Callable[Concatenate[P, H], Any]: ...
    def grad(*args: Any, **kwargs: Any) -> Any:
        """The same object as `jax.grad`."""

    def vmap(
        fun: Callable[H, R], in_axes: int | None | Sequence[Any] = 0, out_axes: Any = 0,
        axis_name: Hashable | None = None, axis_size: int | None = None,
        spmd_axis_name: Hashable | tuple[Hashable, ...] | None = None, sum_match: bool = False,
    ) -> Callable[H, R]:
        """The same object as `jax.vmap`."""
        raise NotImplementedError

    def checkpoint(
        fun: Callable[H, R], *, prevent_cse: bool | Sequence[bool] = True,
        policy: Callable[..., bool] | None = None,
        static_argnums: int | tuple[int, ...] = (), static_argnames: str | Iterable[str] = (),
    ) -> Callable[H, R]:
        """The same object as `jax.checkpoint`."""
        raise NotImplementedError
