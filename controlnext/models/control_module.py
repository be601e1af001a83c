"""The control modules: from an image and a timestep to one feature map (PyTorch).

State-dict names and architecture are those of the published checkpoints.
"""

from __future__ import annotations

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from controlnext.families import ControlSpec


class ControlModule(nn.Module):
    """The network from control image and timestep to the control feature.

    ``scale`` is the learned scale, if the release has one.
    """

    scale: nn.Parameter | None

    def __init__(self, spec: ControlSpec) -> None:
        super().__init__()
        frequencies, time_width = spec.time_channels
        self.time_proj = Timesteps(frequencies, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(frequencies, time_width)
        if spec.embedding:
            self.embedding = _embedding(spec)
        widths = (*(spec.embedding or (3,))[-1:], *spec.stages)
        self.down_res = nn.ModuleList(
            ResnetBlock2D(in_channels=a, out_channels=b, temb_channels=time_width, groups=g)
            for a, b, g in zip(widths, spec.stages, spec.stage_groups, strict=False)
        )
        self.down_sample = nn.ModuleList(
            Downsample2D(width, use_conv=True, out_channels=width, padding=1, name="op")
            for width in spec.stages
        )
        last = spec.stages[-1]
        self.mid_convs = nn.ModuleList(
            [_mid(last, spec.mid_groups), nn.Conv2d(last, spec.out_channels, kernel_size=1)]
        )
        self.residual = spec.mid_groups > 0
        self.register_parameter("scale", nn.Parameter(torch.ones(())) if spec.learned_scale else None)

    def forward(self, image: Tensor, timestep: Tensor) -> Tensor:
        """Return the feature (B, out_channels, about H/8, W/8); about H/32, W/32 in the first SVD release.

        ``image``: (B, 3, H, W) in [0, 1], or clips (B, frames, 3, H, W), which give B * frames features;
        ``timestep``: (B,).
        """
        time = self.time_embedding(self.time_proj(timestep).to(image.dtype))
        if image.ndim == 5:
            time = time[:, None].expand(-1, image.shape[1], -1).flatten(0, 1)
            image = image.flatten(0, 1)
        x = self.embedding(image) if hasattr(self, "embedding") else image
        for resnet, downsample in zip(self.down_res, self.down_sample, strict=True):
            x = downsample(resnet(x, time))
        x = self.mid_convs[0](x) + x if self.residual else self.mid_convs[0](x)
        return self.mid_convs[1](x)


def _embedding(spec: ControlSpec) -> nn.Sequential:
    layers: list[nn.Module] = []
    width, stride = 3, 2
    for channels, padding in zip(spec.embedding, spec.embedding_padding, strict=True):
        layers += [nn.Conv2d(width, channels, kernel_size=3, stride=stride, padding=padding)]
        layers += [nn.GroupNorm(spec.embedding_groups, channels), nn.ReLU()]
        width, stride = channels, 1
    if spec.embedding_pool:
        layers += [nn.MaxPool2d(2)]
    return nn.Sequential(*layers)


def _mid(width: int, groups: int) -> nn.Sequential:
    layers = [
        nn.Conv2d(width, width, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.GroupNorm(groups, width) if groups else None,
        nn.Conv2d(width, width, kernel_size=3, padding=1),
        nn.GroupNorm(groups, width) if groups else None,
    ]
    return nn.Sequential(*(layer for layer in layers if layer is not None))


def meta_control(spec: ControlSpec) -> ControlModule:
    """Return the module with parameters on the meta device, in eval mode."""
    with torch.device("meta"):
        return ControlModule(spec).eval()
