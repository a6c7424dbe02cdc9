"""Every shape that an annotation promises is checked while the tests run."""

from jaxtyping import install_import_hook

install_import_hook(["anyformer.blocks", "anyformer.model", "anyformer.generation"], "beartype.beartype")
