"""Every shape that an annotation promises is checked while the tests run."""

import os

from jaxtyping import install_import_hook

# As the command line does: tests share their cores with whatever else runs.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

install_import_hook(["anyformer.blocks", "anyformer.model", "anyformer.generation"], "beartype.beartype")
