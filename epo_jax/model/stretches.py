"""How the tokens of a row lie on the devices of the mesh's axis `sequence`.

A row [T] is cut into 2 S chunks, S devices, and device d holds a *stretch* of two: chunk d and chunk 2 S - 1 - d. A causal query sees the keys
before it, so the device with the last tokens of a row would have the most to do; an early chunk and a late one together are as much work on every
device (the "zigzag" of ring attention's later implementations; Llama 3 is trained with it, Grattafiori et al. 2024, section 3.3.2).

Batches stay as they are, [B,T] in the order of the conversation and whole on every device of the axis: they are a few numbers a token. What has
a vector for each token is in stretches: what `epo_jax.model.llama.hidden_states` returns, and what is computed from it token by token.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

TPU_TILE = 128  # the least that a TPU's kernel works on
TILE = 512  # queries, and keys, that attention works on at once; a longer chunk is cut into equal tiles


@dataclasses.dataclass(frozen=True)
class Stretches:
    """Rows of `length` tokens (T) on `ways` devices (S), as 2 S chunks of `chunk` tokens; T' = 2 S * chunk, of which the last are padding.

    With one device nothing is changed by any of these: T' = T.
    """

    ways: int
    length: int
    chunk: int

    def spread(self, x: jax.Array) -> jax.Array:
        """[B,T,...] in the order of the conversation -> [B,T',...], stretch after stretch, with zeros where there is no token."""
        if self.ways == 1:
            return x
        padded = jnp.pad(x, [(0, 0), (0, 2 * self.ways * self.chunk - self.length)] + [(0, 0)] * (x.ndim - 2))
        return padded.reshape(len(x), 2 * self.ways, self.chunk, *x.shape[2:])[:, self._order].reshape(padded.shape)

    def collect(self, x: jax.Array) -> jax.Array:
        """The inverse of `spread`: [B,T',...] -> [B,T,...]."""
        if self.ways == 1:
            return x
        chunks = x.reshape(len(x), 2 * self.ways, self.chunk, *x.shape[2:])
        return chunks[:, np.argsort(self._order)].reshape(x.shape)[:, : self.length]

    def apart(self, x: jax.Array) -> jax.Array:
        """[B,T',...] -> [B,S,T'/S,...], a stretch each; [B,T,...] stays as it is with one device."""
        return x if self.ways == 1 else x.reshape(len(x), self.ways, 2 * self.chunk, *x.shape[2:])

    def together(self, x: jax.Array) -> jax.Array:
        """The inverse of `apart`."""
        return x if self.ways == 1 else x.reshape(len(x), 2 * self.ways * self.chunk, *x.shape[3:])

    @property
    def places(self) -> np.ndarray:
        """int32 [T']: where the token at each place of `spread` stands in the padded row."""
        return (self._order[:, None] * self.chunk + np.arange(self.chunk)).ravel().astype(np.int32)

    @property
    def _order(self) -> np.ndarray:
        """The chunk at each place."""
        early = np.arange(self.ways)
        return np.stack([early, 2 * self.ways - 1 - early], axis=1).ravel()


def ways_of(mesh: Mesh | None) -> int:
    """Over how many devices the tokens of a row are split."""
    return 1 if mesh is None else mesh.shape["sequence"]


def stretches(mesh: Mesh | None, length: int) -> Stretches:
    """For rows of `length` tokens. A chunk is a whole number of equal tiles; on a TPU, of the tiles of its kernel."""
    ways = ways_of(mesh)
    if ways == 1:
        return Stretches(1, length, length)
    shortest = -(-length // (2 * ways))
    if mesh.devices.flat[0].platform == "tpu":
        return Stretches(ways, length, -(-shortest // TPU_TILE) * TPU_TILE)
    return Stretches(ways, length, tiles_in(shortest) * -(-shortest // tiles_in(shortest)))


def tiles_in(chunk: int) -> int:
    """Into how many tiles so many tokens are cut."""
    return -(-chunk // TILE)
