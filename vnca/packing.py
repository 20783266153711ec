"""A whole training set on one device, so that no loader stands between it and the updates."""

import torch
from torch import Tensor


class PackedImages:
    """Images `(N, C, H, W)` in [0, 1], kept on a device: eight pixels to a byte where all of them are 0 or 1.

    Args:
        images: `(N, C, H, W)`.
        device: where to keep them.

    >>> packed = PackedImages(torch.eye(28).view(1, 1, 28, 28), torch.device("cpu"))
    >>> packed.stored.shape, packed[torch.tensor([0, 0])].shape
    (torch.Size([1, 98]), torch.Size([2, 1, 28, 28]))
    """

    def __init__(self, images: Tensor, device: torch.device):
        self.shape = images.shape
        self.binary = bool(((images == 0) | (images == 1)).all())
        self.stored = (_pack(images.flatten(1)) if self.binary else images).to(device)
        self.shifts = torch.arange(8, dtype=torch.uint8, device=device)

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: Tensor) -> Tensor:
        """The images of the indices `(B,)`, which lie on the device: `(B, C, H, W)` float32."""
        chosen = self.stored[index]
        if not self.binary:
            return chosen
        bits = (chosen[:, :, None] >> self.shifts) & 1  # (B, bytes, 8)
        return bits.flatten(1)[:, : self.shape[1:].numel()].reshape(-1, *self.shape[1:]).float()


def _pack(pixels: Tensor) -> Tensor:
    """Zeros and ones `(N, P)` as bytes `(N, ceil(P / 8))`."""
    missing = -pixels.shape[1] % 8
    bits = torch.nn.functional.pad(pixels, (0, missing)).to(torch.uint8).unflatten(1, (-1, 8))  # (N, bytes, 8)
    return (bits << torch.arange(8, dtype=torch.uint8)).sum(dim=2, dtype=torch.uint8)
