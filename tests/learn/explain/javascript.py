"""The scripts of a page in node, without a page."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from anyformer.learn.explain import engine, source

READ = """
const given = JSON.parse(require("fs").readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(answer(given)));
"""
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def run(script: str, given: Any) -> Any:
    """What a script's function `answer` returns for what it is given, both as JSON."""
    node = shutil.which("node")
    assert node is not None
    whole = f'"use strict";\n{engine()}\n{source("view", ("session",))}\n{script}\n{READ}'
    done = subprocess.run(
        [node, "--input-type=commonjs", "-e", whole],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)
