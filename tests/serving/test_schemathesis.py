"""What our OpenAPI schema says holds, for requests drawn from it and for others, by schemathesis."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import given, settings

from tests.serving.running import running, small_models

schemathesis: Any = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # warnings of schemathesis
CHECKS = schemathesis.checks


NAMES = [
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
]


@pytest.fixture(scope="module")
def api() -> Generator[Any]:
    with running(small_models()) as (client, _):
        yield schemathesis.openapi.from_url(f"{str(client.base_url).rstrip('/')}/openapi.json")


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_the_schema_holds(api: Any, mode: Any) -> None:
    checks = [CHECKS.not_a_server_error, *CHECKS.CHECKS.get_by_names(NAMES)]
    for found in api.get_all_operations():
        operation = found.ok()

        @settings(max_examples=60, deadline=None, derandomize=True, database=None)
        @given(operation.as_strategy(generation_mode=mode))
        def check(case: Any) -> None:
            case.call_and_validate(checks=checks)

        if mode.is_positive or operation.body:  # any text is a name in a path
            check()
