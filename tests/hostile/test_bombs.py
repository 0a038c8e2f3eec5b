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


@pytest.mark.parametrize(
    "make",
    [bombs.lists_of_one_list, bombs.lists_of_one_tensor, bombs.list_that_holds_itself],
    ids=lambda make: make.__name__,
)
def test_lists_that_stand_in_endlessly_many_places_are_read_in_a_few(ended, make):
    code, output = ended(make, bombs._strip)
    assert (code, "kept: model" in output) == (0, True), output


def test_export_reads_such_lists_in_a_few_places_too(ended):
    code, output = ended(bombs.lists_of_one_tensor, bombs._export)
    assert (code, "--mean and --std: required" in output) == (2, True), output


@pytest.mark.parametrize(
    "make",
    [bombs.key_of_doubled_tuples, bombs.key_of_doubled_tuples_in_the_old_format],
    ids=lambda make: make.__name__,
)
def test_a_key_whose_hash_takes_for_ever_is_refused_unread(ended, make):
    code, output = ended(make, bombs._strip)
    assert (code, "the same tuples or lists stand in it too many times" in output) == (2, True), output


def test_a_name_of_many_parts_is_looked_at_once(ended):
    code, output = ended(bombs.name_of_dots, bombs._strip)
    assert (code, len(output) < 2000) == (0, True), output[:2000]


@pytest.mark.parametrize("read", [bombs._strip, bombs._export, bombs._evaluate], ids=lambda f: f.__name__)
def test_a_packed_checkpoint_is_not_unpacked(ended, read):
    code, output = ended(bombs.packed_zeros, read)
    assert code == 2, output
    assert read is bombs._evaluate or "would take 315 MB unpacked, so it was not read" in output, output


def test_layers_in_any_order_are_followed_once(ended):
    assert ended(bombs.layers_in_reverse, bombs._facts)[0] == 0


@pytest.mark.parametrize("make", [bombs.many_axes, bombs.many_axes_in_openvino], ids=lambda f: f.__name__)
def test_sizes_that_nobody_could_multiply_are_refused(ended, make):
    code, output = ended(make, bombs._facts)
    assert (code, "damaged" in output) == (2, True), output


def test_images_of_any_size_that_a_recipe_allows_are_counted_without_memory(ended):
    assert ended(bombs.weights_for_images_of(4096), bombs._facts)[0] == 0


@pytest.mark.parametrize(
    ("make", "reader", "message"),
    [
        (bombs.weights_for_images_of(16384), "load", "is more than 50,331,648 numbers"),
        (bombs.weights_for_images_of(16384), "bench", "is more than 50,331,648 numbers"),
        (bombs.graph_for_images_of(16384), "load", "1×16384×16384 is more than 50,331,648 numbers"),
        (
            bombs.graph_for_images_of(4096),
            "evaluate",
            "says images of 1×4096×4096, its graph takes 1×8×8",
        ),
        (bombs.graph_of_large_images, "load", "more than 50,331,648 numbers are refused"),
        (bombs.graph_of_large_images, "bench", "more than 50,331,648 numbers are refused"),
    ],
)
def test_larger_images_are_refused(ended, make, reader, message):
    code, output = ended(make, bombs.READERS[reader])
    assert code == 2, output
    assert message.replace("×", "\\xd7") in output.replace("×", "\\xd7"), output  # a class is shown in ASCII
