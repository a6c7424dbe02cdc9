"""Parts of torch that it doesn't document."""

import importlib
import re

import pytest
import torch

from anyformer.errors import UserError
from anyformer.plan import internals


@pytest.mark.parametrize("name", ["_current_graph_task_id", "_dispatch_has_kernel_for_dispatch_key"])
def test_a_torch_that_lacks_one_is_refused_in_a_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(torch._C, name)
        with pytest.raises(UserError, match=f"version {re.escape(torch.__version__)} lacks .*{name}"):
            importlib.reload(internals)
    importlib.reload(internals)
