"""A hash of a model's weights, by which a run that goes on knows whether it has the same model."""

import hashlib
from pathlib import Path

import numpy as np

from anyformer.checkpoint import hub
from anyformer.checkpoint.sources import weight_files
from anyformer.errors import UserError
from anyformer.limits import open_file

_BLOCK = 1 << 20
_FOLDED = 16
"""Words of 8 bytes that are added up before they are hashed."""


def weights_fingerprint(path_or_hub_id: str | Path, *, allow_pickle: bool = False) -> str:
    """A hash of all bytes of the files that hold the weights of what `load` would load, wherever they are.

    It tells whether weights have changed; against somebody who forges files it is no protection.

    Raises:
        UserError: no such model, or a file that can't be read.
    """
    # Sizes and headers are those of any model of the same shape, and times are lost when a file is copied. SHA-256 of
    # all bytes takes two seconds a gigabyte on processors without instructions for it, which is longer than loading
    # the weights. So the words of a block are folded before they are hashed: words that are 1/16 of a block apart are
    # added up, modulo 2^64. A change is missed only where such a sum happens to be the same.
    digest = hashlib.sha256()
    for path in weight_files(hub.find(path_or_hub_id, allow_pickle=allow_pickle)):
        try:
            with open_file(path) as file:
                digest.update(file.seek(0, 2).to_bytes(8, "little"))
                file.seek(0)
                while block := file.read(_BLOCK):
                    padded = block + bytes(-len(block) % (8 * _FOLDED))
                    digest.update(np.frombuffer(padded, np.uint64).reshape(_FOLDED, -1).sum(axis=0).tobytes())
        except OSError as error:
            raise UserError(f"{path} can't be read: {error.strerror or error}.") from error
    return digest.hexdigest()
