"""`python -m anyformer`."""

from anyformer.cli.main import script

script()
