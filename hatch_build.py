"""The build's compiler of kernels: for this machine's processor, or with ANYFORMER_TARGET for all of a system.

A target is one of `anyformer.native.compiler.TARGETS`, such as linux-x86_64; its wheel runs on every machine of the
kind. Where nothing can be compiled the package is built without libraries, and torch computes what they would.
The libraries are listed in a bill of materials (CycloneDX 1.6), which is put into the wheel as PEP 770 says.
"""

import hashlib
import json
import os
import re
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent / "src"))
from anyformer.native import compiler, levels

_TARGET = os.environ.get("ANYFORMER_TARGET", "")


class KernelHook(BuildHookInterface[Any]):
    """Compiles the libraries before files are collected, and names the platform in the wheel's tag."""

    def dependencies(self) -> list[str]:
        """Zig's compiler, where it is needed."""
        usable = levels.usable() if compiler.here() in compiler.TARGETS else ()
        is_needed = _TARGET or (usable and not compiler.find_of_system(usable[0]))
        return ["ziglang>=0.15,<0.18"] if is_needed else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; an editable installation finds the libraries in the source."""
        target = compiler.TARGETS[_TARGET] if _TARGET else None
        chosen = levels.LEVELS[target.machine] if target else levels.usable()[:1]
        try:
            compiler.compile_all(_TARGET, chosen)
        except Exception as error:
            if target:
                raise
            self.app.display_warning(f"Kernels are left to torch: {compiler.reason(error)}")
            return
        platform = target.tag if target else re.sub("[-.]", "_", sysconfig.get_platform())
        build_data |= {"pure_python": False, "tag": f"py3-none-{platform}"}
        suffix = target.suffix if target else compiler.SUFFIX
        paths = [path for level in chosen for path in sorted((levels.LIBRARIES / level.name).glob(f"*{suffix}"))]
        if version != "editable":
            inside = levels.LIBRARIES.relative_to(Path(self.root, "src")).as_posix()
            included = {str(path): f"{inside}/{path.parent.name}/{path.name}" for path in paths}
            build_data["force_include"] |= included
            self._folder = tempfile.TemporaryDirectory()
            bill = Path(self._folder.name, "anyformer.cdx.json")
            bill.write_text(json.dumps(bill_of_materials(self.metadata.version, included), indent=1))
            build_data["sbom_files"].append(str(bill))


def bill_of_materials(version: str, files: Mapping[str, str]) -> dict[str, Any]:
    """The compiled files of a wheel, by their paths here and inside, and what compiled them, in CycloneDX's terms."""
    compilers = [{"type": "application", "name": "ziglang", "version": metadata.version("ziglang")}] if _TARGET else []
    component = {
        "type": "library",
        "name": "anyformer",
        "version": version,
        "purl": f"pkg:pypi/anyformer@{version}",
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    components = [
        {
            "type": "file",
            "name": inside,
            "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(Path(path).read_bytes()).hexdigest()}],
        }
        for path, inside in files.items()
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": component, "tools": {"components": compilers}},
        "components": components,
    }
