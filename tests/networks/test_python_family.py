from __future__ import annotations

import sys
import textwrap

import pytest
from torch import nn

from kdcompress.errors import NetworkError, Uncuttable, UserError
from kdcompress.networks.build import build, segments

OWN_NETWORKS = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self, num_classes, channels=3):
            super().__init__()
            self.fc = nn.Linear(channels, num_classes)

    def everything(**settings):
        net = Net(settings["num_classes"], settings["channels"])
        net.settings = settings
        return net

    def no_network(num_classes):
        return "a string"

    def needs_more(num_classes, depth):
        return Net(num_classes)

    def broken(num_classes):
        raise ZeroDivisionError("my own bug")

    constant = 3
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch, request):
    """A module in the current folder, under a name of its own, forgotten afterwards."""
    name = f"own_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(OWN_NETWORKS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield name
    sys.modules.pop(name, None)


def build_own(spec: str, **settings: bool) -> nn.Module:
    return build(f"python:{spec}", num_classes=4, channels=1, image_size=(8, 9), **settings)


def test_code_runs_only_when_it_is_allowed(own_module):
    with pytest.raises(UserError, match="runs code of yours; pass --allow-code"):
        build_own(f"{own_module}:Net")
    assert own_module not in sys.modules


def test_own_networks_get_what_their_signature_accepts_and_the_current_folder_is_searched(own_module):
    before = list(sys.path)
    assert build_own(f"{own_module}:Net", allow_code=True).fc.weight.shape == (4, 1)
    everything = build_own(f"{own_module}:everything", allow_code=True)
    assert everything.settings == {"num_classes": 4, "channels": 1, "image_size": (8, 9)}
    assert sys.path == before
    with pytest.raises(Uncuttable, match="not from your own"):
        segments(f"python:{own_module}:Net", everything)


@pytest.mark.parametrize(("function", "message"), [
    ("no_network", "expected an nn.Module, got a str"),
    ("needs_more", "needs depth, but is called with num_classes, channels and image_size"),
    ("broken", r"failed when it was called at .*\.py:\d+: ZeroDivisionError: my own bug"),
    ("constant", "'constant' is a int, not a function"),
    ("everythin", "has no 'everythin'; did you mean 'everything'"),
])  # fmt: skip
def test_mistakes_in_own_networks_are_one_line(own_module, function, message):
    with pytest.raises(NetworkError, match=message):
        build_own(f"{own_module}:{function}", allow_code=True)


def test_own_modules_that_cannot_be_imported_are_one_line(own_module, tmp_path):
    with pytest.raises(NetworkError, match="there is no module 'nowhere_to_be_found', also not in"):
        build_own("nowhere_to_be_found:Net", allow_code=True)
    with pytest.raises(NetworkError, match=r"expected python:package.module:function"):
        build_own("module_alone", allow_code=True)
    (tmp_path / "own_imports.py").write_text("import a_package_that_is_missing\n")
    with pytest.raises(NetworkError, match="imports 'a_package_that_is_missing', which is not installed"):
        build_own("own_imports:Net", allow_code=True)
    (tmp_path / "own_syntax.py").write_text("def net(:\n")
    with pytest.raises(NetworkError, match=r"failed while it was imported.*SyntaxError"):
        build_own("own_syntax:net", allow_code=True)
