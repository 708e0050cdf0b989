"""A plan: how the arrays of a model are sharded over a mesh, and the model sharded so.

    plan = mlax.sharding.plan(model, x, "fsdp+tensor", mesh, optimizer=optimizer)
    params, state = plan.init(rng)                                      made shard by shard
    y, state = plan.apply(params, state, x, rng)                        inside the user's step
    jax.jit(step, in_shardings=(plan.params, plan.state, plan.x), ...)

Nothing here moves an array: `jax.jit` and the compiler do. Everything but `init` needs only shapes,
so the mesh may be abstract.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from mlax import constraints
from mlax.arguments import described, read_layer, require_key
from mlax.combinators.child import layers_by_path, only_child_of
from mlax.combinators.making import shapes as shapes_of
from mlax.constraints import Constraints
from mlax.errors import message
from mlax.initializers import DRAWS_AT_ONCE
from mlax.layer import AxisName, Key, Layer, P, S
from mlax.layer import X, Y
from mlax.mesh import names_in
from mlax.outline import Model, abstract_model
from mlax.pair import require_input
from mlax.sharding.leaves import leaves_of
from mlax.sharding.rules import (
    Rules, dead_rules, first_spec, missing_axes, read_pairs, read_rules, require_output, resolve,
    wrong_outputs, wrong_spec,
)
from mlax.sharding.strategies import BATCH_AXES
from mlax.sharding.table import Shapes, bytes_by_part, printed
from mlax.taps import setting
from mlax.tree import path_of, paths


@runtime_checkable
class Optimizer(Protocol):
    """What a plan needs of an optimizer, such as one of optax."""

    @property
    def init(self) -> Callable[..., Any]:
        """The function from params to the state of the optimizer."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Plan(Generic[P, S, X, Y]):
    """How the arrays of a model are sharded over a mesh; prints as a table, in bytes per device.

    The trees of `jax.sharding.NamedSharding` are for `in_shardings` and `out_shardings` of
    `jax.jit` and for `jax.device_put`; `shapes` are for `mlax.load` and for lowering a step.
    """

    layer: Layer[P, S, X, Y]
    """The model."""
    mesh: Mesh | AbstractMesh
    """The mesh."""
    shapes: Shapes
    """Shapes, dtypes and shardings."""
    model: Model
    """The model as shapes and dtypes, on no mesh."""
    used: dict[str, tuple[PartitionSpec, str]]
    """By the path of each parameter: its spec while its layer runs, and the path of the layer."""
    inside: Constraints
    """The shardings of arrays inside the model."""

    @property
    def params(self) -> Any:
        """The sharding of each parameter, and so of its gradient."""
        return _shardings(self.shapes.params)

    @property
    def state(self) -> Any:
        """The sharding of each variable."""
        return _shardings(self.shapes.state)

    @property
    def x(self) -> Any:
        """The sharding of each array in x."""
        return _shardings(self.shapes.x)

    @property
    def y(self) -> Any:
        """The sharding of each array in y; on automatic axes the compiler may split it further."""
        return _shardings(self.shapes.y)

    @property
    def optimizer(self) -> Any:
        """The sharding of each array in the state of the optimizer; None without one."""
        return _shardings(self.shapes.optimizer)

    def init(self, rng: Key) -> tuple[P, S]:
        """Return the params and state of the layer, each array made on the devices that hold it.

        No device ever holds the whole of a sharded array, provided that its initializer can be
        computed in parts; of those in `jax.nn.initializers`, the orthogonal ones cannot.
        """
        if isinstance(self.mesh, AbstractMesh):
            way_out = "plan with jax.make_mesh"
            raise ValueError(message("plan.init", "mesh", "one of devices", "no devices", way_out))
        require_key("plan.init", rng)
        made: tuple[P, S] = self._make(rng)
        return made

    @functools.cached_property
    def _make(self) -> Any:
        """The compiled `init`."""
        @functools.partial(jax.jit, out_shardings=(self.params, self.state))
        def init(rng: Key) -> tuple[P, S]:
            with setting(DRAWS_AT_ONCE, True):
                return self.layer.init(rng, self.model.x)

        return init

    def apply(
        self, params: P, state: S, x: X, rng: Key | None = None, inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> tuple[Y, S]:
        """Return the output of the layer and its state, computed as planned.

        x is sharded, params are gathered where their layer runs, one copy of a `mlax.repeat` at a
        time, and outputs are sharded as the rules and the layers themselves ask. On a mesh with
        explicit axes, y and state have the types that the plan says; inside, axes are automatic.
        It is meant to be called within `jax.jit`: alone, it is compiled at each call.
        """
        def planned(params: P, state: S, x: X, rng: Key | None) -> tuple[Y, S]:
            with constraints.constraining(self.inside):
                x = jax.tree.map(lax.with_sharding_constraint, x, _specs(self.shapes.x))
                apply: Callable[..., tuple[Y, S]] = self.layer.apply
                if only_child_of(self.model.child.config) is None:
                    apply = constraints.gathering(apply)
                return apply(params, state, x, rng, inference_mode, batch_axis_name)

        self._require_fitting(params, x)
        is_staged = isinstance(jnp.asarray(0), Tracer)
        run: Any = functools.partial(self._run, planned)
        result: tuple[Y, S] = (run if is_staged else jax.jit(run))(params, state, x, rng)
        return result

    def _require_fitting(self, params: Any, x: Any) -> None:
        """Require params as planned, and an x that can be sharded as planned, of any batch size."""
        planned_params = self.shapes.params  # sorted, as leaves are; params may not be
        own = zip(paths(planned_params), *map(jax.tree.leaves, (params, planned_params)))
        for path, leaf, like in own:
            if jnp.shape(leaf) != like.shape:
                wanted, got = f"of shape {like.shape}, as planned", f"shape {jnp.shape(leaf)}"
                way_out = "plan with the model that they belong to"
                raise ValueError(message("plan.apply", f"params.{path}", wanted, got, way_out))
        if jax.tree.structure(x) != jax.tree.structure(self.shapes.x):
            wanted, got = "structured as it was planned", f"{jax.tree.structure(x)}"
            way_out = "plan with an x like it"
            raise ValueError(message("plan.apply", "x", wanted, got, way_out))
        planned_x = {"x": self.shapes.x}
        leaves = zip(paths(planned_x), *map(jax.tree.leaves, (x, planned_x)))
        for path, leaf, planned in leaves:
            if jnp.ndim(leaf) != planned.ndim:
                wanted, got = f"with {planned.ndim} axes, as planned", f"shape {jnp.shape(leaf)}"
                raise ValueError(message("plan.apply", path, wanted, got, "plan with an x like it"))
            spec, sizes = planned.sharding.spec, self.mesh.shape
            for finding in wrong_spec(path, jnp.shape(leaf), spec, sizes):
                raise ValueError(f"plan.apply: {finding}; pad it, or plan with another x_spec")

    def _run(self, planned: Callable[..., Any], params: P, state: S, x: X, rng: Any) -> Any:
        """Return the result of a function that constrains the arrays in it, sharded as planned."""
        y_specs, state_specs = _specs(self.shapes.y), _specs(self.shapes.state)
        mesh = self.mesh if isinstance(self.mesh, AbstractMesh) else self.mesh.abstract_mesh
        with jax.sharding.use_abstract_mesh(mesh):
            if AxisType.Explicit in mesh.axis_types:
                typed: Any = jax.sharding.auto_axes(planned, out_sharding=(y_specs, state_specs))
                return typed(params, state, x, rng)
            y, after = planned(params, state, x, rng)
            if self.inside.outputs("") is None:
                y_specs = jax.tree.map(_with_free_axes, y_specs, y)
            if jax.tree.structure(after) == jax.tree.structure(self.shapes.state):  # not in a tap
                after = jax.tree.map(lax.with_sharding_constraint, after, state_specs)
            return jax.tree.map(lax.with_sharding_constraint, y, y_specs), after

    def shardings_of(self, tree: Any) -> Any:
        """Return the sharding of each array of a tree whose paths end as those of params do.

        Such is the state of an optimizer, or its shapes. An array that matches no parameter in
        path and shape is replicated.
        """
        return _shardings_like(self.shapes.params, tree, self.mesh)

    def bytes_by_part(self) -> dict[str, int]:
        """Return the bytes on each device of what a training step needs, as the table says."""
        names = self.mesh.axis_names
        automatic = AbstractMesh(self.mesh.axis_sizes, names, (AxisType.Auto,) * len(names))
        apply = dataclasses.replace(self, mesh=automatic).apply
        return bytes_by_part(self.shapes, self.model, automatic, apply)

    def __str__(self) -> str:
        return printed(self.shapes, self.mesh, self.bytes_by_part())

    __repr__ = __str__


def plan(
    layer: Layer[P, S, X, Y], x: Any, rules: Rules, mesh: Mesh | AbstractMesh, *,
    x_spec: Any = None, outputs: Sequence[tuple[str, PartitionSpec]] = (),
    gathered: Sequence[str] | None = None, optimizer: Optimizer | None = None,
) -> Plan[P, S, X, Y]:
    """Return how the arrays of a model are sharded over a mesh, by rules that are checked.

    A rule is a pattern of the paths of params, where * matches any text, and a PartitionSpec; the
    first that matches counts. A strategy is a rule for everything left, and knows our layers:

        "data"          params are replicated, and the batch is sharded
        "fsdp"          params are sharded over "data", and gathered where they are used
        "tensor"        heads, hidden features and entries of embeddings are split over "model"
        "expert"        the experts of `mlax.moe` are split over "expert"
        "fsdp+tensor"   several at once

    With each of them the copies in a `mlax.pipeline` are split over its stages. What a strategy
    cannot divide, such as 6 heads over 4 devices, it leaves whole, as the printed plan shows;
    "fsdp" stores it sharded over all axes of the strategy anyway. Variables are replicated,
    except for caches of attention and the weights in `mlax.lora` and `mlax.quantized`, unless a
    rule for "variables.*" says otherwise.

    Args:
        layer: any layer, with a batch axis: see `mlax.batched`.
        x: an input of the whole batch, or its shapes and dtypes.
        rules: a strategy, or a list of rules, of which the last may be a strategy.
        mesh: a mesh, which needs no devices if abstract.
        x_spec: how x is sharded: a PartitionSpec for all arrays, or a tree of them like x. None
            splits the leading axis over those of the axes "replica", "data" and "expert" that the
            mesh has.
        outputs: rules for outputs of layers, by the paths of the layers; "" is the model, whose
            output is sharded like the batch otherwise. A spec is for the array that the layer
            returns: of one example in `mlax.batched`. Other layers ask by `out_sharding`.
        gathered: mesh axes over which your own rules shard params that are gathered where they are
            used. None means those of x_spec, except "expert".
        optimizer: one whose state is planned too, such as one of optax.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: the rules do not fit: arrays that match none, rules that match none or come too
            late, unknown mesh axes, axes used twice, lengths that they do not divide. The error
            lists them all, by path.

    >>> import jax, jax.numpy as jnp, mlax
    >>> from jax.sharding import AbstractMesh
    >>> model = mlax.series(mlax.dense(512), mlax.f(jax.nn.relu), mlax.dense(256))
    >>> x = jax.ShapeDtypeStruct((1024, 256), jnp.float32)
    >>> mlax.sharding.plan(model, x, "fsdp+tensor", AbstractMesh((4, 2), ("data", "model")))
    parameter                         whole                split over          bytes
    --------------------------------------------------------------------------------
    0.kernel                          f32[256,512]         data, model         65.5K
    0.bias                            f32[512]             model+data            256
    2.kernel                          f32[512,256]         model+data, -       65.5K
    2.bias                            f32[256]             data+model            128
    <BLANKLINE>
    on each of 8 devices (data 4, model 2)
      params                       131K
      gradients                    131K
      optimizer                       0
      variables                       0
      x                            262K
      activations (estimate)      1.44M
      sum                         1.97M
    """
    read_layer("plan", "layer", layer)
    require_input("plan", x)
    if not isinstance(mesh, Mesh | AbstractMesh):
        raise TypeError(message("plan", "mesh", "a Mesh or an AbstractMesh", described(mesh)))
    if len(set(mesh.axis_types)) > 1:
        wanted = "one with axes that are all explicit, or all automatic"
        raise ValueError(message("plan", "mesh", wanted, f"{mesh.axis_types}"))
    if min(mesh.axis_sizes, default=1) < 1 or len(set(mesh.axis_names)) < len(mesh.axis_names):
        wanted, got = "one with distinct axis names and at least one device", f"{mesh}"
        raise ValueError(message("plan", "mesh", wanted, got))
    read, sizes = read_rules("plan", rules), mesh.shape
    of_outputs = read_pairs("plan", "outputs", outputs)
    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), shapes_of(x))
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):  # whatever mesh is set
        model = abstract_model("plan", layer, x)
    findings = list(missing_axes(read, sizes))

    batch_axes = PartitionSpec(tuple(name for name in BATCH_AXES if name in sizes) or None)
    x_specs = _specs_like(model.x, batch_axes if x_spec is None else x_spec)
    for path, leaf, spec in zip(paths({"x": model.x}), jax.tree.leaves(model.x), x_specs):
        findings += wrong_spec(path, leaf.shape, spec, sizes)
    batch = PartitionSpec(*next(filter(None, x_specs), ())[:1])
    if gathered is None:
        gathered = [name for spec in x_specs for name in names_in(spec) if name != "expert"]
    elif isinstance(gathered, str) or not set(gathered) <= set(sizes):
        wanted = f"a tuple of mesh axes, {', '.join(map(repr, sizes))}"
        raise ValueError(message("plan", "gathered", wanted, repr(gathered)))
    if optimizer is not None and not callable(getattr(optimizer, "init", None)):
        wanted = "one with a function init"
        raise TypeError(message("plan", "optimizer", wanted, described(optimizer)))

    params, variables = leaves_of(model)
    specs_of_params, specs_of_variables = (
        resolve(read, leaves, batch, gathered, sizes, findings) for leaves in (params, variables)
    )
    findings += dead_rules(read, [leaf.path for leaf in (*params, *variables)])
    if all(leaf.owner.expert_axis is None for leaf in params) and any(
        isinstance(rule, frozenset) and "expert" in rule for rule in read
    ):
        findings.append("expected a mlax.moe for 'expert', got none in the model")
    layers = [".".join(path) for path, _ in layers_by_path(model.child)]
    findings += wrong_outputs(of_outputs, layers, sizes)
    y_specs = []
    for leaf in jax.tree.leaves(model.output):
        is_batched = leaf.shape[:1] == jax.tree.leaves(model.x)[0].shape[:1] != ()
        asked = first_spec(of_outputs, "")
        if asked is not None:
            findings += wrong_spec("y", leaf.shape, asked, sizes)
        y_specs.append(asked or (batch if asked is None and is_batched else PartitionSpec()))
    if findings:
        text = "".join(f"\n  {finding}" for finding in findings)
        raise ValueError(f"plan: the rules do not fit the model and the mesh:{text}")

    def placed(tree: Any, specs: Iterable[PartitionSpec]) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        shardings = (NamedSharding(mesh, spec) for spec in specs)
        return structure.unflatten(map(_with_sharding, leaves, shardings))

    placed_params = placed(model.params, (specs.stored for specs in specs_of_params))
    state = model.child.state(placed(model.variables, (s.stored for s in specs_of_variables)))
    shapes = Shapes(
        placed_params, state, placed(model.x, x_specs), placed(model.output, y_specs), None
    )
    if optimizer is not None:
        found = jax.eval_shape(optimizer.init, model.params)
        shardings = _shardings_like(placed_params, found, mesh)
        shapes = shapes._replace(optimizer=jax.tree.map(_with_sharding, found, shardings))
    used = dict[str, tuple[PartitionSpec, str]]()
    moved = dict[tuple[str, ...], dict[str, PartitionSpec]]()
    for leaf, specs in zip(params, specs_of_params, strict=True):
        used[leaf.path] = specs.used, ".".join(leaf.owner.path)
        if (*specs.stored, *[None] * (len(specs.used) - len(specs.stored))) != (*specs.used,):
            moved.setdefault(leaf.owner.path, {})[".".join(leaf.name)] = specs.used
    roles = {"experts": ("expert",), "tokens": tuple(n for n in gathered if n != "expert")}
    roles = {role: names for role, names in roles.items() if names and {*names} <= {*sizes}}
    require = functools.partial(require_output, sizes)
    inside = Constraints(moved, functools.partial(first_spec, (*of_outputs,)), require, roles)
    return Plan(layer, mesh, shapes, model, used, inside)


