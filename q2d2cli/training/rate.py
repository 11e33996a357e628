"""The rate term of the losses: a density model that learns along, and a weight that holds its bits where they belong.

What learned image codecs do (Ballé et al. 2018, Variational image compression with a scale hyperprior; Minnen et al.
2018, Joint autoregressive and hierarchical priors), for grids, lattices and FSQ, over time.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from q2d2cli.container.labelling import coordinates, shapes
from q2d2cli.quantizers.spec import QuantizerSpec

WIDTH = 64
"""Of the hidden layers."""
KERNEL, DILATIONS = 3, (1, 2, 4)
"""Of the convolutions over frames; together they see this many frames back: 1 + 2 * (1 + 2 + 4) = 15."""
NARROWEST = 0.1
"""Smallest scale of a density, in steps of the grid."""
LEARNING_RATE = 2e-3
"""Of the density model: it must keep up with a code that changes."""
AVERAGED, LONG = 20, 60
"""Steps that the measured rate, and a slower one beside it, are about the mean of."""
LEAD = 2.0
"""The weight looks so many times the difference of the two ahead: some 60 steps."""
GAIN, LARGEST_ERROR = 0.02, 0.5
"""In a step the weight changes by this share of the relative error of the rate, and errors count to this size."""
REACH = 100.0
"""The weight stays within this factor of what it began with."""


class Rate(nn.Module):
    """How many bits a frame takes, given the frames before it, and the weight of that among the losses.

    Each index of a frame is a point of a grid. Its probability is that of a logistic density at the point, of its own
    location and scale in each dimension, times a factor of the point, over the sum of the same at all points of the
    grid: bits that an entropy coder could reach. Locations and scales come from a causal convolution over the
    frames before, and from the indices of the frame that come earlier. The density is evaluated at the snapped values
    with the straight-through gradient, which pulls them towards what is expected.

    Args:
        spec: of a quantizer of grids or lattices, or FSQ.
        weight: of a bit per frame in the sum of losses, to begin with.
        target: bits per frame at which `follow` holds the rate; None leaves the weight as it is.
    """

    weight: Tensor
    measured: Tensor
    lagging: Tensor

    def __init__(self, spec: QuantizerSpec, weight: float, target: float | None = None) -> None:
        super().__init__()
        self.begun, self.target = weight, target
        axes = spec.group_size
        # Coordinates are in quarters of a step; those of FSQ have an axis to spare.
        places = [torch.from_numpy(coordinates(*shape)[:, :axes] / 4).float() for shape in shapes(spec)]
        for j, points in enumerate(places):
            self.register_buffer(f"points_{j}", points, persistent=False)
        self.axes, self.indices = axes, len(places)
        self.extent = max(level for level in spec.levels) / 2
        values = axes * len(places)
        inputs = [values, *[WIDTH] * (len(DILATIONS) - 1)]
        self.before = nn.ModuleList(
            nn.Conv1d(size, WIDTH, KERNEL, dilation=dilation) for size, dilation in zip(inputs, DILATIONS, strict=True)
        )
        self.within = nn.ModuleList(nn.Linear(axes * j, WIDTH, bias=False) for j in range(1, len(places)))
        self.out = nn.ModuleList(nn.Linear(WIDTH, 2 * axes) for _ in places)
        self.favour = nn.ParameterList(nn.Parameter(torch.zeros(len(points))) for points in places)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("weight", torch.tensor(float(weight)))
        self.register_buffer("measured", torch.tensor(math.nan))
        self.register_buffer("lagging", torch.tensor(math.nan))

    def forward(self, values: Tensor, indices: Tensor) -> Tensor:
        """`(batch, frames)` bits of each frame.

        Args:
            values: `(batch, frames, d)` of `Quantized`, which get the gradient.
            indices: `(batch, frames, num_indices)`, of the same.
        """
        points = [getattr(self, f"points_{j}") for j in range(self.indices)]
        places = torch.cat([points[j][indices[..., j]] for j in range(self.indices)], dim=-1)
        snapped = values.float() + (places - values.float()).detach()
        scaled = snapped / self.extent
        hidden = F.pad(scaled, (0, 0, 1, 0))[:, :-1].mT  # the frame before each
        for layer, dilation in zip(self.before, DILATIONS, strict=True):
            given = hidden
            hidden = F.silu(layer(F.pad(given, ((KERNEL - 1) * dilation, 0))))
            if given.shape == hidden.shape:
                hidden = hidden + given
        hidden = hidden.mT
        bits = hidden.new_zeros(hidden.shape[:-1])
        for j in range(self.indices):
            own = slice(self.axes * j, self.axes * (j + 1))
            state = hidden + self.within[j - 1](scaled[..., : own.start]) if j else hidden
            location, scale = self.out[j](F.silu(state)).chunk(2, dim=-1)
            location, scale = location * self.extent, NARROWEST + F.softplus(scale + self.extent / 2)
            everywhere = (points[j] - location[..., None, :]) / scale[..., None, :]
            total = torch.logsumexp(log_logistic(everywhere) + self.favour[j], dim=-1)
            here = log_logistic((snapped[..., own] - location) / scale) + self.favour[j][indices[..., j]]
            bits = bits + total - here
        return bits / math.log(2)

    @torch.no_grad()
    def follow(self, bits: Tensor) -> None:
        """Count a step's bits per frame, a scalar, and move the weight: up where they are too many, else down."""
        bits = bits.detach().float()
        for mean, steps in ((self.measured, AVERAGED), (self.lagging, LONG)):
            mean.copy_(torch.where(mean.isnan(), bits, torch.lerp(mean, bits, 1 / steps)))
        if self.target is not None:
            # Where the rate is going: a weight that looked at where it is would still rise while the rate falls.
            ahead = self.measured + LEAD * (self.measured - self.lagging)
            error = ((ahead - self.target) / self.target).clamp(-LARGEST_ERROR, LARGEST_ERROR)
            self.weight.mul_(torch.exp(GAIN * error)).clamp_(self.begun / REACH, self.begun * REACH)


def log_logistic(x: Tensor) -> Tensor:
    """`(..., n)` to `(...)`: log of the product over `n` of the logistic density, as if the scale were 1."""
    size = x.abs()
    return -(size + 2 * torch.log1p(torch.exp(-size))).sum(-1)
