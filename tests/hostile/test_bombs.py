"""No small input takes endless time or memory; each ends in one message that says what is wrong with it."""

from __future__ import annotations

import pytest

from hostile import bombs, cases, forked

ABOVE_MB = 1024
"""Memory above that of a whole file."""


@pytest.fixture(scope="module")
def least_mb(tmp_path_factory):
    """Memory that the program takes for a file that is whole."""
    folder = tmp_path_factory.mktemp("whole") / "case"
    ending = forked.run(lambda rng, folder: bombs.READERS["evaluate"](cases.GRAPH), 0, folder)
    assert ending.code == 0, ending.output
    return ending.megabytes


@pytest.fixture
def ended(tmp_path, least_mb):
    """Hands an input to a command, and gives the exit code and the message."""

    def run(make, read):
        ending = forked.run(lambda rng, folder: read(make(folder)), 0, tmp_path / "case")
        assert ending.problem(least_mb + ABOVE_MB) is None, (ending.problem(0), ending.output[-1500:])
        return ending.code, ending.output

    return run


@pytest.mark.parametrize("reader", bombs.READERS)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bombs.doubling_functions, "its functions become more than 10,000 nodes or 64 levels"),
        (bombs.function_that_calls_itself, "its function f calls itself"),
        (bombs.long_chain_of_functions, "its functions become more than 10,000 nodes or 64 levels"),
        (bombs.nested_subgraphs, "is not a whole ONNX file"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_functions_and_subgraphs_without_end_are_refused_wherever_a_graph_is_read(
    ended, make, message, reader
):
    code, output = ended(make, bombs.READERS[reader])
    assert (code, message in output) == (2, True), output


@pytest.mark.parametrize("reader", bombs.READERS)
def test_a_graph_in_a_circle_is_refused(ended, reader):
    code, output = ended(bombs.identity_cycle, bombs.READERS[reader])
    assert code == 2, output


def test_a_weight_that_goes_through_many_nodes_is_followed_once(ended):
    assert ended(bombs.long_identity_chain, bombs._facts)[0] == 0
