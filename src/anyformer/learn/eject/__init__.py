"""An architecture as one Python file that needs torch and safetensors alone.

source         the templates, filled with a config; values on loading, sampling and training
architecture   values on the model: constants, embeddings, feed-forward, head
parts          values on its stacks: attention and blocks, and the stacks that share them
"""

from anyformer.learn.eject.source import architecture_diff, eject

__all__ = ["architecture_diff", "eject"]
