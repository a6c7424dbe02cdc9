"""An architecture as one Python file that needs torch and safetensors alone.

source         fills the templates with a config; what the program says of loading, sampling and training
architecture   what one says of the blocks: their parts, the stacks that share them, rotation
"""

from anyformer.learn.eject.source import architecture_diff, eject

__all__ = ["architecture_diff", "eject"]
