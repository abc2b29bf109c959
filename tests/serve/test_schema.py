"""Schemathesis against the server's own OpenAPI: no error of the server, and no answer that the schema does not know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.serve.running import Running, running

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(request_nfe=200) as found:
        yield found


def check_all(server: Running, examples: int) -> None:
    """Send that many generated requests to each operation, and check all answers."""
    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in api.get_all_operations()]
    assert len(operations) >= 8
    for operation in operations:

        @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            case.call_and_validate(checks=CHECKS)

        check()
    assert server.service.running == 0


def test_answers_keep_to_the_schema(server: Running) -> None:
    check_all(server, 10)


@pytest.mark.slow
def test_answers_keep_to_the_schema_at_length(server: Running) -> None:
    check_all(server, 300)
