"""Where denoisers are cut for the step cache: the deep part runs at full steps only.

UNets are cut as in DeepCache (arXiv:2312.00858): the last layers of the last up block stay in the shallow
part, and of the down blocks what these read by their skip connections. A transformer is cut before and after
its middle blocks, whose effect on the hidden states is kept.
"""

from __future__ import annotations

from collections.abc import Callable

from controlnext.families.graph_spec import CachedFeature, Config
from controlnext.tensor_spec import Dim, TensorSpec

HIDDEN, CONTEXT = "cached_hidden_states", "cached_encoder_hidden_states"
"""Names of the features, as outputs of a full step and inputs of a shallow one."""

Cut = Callable[[Config], tuple[CachedFeature, ...]]


def unet_cut(layers: int, rows: Dim = "batch") -> Cut:
    """Return the cut of a UNet before the last ``layers`` layers of its last up block.

    It is the feature (rows, channels, height, width) that enters the first of these layers.
    """

    def cut(config: Config) -> tuple[CachedFeature, ...]:
        widths, per_block = config["block_out_channels"], config["layers_per_block"]
        # an up block has a layer more than a down block
        before = (per_block if isinstance(per_block, int) else per_block[0]) - layers
        if before >= 0:
            kind = "attentions" if "CrossAttn" in config["up_block_types"][-1] else "resnets"
            module, width = f"up_blocks.{len(widths) - 1}.{kind}.{before}", widths[0]
        elif len(widths) > 1:
            module, width = f"up_blocks.{len(widths) - 2}", widths[1]
        else:
            return ()
        return (CachedFeature(TensorSpec(HIDDEN, "float32", (rows, width, "height", "width")), module),)

    return cut


def transformer_cut(first_share: int, last_share: int, width: Callable[[Config], int]) -> Cut:
    """Return the cut of a joint transformer around its middle blocks.

    Of the blocks the first 1 / ``first_share`` and the last 1 / ``last_share`` stay in the shallow part, at
    least one each. The features are the differences that the others make to the two streams (batch, tokens,
    ``width``).
    """

    def cut(config: Config) -> tuple[CachedFeature, ...]:
        count = config["num_layers"]
        first, last = max(count // first_share, 1), max(count // last_share, 1)
        if first + last >= count:
            return ()
        since, module = f"transformer_blocks.{first}", f"transformer_blocks.{count - last - 1}"
        streams = ((HIDDEN, "tokens", 1, "hidden_states"), (CONTEXT, "sequence", 0, "encoder_hidden_states"))
        return tuple(
            CachedFeature(
                TensorSpec(name, "float32", ("batch", tokens, width(config))), module, output, since, argument
            )
            for name, tokens, output, argument in streams
        )

    return cut