def _specs_like(x: Any, specs: Any) -> list[PartitionSpec]:
    """Return the spec of each array of x, from one for all or a tree of them."""
    if isinstance(specs, PartitionSpec):
        return [specs if leaf.shape else PartitionSpec() for leaf in jax.tree.leaves(x)]
    found = jax.tree.leaves(specs, is_leaf=lambda node: isinstance(node, PartitionSpec))
    is_spec = all(isinstance(spec, PartitionSpec) for spec in found)
    if not is_spec or len(found) != len(jax.tree.leaves(x)):
        wanted, way_out = "a PartitionSpec, or a tree of them like x", "P() keeps an array whole"
        raise TypeError(message("plan", "x_spec", wanted, repr(specs), way_out))
    return found


def _with_sharding(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _shardings(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def _specs(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding.spec, tree)


def _shardings_like(params: Any, tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Return the sharding of each array of a tree by the parameter that its path ends with."""
    known = {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    whole = NamedSharding(mesh, PartitionSpec())

    def sharding(path: tuple[Any, ...], leaf: Any) -> Any:
        for start in range(len(path) + 1):
            like = known.get(path_of(path[start:]))
            if like is not None and like.shape == leaf.shape:
                return like.sharding
        return whole

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _with_free_axes(spec: PartitionSpec, leaf: Any) -> PartitionSpec:
    """Return a spec that leaves the axes after its own to the compiler."""
    free = [PartitionSpec.UNCONSTRAINED] * (leaf.ndim - len(spec))
    return PartitionSpec(*spec, *free)
