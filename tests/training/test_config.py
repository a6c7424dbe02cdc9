"""Arguments are read without torch."""

from __future__ import annotations

import subprocess
import sys


def test_a_config_costs_no_torch():
    code = (
        "import sys; from anyformer.cli import train; from anyformer.runs.directory import model_directory; "
        "train.read_arguments(['gpt2', '--steps', '3']); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
