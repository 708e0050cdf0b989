"""What a module may hold, and what a call that fails leaves behind."""

import abc
import copy
import dataclasses
import functools
import pickle
import types
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlax import Module, Parameter, nn
from mlax.holdings import walk
from mlax.layer import AxisName
from mlax.structure import Node, flatten

KEY = jax.random.key(0)
X = jnp.array([1.0, -2.0, 3.0])
T = TypeVar("T")


class Holder(Module):
    """Returns x, and holds what it is given."""

    def __init__(self, held: Any = None) -> None:
        super().__init__()
        self.held = held

    def forward(
        self, x: Any, rng: None = None, inference_mode: bool = False, batch_axis_name: AxisName = ()
    ) -> Any:
        return x


def structure(tree: Any) -> Any:
    """Return the tree structure."""
    return jax.tree.structure(tree)


def initialized(module: Module) -> Module:
    """Return the module, which needs no setup."""
    module.initialized = True
    return module


USES: dict[str, Callable[[Module], Any]] = {
    "flatten": jax.tree.leaves,
    "call": lambda module: module(X, None),
    "partition": lambda module: initialized(module).partition(),
    "within another": lambda module: nn.Series([module])(X, None),
}
for_each_use = pytest.mark.parametrize("use", USES.values(), ids=USES.keys())


# Nothing is silently untrained


@for_each_use
@pytest.mark.parametrize(
    "held",
    [
        lambda: [nn.Linear(KEY, 2)],
        lambda: (Parameter(True, X),),
        lambda: {"head": nn.Linear(KEY, 2)},
        lambda: {"depth": 2, "heads": [(nn.F(jnp.sin), 1)]},
        lambda: [X],
        lambda: {"weights": np.ones(2)},
        lambda: ((X, 1),),
        lambda: type("Stack", (list,), {})([nn.Linear(KEY, 2)]),
        lambda: {nn.F(jnp.sin)},
    ],
    ids=[
        "list", "parameter", "dict", "nested", "array", "numpy array", "nested array",
        "kind of list", "set",
    ],
)
def test_a_plain_container_holds_nothing_to_train(held: Any, use: Callable[[Module], Any]) -> None:
    wanted = r"^Holder: expected held, which is static, .* hold them in Parameter\(None, \[...\]\)"
    with pytest.raises(TypeError, match=wanted):
        use(Holder(held()))


def test_setup_makes_no_such_container_either() -> None:
    class Late(Holder):
        def setup(self, x: Any) -> None:
            self.held = [nn.Linear(KEY, 2)]

    module = Late()
    with pytest.raises(TypeError, match="^Late: expected held"):
        module(X, None)
    assert not module.initialized
    assert module.held is None


@for_each_use
@pytest.mark.parametrize(
    "held",
    [KEY, jax.random.PRNGKey(0), X, np.ones(2), [KEY, KEY], (jax.random.PRNGKey(0),), [1, "a"]],
    ids=["key", "raw key", "array", "numpy array", "keys", "raw keys", "plain"],
)
def test_keys_and_constant_arrays_are_allowed(held: Any, use: Callable[[Module], Any]) -> None:
    use(Holder(held))


def test_an_array_does_not_replace_a_parameter() -> None:
    class Gain(Holder):
        def __init__(self) -> None:
            super().__init__()
            self.gain: Any = Parameter(True)

        def setup(self, x: jax.Array) -> None:
            self.gain = jnp.ones(x.shape)

    wanted = r"^Gain: expected gain to be a Parameter, got an? .*array .*; set self.gain.data"
    module = Gain()
    for setup in (module, jax.jit(lambda x, rng: Gain()(x, rng)[0])):
        with pytest.raises(TypeError, match=wanted):
            setup(X, None)
    assert isinstance(module.gain, Parameter)
    layer: Any = nn.Linear(KEY, 2)
    with pytest.raises(TypeError, match="^Linear: expected linear_kernel to be a Parameter"):
        layer.linear_kernel = np.ones((3, 2))


