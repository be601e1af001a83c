"""The control modules: a picture and a timestep in, one feature map out (PyTorch).

State-dict names and architecture are those of the published checkpoints.
"""

from __future__ import annotations

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from controlnext.registry import ControlSpec


class ControlModule(nn.Module):
    """Control picture (B, 3, H, W) in [0, 1] and timestep (B,) -> feature (B, out_channels, H/8, W/8)."""

    def __init__(self, spec: ControlSpec) -> None:
        super().__init__()
        frequencies, time_width = spec.time_channels
        self.time_proj = Timesteps(frequencies, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(frequencies, time_width)
        self.embedding = _embedding(spec)
        widths = (spec.embedding[-1], *spec.stages)
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

    def forward(self, image: Tensor, timestep: Tensor) -> Tensor:
        time = self.time_embedding(self.time_proj(timestep).to(image.dtype))
        x = self.embedding(image)
        for resnet, downsample in zip(self.down_res, self.down_sample, strict=True):
            x = downsample(resnet(x, time))
        x = self.mid_convs[0](x) + x
        return self.mid_convs[1](x)


def _embedding(spec: ControlSpec) -> nn.Sequential:
    layers: list[nn.Module] = []
    width, stride = 3, 2
    for channels in spec.embedding:
        layers += [nn.Conv2d(width, channels, kernel_size=3, stride=stride, padding=1)]
        layers += [nn.GroupNorm(spec.embedding_groups, channels), nn.ReLU()]
        width, stride = channels, 1
    return nn.Sequential(*layers)


def _mid(width: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.GroupNorm(groups, width),
        nn.Conv2d(width, width, kernel_size=3, padding=1),
        nn.GroupNorm(groups, width),
    )


def meta_control(spec: ControlSpec) -> ControlModule:
    """The module without memory for its weights."""
    with torch.device("meta"):
        return ControlModule(spec).eval()
