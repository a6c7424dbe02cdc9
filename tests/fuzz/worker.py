"""Runs commands of anyformer, each within limits, and says how it went.

The parent imports everything once and forks a child, which takes one request after the other: a line of JSON with the
folder that the command may write to and the command. The answer is a line of JSON with its exit status, its output,
the seconds of processor time it took, and what it touched outside of the folder. The parent forks another child when
one ends, however it ends.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

MEMORY = 1_500_000_000
"""Bytes of address space beyond what the interpreter has with everything imported."""
SECONDS = 10
PER_CHILD = 200
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"),
    *("os.chown", "os.mkfifo", "shutil.rmtree", "shutil.move", "shutil.copyfile"),
}
_STARTS = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"}


class Watch:
    """An audit hook that notes what is touched outside of a folder."""

    def __init__(self) -> None:
        self.folder = ""
        self.allowed: tuple[str, ...] = ()
        self.canary = ""
        self.touched: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.folder:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = bool(flags & _WRITES) if isinstance(flags, int) else any(c in str(mode) for c in "wax+")
            self._look(event, path, writes)
        elif event in _CHANGES:
            for path in arguments[:2]:
                self._look(event, path, True)
        elif event == "ctypes.dlopen":
            if arguments[0] not in (None, "libc.so.6"):  # the interpreter itself, and what gives freed memory back
                self.touched.append(f"{event} {arguments[0]}")
        elif event == "subprocess.Popen":
            # Our own processes, which tokenize, never import from the current folder.
            if arguments[0] != sys.executable or arguments[1][1] != "-P":
                self.touched.append(f"{event} {str(arguments)[:200]}")
        elif event in _STARTS:
            self.touched.append(f"{event} {str(arguments)[:200]}")

    def _look(self, event: str, path: object, writes: bool) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        where = os.path.realpath(os.fsdecode(path))
        if where.startswith(self.canary) or (writes and not where.startswith(self.allowed)):
            self.touched.append(f"{event} {where[:200]}")


def serve(root: Path) -> None:
    """The child: answers requests until it has had its share."""
    watch = Watch()
    watch.canary = str(root / "canary")
    watch.allowed = (f"{root}/case/", f"{root}/temporary", "/dev/null", "/dev/fd/", "/proc/self/")
    sys.addaudithook(watch)
    used = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize:"))
    limit = 1024 * int(used.split()[1]) + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    for number in range(PER_CHILD):
        line = requests.readline() if number else sys.stdin.readline()
        if not line:
            os._exit(1)
        request = json.loads(line)
        if not number:
            requests = sys.stdin
        print(json.dumps({"pid": os.getpid()}), file=answers, flush=True)
        print(json.dumps(run(request["argv"], request["input"], watch, root)), file=answers, flush=True)
    os._exit(0)


def run(argv: list[str], text: str, watch: Watch, root: Path) -> dict[str, Any]:
    """Run a command with its output in files."""
    from anyformer.cli.main import main

    old = sys.stdin, sys.stdout, sys.stderr
    how = {"dir": root, "encoding": "utf-8", "newline": "", "errors": "backslashreplace"}  # as the command line's own
    made = [tempfile.TemporaryFile("w+", **how) for _ in range(2)]  # noqa: SIM115
    kept = os.dup(2)
    os.dup2(made[1].fileno(), 2)
    sys.stdin, (sys.stdout, sys.stderr) = io.TextIOWrapper(io.BytesIO(text.encode())), made
    failure, status = "", None
    begun = time.process_time()
    watch.touched, watch.folder = [], str(root)
    try:
        status = main(argv)
    except SystemExit as end:
        status = end.code
    except BaseException:
        failure = traceback.format_exc()
    finally:
        watch.folder = ""
        sys.stdin, sys.stdout, sys.stderr = old
        os.dup2(kept, 2)
        os.close(kept)
    said: list[str] = []
    for file in made:
        file.flush()
        file.seek(0)
        said.append(file.buffer.read(100_000).decode("utf-8", errors="replace"))
        file.close()
    return {
        "status": status,
        "failure": failure,
        "stdout": said[0],
        "stderr": said[1],
        "seconds": time.process_time() - begun,
        "touched": watch.touched[:5],
    }


def main(root: Path) -> None:
    """The parent."""
    import gguf  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import sentencepiece  # noqa: F401
    import torch
    import torch._dynamo  # which torch.optim imports when it is first used
    import zstandard  # noqa: F401

    from anyformer.checkpoint import load  # noqa: F401
    from anyformer.cli import (  # noqa: F401
        chat,
        classify,
        compare,
        diff,
        eject,
        embed,
        evaluate,
        fill,
        finetune,
        generate,
        runs,
        show,
        train,
    )
    from anyformer.compare import compare as comparing  # noqa: F401
    from anyformer.finetuning.recipe import finetuning  # noqa: F401
    from anyformer.generation import batch_job, generate_samples  # noqa: F401
    from anyformer.training import trainer  # noqa: F401
    from anyformer.training.run import run as train_run  # noqa: F401

    torch.set_num_threads(1)
    os.chdir(root / "case")
    print(json.dumps({"ready": True}), flush=True)
    while True:
        child = os.fork()
        if child == 0:
            try:
                serve(root)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1:
            return
        if os.WIFSIGNALED(status):
            print(json.dumps({"signal": signal.Signals(os.WTERMSIG(status)).name}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