@for_each_use
def test_a_parameter_needs_to_know_if_it_is_trained(use: Callable[[Module], Any]) -> None:
    wrong: Any = X
    wanted = r"^\w+\.\S*held: expected trainable to be True, .*array.*Parameter\(True, array\)"
    with pytest.raises(TypeError, match=wanted):
        use(Holder(Parameter(wrong)))
    with pytest.raises(TypeError, match="^Parameter: expected trainable"):
        jax.tree.leaves(Parameter(wrong))


def test_a_container_of_modules_has_no_arrays_of_its_own() -> None:
    module = Holder(Parameter(None, [Parameter(True, X), X]))
    with pytest.raises(TypeError, match=r"^Holder.held: expected modules and parameters in Param"):
        module(X, None)


def test_a_parameter_belongs_to_an_instance() -> None:
    with pytest.raises(TypeError, match=r"^Shared: expected .*instances, got gain of the class"):
        type("Shared", (Holder,), {"gain": Parameter(True, X)})
    type("Shared", (Holder,), {"activation": nn.F(jnp.sin)})


def test_a_kind_of_parameter_is_a_pytree() -> None:
    class Positive(Parameter):
        pass

    module = Holder(Positive(True, X))
    module.initialized = True
    trained, rest = module.partition()
    assert type(trained.held) is type(rest.held) is Positive
    np.testing.assert_array_equal(trained.combine(rest).held.data, X)
    assert rest.held.data is None


# One place for each parameter


class Pair(Holder):
    """Two attributes."""

    def __init__(self, a: Any, b: Any) -> None:
        super().__init__()
        self.a, self.b = a, b


LINEAR = nn.Linear(KEY, 2)


@for_each_use
@pytest.mark.parametrize(
    ("make", "places"),
    [
        (lambda layer: Pair(layer, layer), "a.linear_kernel and .*b.linear_kernel"),
        (lambda layer: nn.Series([layer, layer]), r"layers.data\[0\].* and .*layers.data\[1\]"),
        (lambda layer: Pair(layer, Holder(layer)), "a.linear_kernel and .*b.held.linear_kernel"),
        (lambda layer: Pair(layer.linear_kernel, layer), "a and .*b.linear_kernel"),
    ],
    ids=["attributes", "series", "deeper", "parameter"],
)
def test_a_module_at_two_places_raises(
    make: Callable[[Any], Module], places: str, use: Callable[[Module], Any]
) -> None:
    wanted = f"expected each parameter in one place, got one at .*{places}.*; to share"
    with pytest.raises(ValueError, match=wanted):
        use(make(nn.Linear(KEY, 2)))


def test_a_module_without_parameters_may_be_at_two_places() -> None:
    relu = nn.F(jax.nn.relu)
    y, module = nn.Series([relu, nn.F(jnp.negative), relu])(X, None)
    np.testing.assert_array_equal(y, [0, 0, 0])
    assert jax.tree.leaves(module) == []


