"""The quantizers that papers compare with, from `vector-quantize-pytorch`, behind this project's interface."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from q2d2cli.errors import UsageError
from q2d2cli.quantizers.base import Quantized, Quantizer, check_weights
from q2d2cli.quantizers.spec import QuantizerSpec


class FsqQuantizer(Quantizer):
    """Finite scalar quantization (Mentzer et al. 2024): every dimension rounded alone.

    Args:
        spec: kind `fsq` and its levels.
        dim: width of the features on both sides.
    """

    half_width: Tensor

    def __init__(self, spec: QuantizerSpec, dim: int) -> None:
        super().__init__(spec)
        # Composite indices are float sums there, exact only to 2**24: this takes the codes instead.
        two = 2 in spec.levels
        self.fsq = library().FSQ(list(spec.levels), dim=dim, return_indices=False, preserve_symmetry=two)
        levels = torch.tensor(spec.levels, dtype=torch.float32)
        half = (levels - 1) / 2 if two else levels // 2
        self.register_buffer("half_width", half, persistent=False)

    def _project_in(self, x: Tensor) -> Tensor:
        check_weights(self)
        with torch.autocast(x.device.type, enabled=False):
            return self.fsq.project_in(x.float())

    def _codes(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return self.fsq.quantize(z)

    def _indices(self, codes: Tensor) -> Tensor:
        return (codes * self.half_width + self.half_width).round().long()

    def forward(self, x: Tensor) -> Quantized:
        """As `Quantizer.forward`; index `j` is the level of dimension `j`."""
        z = self._project_in(x)
        codes = self._codes(z)
        values = torch.tanh(z) * self.half_width
        return Quantized(self.fsq.project_out(codes), self._indices(codes.detach()), codes.new_zeros(()), values)

    def encode(self, x: Tensor) -> Tensor:
        """As `Quantizer.encode`."""
        return self._indices(self._codes(self._project_in(x)))

    def _decode(self, indices: Tensor) -> Tensor:
        with torch.autocast(indices.device.type, enabled=False):
            return self.fsq.project_out((indices.float() - self.half_width) / self.half_width)


class VqQuantizer(Quantizer):
    """Vector quantization with one codebook, or residual vector quantization with several.

    Codebooks follow their vectors by exponential moving average, are initialised by k-means and
    replace dead codes, as in EnCodec and WavTokenizer.

    Args:
        spec: kind `vq` or `rvq` and its codebook sizes.
        dim: width of the features on both sides.
        codebook_dim: width of the codebooks' vectors; `dim` if None.
    """

    def __init__(self, spec: QuantizerSpec, dim: int, *, codebook_dim: int | None = None) -> None:
        super().__init__(spec)
        self.rvq = library().ResidualVQ(
            dim=dim,
            num_quantizers=spec.num_indices,
            codebook_size=spec.levels[0],
            codebook_dim=codebook_dim or dim,
            decay=0.99,
            kmeans_init=True,
            threshold_ema_dead_code=2,
            rotation_trick=False,
        )

    def forward(self, x: Tensor) -> Quantized:
        """As `Quantizer.forward`; index `j` is the entry of codebook `j`."""
        check_weights(self)
        x = x.float()
        with torch.autocast(x.device.type, enabled=False):
            features, indices, losses = self.rvq(x)
        return Quantized(features, indices, losses.sum(), x)

    def encode(self, x: Tensor) -> Tensor:
        """As `Quantizer.encode`."""
        check_weights(self)
        with torch.autocast(x.device.type, enabled=False):
            _, indices, _ = self.rvq(x.float(), freeze_codebook=True)
        return indices

    def _decode(self, indices: Tensor) -> Tensor:
        with torch.autocast(indices.device.type, enabled=False):
            return self.rvq.get_output_from_indices(indices)


def library() -> Any:
    """The package `vector_quantize_pytorch`.

    Raises:
        UsageError: if it is not installed.
    """
    try:
        import vector_quantize_pytorch
    except ImportError as error:
        raise UsageError('quantizers fsq, vq and rvq need more packages: pip install "q2d2[train]"') from error
    return vector_quantize_pytorch
