"""An image autoencoder with a quantizer in its middle: Q2D2, a lattice, FSQ and VQ in one table.

python train.py [--steps 2000] [--seed 0]
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from q2d2cli.quantizers import Q2D2, FsqQuantizer, Quantizer, QuantizerSpec, VqQuantizer

DIM = 32
"""Width of the features on both sides of the quantizer."""
SPECS = (
    QuantizerSpec("rhombic", (5, 5, 5, 5)),
    QuantizerSpec("hexagonal", (6, 6, 6, 6)),
    QuantizerSpec("d4", (5, 5, 5, 5)),
    QuantizerSpec("fsq", (6, 6, 6, 6)),
    QuantizerSpec("vq", (1296,)),
)
"""About ten bits for each of an image's four positions."""


class Autoencoder(nn.Module):
    """8 x 8 images to 2 x 2 positions of `DIM` features, and back.

    Args:
        spec: of the quantizer between encoder and decoder.
    """

    def __init__(self, spec: QuantizerSpec) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 4, 2, 1), nn.GELU(), nn.Conv2d(32, 64, 4, 2, 1), nn.GELU(), nn.Conv2d(64, DIM, 1)
        )
        self.quantizer: Quantizer
        if spec.kind == "fsq":
            self.quantizer = FsqQuantizer(spec, DIM)
        elif spec.kind == "vq":
            self.quantizer = VqQuantizer(spec, DIM, codebook_dim=8)
        else:
            self.quantizer = Q2D2(spec, DIM)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(DIM, 64, 4, 2, 1), nn.GELU(), nn.ConvTranspose2d(64, 1, 4, 2, 1), nn.Sigmoid()
        )

    def encode(self, images: Tensor) -> Tensor:
        """`(batch, 1, 8, 8)` images to `(batch, 4, num_indices)` indices."""
        return self.quantizer.encode(self._features(images))

    def decode(self, indices: Tensor) -> Tensor:
        """`(batch, 4, num_indices)` indices to `(batch, 1, 8, 8)` images."""
        return self._images(self.quantizer.decode(indices))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The images as they come back, and the quantizer's own loss."""
        quantized = self.quantizer(self._features(images))
        return self._images(quantized.features), quantized.loss

    def _features(self, images: Tensor) -> Tensor:
        # Quantizers take (batch, frames, dim): here the positions are the frames.
        return self.encoder(images).flatten(2).mT

    def _images(self, features: Tensor) -> Tensor:
        return self.decoder(features.mT.unflatten(2, (2, 2)))


def digits() -> tuple[Tensor, Tensor]:
    """Images to train with and to test with, `(images, 1, 8, 8)` in [0, 1]."""
    images = torch.from_numpy(load_digits().images / 16).float()[:, None]
    return images[:1500], images[1500:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    known, unknown = digits()
    print("| quantizer | levels | bits an image | PSNR of unseen images, dB | tokens used |")
    print("|---|---|---|---|---|")
    for spec in SPECS:
        torch.manual_seed(arguments.seed)
        model = Autoencoder(spec)
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.steps)
        for _ in range(arguments.steps):
            images = known[torch.randint(len(known), (128,))]
            decoded, loss = model(images)
            ((decoded - images).square().mean() + 0.1 * loss).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        model.eval()
        with torch.no_grad():
            indices = model.encode(unknown)
            error = (model.decode(indices) - unknown).square().mean()
        used = len(indices.flatten(0, 1).unique(dim=0))
        levels = ",".join(map(str, spec.levels))
        print(
            f"| {spec.kind} | {levels} | {4 * spec.bits_per_frame:.1f} | {-10 * error.log10():.2f} "
            f"| {used} of {spec.codebook_size} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