def test_a_module_is_shared_by_two_calls() -> None:
    class Siamese(Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(KEY, 2)

        def forward(
            self, x: Any, rng: None = None, inference_mode: bool = False,
            batch_axis_name: AxisName = (),
        ) -> Any:
            left, self.layer = self.layer(x, None)
            right, self.layer = self.layer(2 * x, None)
            return left + right

    _, module = Siamese()(X, None)
    grads = jax.grad(lambda module: module(X, None)[0].sum())(module)
    np.testing.assert_allclose(grads.layer.linear_kernel.data, np.outer(3 * X, np.ones(2)))


# A call that fails


class Failing(Module):
    """Changes everything that a module has, and fails if it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: bool = True
        self.calls = Parameter(False, {"count": jnp.zeros(())})
        self.layers = Parameter(None, [nn.Linear(KEY, 3), nn.ZNorm(KEY, "all")])
        self.late: Any = None

    def forward(
        self, x: Any, rng: None = None, inference_mode: bool = False, batch_axis_name: AxisName = ()
    ) -> Any:
        self.calls.data["count"] += 1
        for i, layer in enumerate(self.layers.data):
            x, self.layers.data[i] = layer(x, None, inference_mode, batch_axis_name)
        self.late = nn.Bias(KEY, -1)
        self.layers.data.append(nn.F(jnp.sin))
        if self.fails:
            raise KeyboardInterrupt
        self.layers.data.pop()
        return x


@pytest.mark.parametrize("is_set_up", [False, True])
def test_a_call_that_fails_changes_nothing(is_set_up: bool) -> None:
    module = Failing()
    if is_set_up:
        module.fails = False
        module(X, None)
        module.fails, module.late = True, None
    before, leaves = structure(module), jax.tree.leaves(module)
    parts = [module.layers, module.layers.data, *module.layers.data, module.calls.data]
    with pytest.raises(KeyboardInterrupt):
        module(X, None)
    assert structure(module) == before
    assert all(a is b for a, b in zip(jax.tree.leaves(module), leaves, strict=True))
    after = [module.layers, module.layers.data, *module.layers.data, module.calls.data]
    assert all(a is b for a, b in zip(after, parts, strict=True))
    module.fails = False
    y, _ = module(X, None)
    np.testing.assert_allclose(jnp.mean(y), 0, atol=1e-5)


def test_a_failed_apply_changes_nothing() -> None:
    module = Failing()
    module.fails = False
    module(X, None)
    module.fails = True
    count = module.calls.data["count"]
    with pytest.raises(KeyboardInterrupt):
        module.apply(X, None)
    assert module.calls.data["count"] is count


# A module that a traced function closes over


def net() -> nn.Series:
    """Return a model with statistics."""
    return nn.Series([nn.Linear(KEY, 2), nn.ZNorm(KEY, "all")])


@pytest.mark.parametrize("around", [jax.jit, jax.grad, jax.eval_shape], ids=["jit", "grad", "eval"])
def test_the_first_call_in_a_traced_function_raises(around: Any) -> None:
    module = net()

    def call(x: jax.Array) -> jax.Array:
        return jnp.sum(module(x, None)[0])

    wanted = "^(Linear|ZNorm): expected a module that the call changes to be an argument of the traced"
    with pytest.raises(ValueError, match=wanted):
        around(call, X) if around is jax.eval_shape else around(call)(X)
    assert not module.initialized
    y, module = module(X, None)
    assert y.shape == (2,)


@pytest.mark.parametrize(
    "obtained",
    [
        lambda module: module,
        lambda module: jax.tree.map(lambda leaf: leaf, module),
        lambda module: jax.jit(lambda module: module)(module),
        copy.deepcopy,
        lambda module: pickle.loads(pickle.dumps(module)),
    ],
    ids=["as made", "mapped", "from jit", "copied", "reloaded"],
)
def test_statistics_in_a_traced_function_raise(obtained: Callable[[Any], Any]) -> None:
    module = obtained(net()(X, None)[1])
    before = jax.tree.leaves(module)
    call = jax.jit(lambda x, inference_mode: module(x, None, inference_mode)[0], static_argnums=1)
    with pytest.raises(ValueError, match="^ZNorm: expected .*moving_mean would become a traced"):
        call(X, False)
    assert all(a is b for a, b in zip(jax.tree.leaves(module), before, strict=True))
    expected, _ = module(X, None, True)
    np.testing.assert_allclose(call(X, True), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "obtained",
    [
        lambda module: jax.tree.map(lambda leaf: leaf, module),
        copy.deepcopy,
        lambda module: pickle.loads(pickle.dumps(module)),
    ],
    ids=["mapped", "copied", "reloaded"],
)
def test_the_first_call_of_a_copy_in_a_traced_function_raises(
    obtained: Callable[[Any], Any],
) -> None:
    module = obtained(net())
    with pytest.raises(ValueError, match="^Linear: expected a module that the call changes"):
        jax.jit(lambda x: module(x, None)[0])(X)
    module(X, None)


class Tabled(Holder):
    """Makes a table as a plain attribute in setup."""

    def setup(self, x: jax.Array) -> None:
        self.held = jnp.sin(x)

    def forward(
        self, x: Any, rng: None = None, inference_mode: bool = False, batch_axis_name: AxisName = ()
    ) -> Any:
        return x + self.held


def test_a_table_made_in_a_traced_function_raises() -> None:
    module = Tabled()
    with pytest.raises(ValueError, match="^Tabled: expected .*, whose held would become a traced"):
        jax.jit(lambda x: module(x, None)[0])(X)
    y, _ = module(X, None)
    np.testing.assert_allclose(y, X + np.sin(X), rtol=1e-6)
    with pytest.raises(TypeError, match=r"^Tabled: expected held .*; make it outside the func"):
        jax.jit(lambda module, x: module(x, None))(Tabled(), X)


def test_attributes_may_be_restored_by_hand() -> None:
    class Restored(Holder):
        def __setstate__(self, state: dict[str, Any]) -> None:
            self.__dict__.update(state)

    module = initialized(Restored(Parameter(True, X)))
    for other in (copy.copy(module), copy.deepcopy(module)):
        assert structure(other) == structure(module)


def test_what_is_made_or_copied_in_a_traced_function_may_change_there() -> None:
    module = net()(X, None)[1]

    @jax.jit
    def call(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        copied = jax.tree.map(lambda leaf: leaf, module)
        return copied(x, None)[0], net()(x, None)[0]

    for y in call(X):
        np.testing.assert_allclose(y.mean(), 0, atol=1e-5)
    assert not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(module))


def test_a_batch_sets_up_a_module_from_outside() -> None:
    module = net()
    call = jax.vmap(module.__call__, (0, None, None, None), (0, None), axis_name="N")
    _, after = call(jnp.stack([X, -X]), None, False, "N")
    assert after is not module
    assert structure(after) == structure(module)
    np.testing.assert_allclose(module.layers.data[1].moving_mean.data, 0, atol=1e-6)


# Other bases


class Abstract(Holder, abc.ABC):
    """A module that is abstract."""


class Sized(Holder, Generic[T]):
    """A module with a type parameter."""


class Named(Holder, dict):  # type: ignore[type-arg,misc]  # what is tested
    """A module that is a dict."""


class Fault(Holder, Exception):  # type: ignore[misc]  # what is tested
    """A module that can be raised."""


@pytest.mark.parametrize("cls", [Abstract, Sized, Named, Fault])
def test_a_module_may_have_other_bases(cls: Any) -> None:
    module = cls(Parameter(True, X))
    if cls is Named:
        module["name"] = "held"
    y, module = module(X, None)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, module)
    assert type(doubled) is cls
    np.testing.assert_array_equal(doubled.held.data, 2 * X)
    assert vars(doubled).keys() == vars(module).keys() == {"initialized", "held"}
    assert module != doubled
    assert len({module, doubled}) == 2
    for other in (doubled, copy.copy(module), copy.deepcopy(module), jax.jit(lambda m: m)(module)):
        assert structure(other) == structure(module)
        assert cls is not Named or dict(other) == {"name": "held"}
    if cls is Fault:
        with pytest.raises(Fault):
            raise module
    else:
        assert structure(pickle.loads(pickle.dumps(module))) == structure(module)


@for_each_use
def test_a_forgotten_constructor_is_named(use: Callable[[Module], Any]) -> None:
    class Forgetful(Holder):
        def __init__(self) -> None:
            self.held = None

    if use is USES["partition"]:
        use = Module.partition
    with pytest.raises(AttributeError, match=r"^Forgetful: expected super\(\).__init__\(\)"):
        use(Forgetful())


def test_vars_holds_every_attribute() -> None:
    module = nn.Linear(KEY, 2)
    attributes = vars(module)
    module(X, None)
    assert attributes is vars(module)
    assert attributes["out_features"] == 2
    assert list(vars(jax.tree.map(lambda leaf: leaf, module))) == list(attributes)
    assert all(f"{name}=" in repr(module) for name in attributes)


@dataclasses.dataclass
class Record:
    """Something that holds a module."""

    part: Any


@for_each_use
@pytest.mark.parametrize(
    "hold", [Record, lambda part: types.SimpleNamespace(part=part), functools.partial],
    ids=["dataclass", "namespace", "partial"],
)
def test_a_module_in_a_record_raises(hold: Callable[[Any], Any], use: Callable[[Any], Any]) -> None:
    wanted = "Holder: expected held, which is static, to hold no modules, .* with a Linear in it"
    with pytest.raises(TypeError, match=wanted):
        use(Holder(hold(nn.Linear(KEY, 2))))
    use(Holder(hold(jnp.sin)))


@for_each_use
@pytest.mark.parametrize("trainable", [True, False])
def test_modules_in_a_leaf_raise(trainable: bool, use: Callable[[Any], Any]) -> None:
    wanted = rf"held: expected arrays in Parameter\({trainable}, .*got a Linear; .*Parameter\(None"
    for held in ([nn.Linear(KEY, 2)], nn.Linear(KEY, 2)):
        with pytest.raises(TypeError, match=wanted):
            use(Holder(Parameter(trainable, held)))


def test_slots_raise() -> None:
    with pytest.raises(TypeError, match="^Slotted: expected attributes in __dict__, got __slots__"):

        class Slotted(Holder):
            __slots__ = ("part",)


def test_a_module_that_holds_itself_raises() -> None:
    module = Holder(nn.Series([]))
    module.held.layers.data.append(module)
    with pytest.raises(ValueError, match="^Holder: expected a module that does not hold itself"):
        module(X, None)


@pytest.mark.parametrize("change", ["replace", "append"])
def test_a_layer_that_was_never_set_up_is_not_lost(change: str) -> None:
    _, model = nn.Series([nn.Linear(KEY, 4), nn.Linear(KEY, 2)])(X, None)
    if change == "replace":
        model.layers.data[1] = nn.Linear(KEY, 3)
    else:
        model.layers.data.append(nn.Linear(KEY, 3))

    def step(model: nn.Series) -> nn.Series:
        trained, rest = model.partition()
        _, called = trained.combine(rest)(X, None)
        return trained.combine(called.partition()[1])

    index = 1 if change == "replace" else 2
    wanted = rf"^Series.combine: expected layers.data\[{index}\] to be set up, .*; call the module"
    for run in (step, jax.jit(step)):
        with pytest.raises(ValueError, match=wanted):
            run(model)
    _, model = model(X, None)
    assert structure(jax.jit(step)(model)) == structure(model)


@pytest.mark.parametrize(
    ("forward", "got"),
    [
        (lambda self, x: x, r"forward\(x\)"),
        (lambda self, x, rng=None: x, r"forward\(x, rng=None\)"),
    ],
)
def test_a_forward_of_another_signature_is_told(forward: Any, got: str) -> None:
    module = type("Own", (Holder,), {"forward": forward})()
    with pytest.raises(TypeError, match=rf"^Own: expected forward\(self, x, rng=.*, got {got};"):
        module(X, None)


def test_wrong_layers_that_are_added_later_are_told() -> None:
    for added, wanted in (
        (jax.nn.relu, "Series: expected layers to be modules, got relu; make it a module with"),
        (None, "Series: expected layers to be modules, got None"),
    ):
        _, model = nn.Series([nn.Linear(KEY, 2)])(X, None)
        model.layers.data.append(added)
        with pytest.raises(TypeError, match=wanted):
            model(X, None)
    _, model = nn.Series([nn.Linear(KEY, 2)])(X, None)
    model.layers.data = (nn.Linear(KEY, 2),)
    with pytest.raises(TypeError, match="^Series: expected layers.data to be a list of modules"):
        model(X, None)
    with pytest.raises(TypeError, match="^F: expected train_fn to be no module, got a Linear; hold"):
        nn.F(nn.Linear(KEY, 2))


def test_a_forward_in_another_order_is_told() -> None:
    def forward(self: Any, x: Any, inference_mode: bool = False, rng: Any = None) -> Any:
        return x

    with pytest.raises(TypeError, match=r"^Own: expected forward\(self, x, rng, .*, got forward\(self"):
        type("Own", (Holder,), {"forward": forward})


# Attributes that are made when something asks for them


class Fixed(nn.Linear):
    """Hides a hyperparameter of the instance behind one of the class."""

    out_features = 7


class Magic(nn.Linear):
    """Answers for attributes that it does not have."""

    def __getattr__(self, name: str) -> Any:
        if name == "magic":
            return 42
        raise AttributeError(name)


class Direct(nn.Linear):
    """Sets attributes in its own way."""

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


class Mixed(abc.ABC, nn.Linear):
    """Has another class in front."""

    @property
    def twice(self) -> int:
        """Return a number that depends on a hyperparameter."""
        return 2 * self.out_features


def made_by_jax(cls: Any) -> Any:
    """Return a module as jax makes it, of which nothing was read yet."""
    return jax.tree.map(lambda leaf: leaf, cls(KEY, 2)(X, None)[1])


@pytest.mark.parametrize("cls", [nn.Linear, Fixed, Magic, Direct, Mixed])
def test_attributes_of_a_module_that_jax_made(cls: Any) -> None:
    module = made_by_jax(cls)
    assert made_by_jax(cls).out_features == 2 and made_by_jax(cls).initialized
    assert list(vars(made_by_jax(cls))) == list(vars(cls(KEY, 2)))
    assert not hasattr(made_by_jax(cls), "nothing")
    assert hasattr(made_by_jax(cls), "magic") == (cls is Magic)
    assert cls is not Mixed or made_by_jax(cls).twice == 4
    copies: list[Any] = [copy.copy, copy.deepcopy, lambda module: module]
    for same in copies:
        assert structure(same(made_by_jax(cls))) == structure(module)
    assert structure(pickle.loads(pickle.dumps(made_by_jax(cls)))) == structure(module)
    vars(changed := made_by_jax(cls))["note"] = "kept"
    assert changed.note == "kept" and "note" in vars(changed)


@pytest.mark.parametrize("cls", [nn.Linear, Fixed, Magic, Direct, Mixed])
def test_changes_of_a_module_that_jax_made(cls: Any) -> None:
    zeros = jnp.zeros((3, 2))
    changed = made_by_jax(cls)
    changed.linear_kernel.data = zeros
    by_leaf = made_by_jax(cls)
    (parameter,) = jax.tree.leaves(by_leaf, is_leaf=lambda node: isinstance(node, Parameter))
    parameter.data, parameter.tag = zeros, "a"
    replaced = made_by_jax(cls)
    replaced.linear_kernel = Parameter(True, zeros)
    for module in (changed, by_leaf, replaced):
        np.testing.assert_array_equal(jax.tree.leaves(module)[0], zeros)
        np.testing.assert_array_equal(jax.jit(lambda m: m(X, None)[0])(module), jnp.zeros(2))
    assert jax.tree.map(jnp.sin, by_leaf).linear_kernel.tag == "a"
    jax.tree.leaves(written := made_by_jax(cls))
    vars(written)["linear_kernel"] = Parameter(True, zeros)
    np.testing.assert_array_equal(jax.tree.leaves(written)[0], zeros)
    del parameter.tag
    assert not hasattr(jax.tree.map(jnp.sin, by_leaf).linear_kernel, "tag")
    frozen = made_by_jax(cls)
    frozen.linear_kernel.trainable = False
    assert not jax.tree.leaves(frozen.partition()[0])


def test_which_modules_make_their_attributes_late() -> None:
    _, model = nn.Series([nn.Dense(KEY, 2), nn.F(jnp.sin), nn.Attention(KEY, 1)])(X[None], None)
    nodes = [node for _, node in walk(model) if isinstance(node, Node)]
    assert all(flatten(node)[1].is_late for node in nodes)
    for cls in (Fixed, Magic, Direct):
        assert not flatten(made_by_jax(cls))[1].is_late
