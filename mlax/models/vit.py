"""Vision transformer: an image becomes a sequence of patches after a class token.

    y = [class_token, kernel * patches + bias] + position_embedding
    y = y + attention(norm(y)); y = y + mlp(norm(y))        in each block
    logits = head(norm(y)[0])

Source: Dosovitskiy et al., "An image is worth 16x16 words", 2021.
"""

import functools
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from mlax.arguments import instance_of
from mlax.blocks.transformer import mlp, transformer_block
from mlax.combinators.block import Sublayers, block
from mlax.combinators.composed import composed
from mlax.combinators.repeat import repeat
from mlax.combinators.series import series
from mlax.combinators.types import DictState
from mlax.errors import message
from mlax.layer import Layer, Shaped
from mlax.layers.attention import attention
from mlax.layers.bias import bias
from mlax.layers.conv import conv
from mlax.layers.dense import dense
from mlax.layers.dropout import dropout
from mlax.layers.norms import layer_norm
from mlax.layers.parameter import parameter
from mlax.layers.position_embedding import position_embedding
from mlax.weights import Rule, torch_linear, torch_norm


class VitConfig(NamedTuple):
    """Configuration of `vit`."""

    image_size: int = 224
    """Height and width of the images."""
    patch_size: int = 16
    """Height and width of a patch, which divides that of the images."""
    features: int = 768
    """Features of each patch."""
    num_layers: int = 12
    """Number of blocks."""
    num_heads: int = 12
    """Number of heads in each attention."""
    hidden_features: int = 3072
    """Features of the hidden layer of each perceptron."""
    num_classes: int = 1000
    """Number of classes."""
    epsilon: float = 1e-12
    """Term added to the variances."""
    dropout_rate: float = 0.0
    """Dropout rate of embeddings, and of what blocks add."""


VIT_B_16 = VitConfig()
VIT_L_16 = VitConfig(features=1024, num_layers=24, num_heads=16, hidden_features=4096)


def wiring(sub: Sublayers, image: jax.Array) -> Any:
    """Return the logits: see `vit`."""
    patches = sub.patches(image)
    patches = patches.reshape(-1, patches.shape[-1])
    class_token = sub.class_token().astype(patches.dtype)
    y = sub.dropout(sub.positions(jnp.concatenate([class_token, patches])))
    return sub.head(sub.norm(sub.body(y))[0])


@composed(needs_rng=lambda config: config.dropout_rate > 0)
def vit(
    x: Shaped, config: Annotated[VitConfig, instance_of(VitConfig)]
) -> Layer[dict[str, Any], DictState, jax.Array, jax.Array]:
    """Vision transformer: logits of the classes of an image.

    (image_size, image_size, channels) -> (num_classes,).

    Args:
        config: the sizes, such as `mlax.models.VIT_B_16`.

    Raises:
        ValueError: x has another size.

    >>> import jax, jax.numpy as jnp, mlax
    >>> config = mlax.models.VitConfig(8, 4, 16, num_layers=2, num_heads=2, num_classes=10)
    >>> model, images = mlax.batched(mlax.models.vit(config)), jnp.ones((5, 8, 8, 3))
    >>> params, state = model.init(jax.random.key(0), images)
    >>> model.apply(params, state, images)[0].shape
    (5, 10)
    """
    side = config.image_size
    if config.image_size % config.patch_size:
        wanted = f"a divisor of image_size ({side})"
        raise ValueError(message("vit", "config.patch_size", wanted, config.patch_size))
    if x.shape[:-1] != (side, side):
        wanted, way_out = f"of shape ({side}, {side}, channels)", "map a batch with mlax.batched"
        raise ValueError(message("vit", "x", wanted, f"shape {x.shape}", way_out))
    rate = config.dropout_rate
    norm = layer_norm(epsilon=config.epsilon)
    gelu = functools.partial(jax.nn.gelu, approximate=False)
    return block(
        patches=series(
            conv=conv(config.features, config.patch_size, config.patch_size), bias=bias((0, 0, -1))
        ),
        class_token=parameter((1, config.features)),
        positions=position_embedding((side // config.patch_size) ** 2 + 1),
        dropout=dropout(rate, (0, 1)) if rate else series(),
        body=repeat(
            transformer_block(
                attention(config.num_heads), mlp(config.hidden_features, gelu),
                norm=norm, dropout_rate=rate,
            ),
            config.num_layers,
        ),
        norm=norm,
        head=dense(config.num_classes),
    )(wiring)


_LAYER = "vit.encoder.layer.{layer}"
VIT_HUGGINGFACE = (
    Rule("vit.embeddings.cls_token", "class_token.value", "11f->1f"),
    Rule("vit.embeddings.position_embeddings", "positions.embedding", "1pf->pf"),
    Rule("vit.embeddings.patch_embeddings.projection.weight", "patches.conv.kernel", "oihw->ohwi"),
    Rule("vit.embeddings.patch_embeddings.projection.bias", "patches.bias.bias"),
    *torch_linear(f"{_LAYER}.attention.attention.query", "body.attention.query"),
    *torch_linear(f"{_LAYER}.attention.attention.key", "body.attention.key"),
    *torch_linear(f"{_LAYER}.attention.attention.value", "body.attention.value"),
    *torch_linear(f"{_LAYER}.attention.output.dense", "body.attention.output"),
    *torch_linear(f"{_LAYER}.intermediate.dense", "body.mlp.up"),
    *torch_linear(f"{_LAYER}.output.dense", "body.mlp.down"),
    *torch_norm(f"{_LAYER}.layernorm_before", "body.attention_norm"),
    *torch_norm(f"{_LAYER}.layernorm_after", "body.mlp_norm"),
    *torch_norm("vit.layernorm", "norm"),
    *torch_linear("classifier", "head"),
)
