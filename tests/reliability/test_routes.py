"""Random requests to the pack's routes: 100 here, any number by `python -m tests.reliability.routes`."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.reliability.routes import MOST, Fuzzer, Request

CI_COUNT = 100


@pytest.fixture(scope="module")
def fuzzer(comfyui):
    return Fuzzer(comfyui, comfyui.base)


@settings(max_examples=CI_COUNT, derandomize=True, suppress_health_check=list(HealthCheck))
@given(number=st.integers(0, 2**32))
def test_any_request_is_answered_or_refused(fuzzer, number):
    assert not fuzzer.one(f"ci/{number}")


@pytest.mark.parametrize("route", ["/mmdit/tokens", "/mmdit/curve"])
def test_a_body_over_the_bound_is_refused_before_it_is_parsed(fuzzer, route):
    assert fuzzer.send(Request("POST", route, body=b"[" * (MOST + 1))) == 413
    assert fuzzer.send(Request("POST", route, body=b"[" * (MOST - 1))) == 400


def test_no_request_changed_anything(fuzzer):
    for number in range(20):
        fuzzer.one(f"state/{number}")
    assert not fuzzer.changes()
