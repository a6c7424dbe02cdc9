"""Every shape that an annotation promises is checked while the tests run, and no test is hurried."""

import os
import signal
import tempfile

from hypothesis import settings
from jaxtyping import install_import_hook

# As the command line does: tests share their cores with whatever else runs.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
# And tokens are not put into the user's own cache.
os.environ["ANYFORMER_CACHE"] = tempfile.mkdtemp(prefix="anyformer-cache-")

# A shell starts background jobs with Ctrl-C ignored, and every child would inherit that. A handler isn't inherited: the
# programs that the tests start listen to Ctrl-C, while the tests themselves ignore it as before.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, lambda *_: None)

install_import_hook(["anyformer.blocks", "anyformer.model", "anyformer.generation"], "beartype.beartype")

# A busy machine is slow at times, and a first call may have to import or to compile.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
