"""Bad and extreme node inputs: 200 prompts here, any number by `python -m tests.reliability.inputs`."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import find_installation
from tests.reliability.inputs import Fuzzer, odd_server

CI_COUNT = 200


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory):
    with odd_server(find_installation(), tmp_path_factory.mktemp("odd") / "base") as server:
        assert server.pack_failure() is None
        yield Fuzzer(server.client)


def test_the_valid_prompt_of_each_node_gives_finite_results(fuzzer):
    assert {node: fuzzer.run(prompt) for node, prompt in fuzzer.valid.items()} == dict.fromkeys(fuzzer.names, "finite")


@settings(max_examples=CI_COUNT, derandomize=True, suppress_health_check=list(HealthCheck))
@given(number=st.integers(0, 2**32))
def test_an_odd_input_gives_finite_results_or_an_error_that_names_it(fuzzer, number):
    assert not fuzzer.one(f"ci/{number}")
