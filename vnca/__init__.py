"""A variational autoencoder whose decoder is a growing organism: the package behind the book.

>>> import vnca
>>> model = vnca.VAE(vnca.Encoder(latent_size=8, width=2), vnca.DoublingDecoder(channels=8, hidden=8, steps=1))
>>> model.sample(3).shape
torch.Size([3, 1, 28, 28])
"""

from importlib.metadata import PackageNotFoundError, version

from vnca import data
from vnca.cells import damage
from vnca.decoders import ConvDecoder, DoublingDecoder, PersistentDecoder, RegrowingDecoder
from vnca.inpainting import inpaint
from vnca.pretrained import available, load
from vnca.vae import VAE, Encoder, ModelConfig, build, elbo, iwae

try:
    __version__ = version("vnca")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"

__all__ = [
    "VAE",
    "ConvDecoder",
    "DoublingDecoder",
    "Encoder",
    "ModelConfig",
    "PersistentDecoder",
    "RegrowingDecoder",
    "available",
    "build",
    "damage",
    "data",
    "elbo",
    "inpaint",
    "iwae",
    "load",
]
