"""ResNet: stages of residual blocks of convolutions, each stage at half the resolution.

    y = relu(shortcut(x) + norm(conv(relu(norm(conv(x))))))        basic, twice 3x3
    y = relu(shortcut(x) + ...)                                    bottleneck, 1x1, 3x3 and 1x1

The first block of a stage has a convolution as its shortcut, where shapes differ. In a bottleneck
the 3x3 convolution has the stride ("version 1.5").

Source: He et al., "Deep residual learning for image recognition", 2016.
"""

import functools
from typing import Annotated, Any, NamedTuple, TypeAlias

import jax

from mlax.arguments import Size, instance_of
from mlax.combinators.block import Sublayers, block
from mlax.combinators.composed import composed
from mlax.combinators.series import series
from mlax.combinators.types import DictState
from mlax.errors import message
from mlax.layer import Layer, Shaped
from mlax.layers.conv import conv
from mlax.layers.dense import dense
from mlax.layers.f import f
from mlax.layers.global_pool import global_avg_pool
from mlax.layers.norms import batch_norm
from mlax.layers.pool import max_pool
from mlax.weights import Rule, torch_linear, torch_norm


class ResnetConfig(NamedTuple):
    """Configuration of `resnet`."""

    depths: tuple[int, ...]
    """Number of blocks in each stage."""
    channels: tuple[int, ...]
    """Number of channels of each stage."""
    bottleneck: bool
    """Whether blocks are bottlenecks, with a quarter of the channels inside."""
    stem_channels: int = 64
    """Number of channels before the first stage."""
    num_classes: int = 1000
    """Number of classes."""


RESNET_18 = ResnetConfig((2, 2, 2, 2), (64, 128, 256, 512), bottleneck=False)
RESNET_50 = ResnetConfig((3, 4, 6, 3), (256, 512, 1024, 2048), bottleneck=True)

Images: TypeAlias = Layer[dict[str, Any], DictState, jax.Array, jax.Array]
"""A layer from images to images, or to logits."""


def _conv(channels: int, size: int, stride: int = 1, *, activates: bool = True) -> Images:
    """Return a convolution with a norm, and relu."""
    kernel, norm = conv(channels, size, stride, size // 2), batch_norm()
    if not activates:
        return series(conv=kernel, norm=norm)
    layers = series(conv=kernel, norm=norm, relu=f(jax.nn.relu))
    return layers


def wiring(sub: Sublayers, x: jax.Array, *, projects: bool) -> Any:
    """Return the output of a residual block."""
    return jax.nn.relu((sub.shortcut(x) if projects else x) + sub.body(x))


@composed()
def residual_block(x: Shaped, channels: Size, stride: Size, bottleneck: bool) -> Images:
    """A residual block: (height, width, in_channels) -> (height / stride, ..., channels).

    Args:
        channels: number of channels of y.
        stride: how many times smaller y is than x.
        bottleneck: whether it is a 3x3 convolution between two 1x1 ones, instead of two 3x3 ones.
    """
    inner = channels // 4
    body = [_conv(channels, 3, stride), _conv(channels, 3, activates=False)]
    if bottleneck:
        body = [_conv(inner, 1), _conv(inner, 3, stride), _conv(channels, 1, activates=False)]
    projects = stride > 1 or x.shape[-1] != channels
    shortcut = {"shortcut": _conv(channels, 1, stride, activates=False)} if projects else {}
    return block(body=series(*body), **shortcut)(functools.partial(wiring, projects=projects))


@composed()
def resnet(x: Shaped, config: Annotated[ResnetConfig, instance_of(ResnetConfig)]) -> Images:
    """ResNet: logits of the classes of an image.

    (height, width, channels) -> (num_classes,). In training, statistics are those of the batch.

    Args:
        config: the sizes, such as `mlax.models.RESNET_50`.

    Raises:
        ValueError: x is not a single image.

    >>> import jax, jax.numpy as jnp, mlax
    >>> config = mlax.models.ResnetConfig((1, 1), (8, 16), bottleneck=False, num_classes=10)
    >>> model, images = mlax.batched(mlax.models.resnet(config)), jnp.ones((5, 32, 32, 3))
    >>> params, state = model.init(jax.random.key(0), images)
    >>> model.apply(params, state, images)[0].shape
    (5, 10)
    """
    if len(x.shape) != 3:
        wanted, way_out = "of shape (height, width, channels)", "map a batch with mlax.batched"
        raise ValueError(message("resnet", "x", wanted, f"shape {x.shape}", way_out))
    if len(config.depths) != len(config.channels):
        wanted = f"one for each of the {len(config.depths)} stages"
        raise ValueError(message("resnet", "config.channels", wanted, config.channels))
    stages = [
        series(*(
            residual_block(channels, 2 if i and not j else 1, config.bottleneck)
            for j in range(depth)
        ))
        for i, (depth, channels) in enumerate(zip(config.depths, config.channels, strict=True))
    ]
    model = series(
        stem=_conv(config.stem_channels, 7, 2), pool=max_pool(3, 2, 1), stages=series(*stages),
        mean=global_avg_pool(), head=dense(config.num_classes),
    )
    return model


_BLOCK, _OURS = "resnet.encoder.stages.{stage}.layers.{block}", "stages.{stage}.{block}"
RESNET_HUGGINGFACE = (
    *(
        rule
        for theirs, ours in (
            ("resnet.embedder.embedder", "stem"),
            (f"{_BLOCK}.layer.{{i}}", f"{_OURS}.body.{{i}}"),
            (f"{_BLOCK}.shortcut", f"{_OURS}.shortcut"),
        )
        for rule in (
            Rule(f"{theirs}.convolution.weight", f"{ours}.conv.kernel", "oihw->ohwi"),
            *torch_norm(f"{theirs}.normalization", f"{ours}.norm"),
        )
    ),
    *torch_linear("classifier.1", "head"),
)
