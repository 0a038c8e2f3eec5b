"""Networks of the user's own: structures that surprise, and builders that load their own weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdcompress.errors import NetworkError
from kdcompress.networks.build import build
from kdcompress.networks.own_weights import compare_builds, fingerprint
from kdcompress.networks.tapped import Tapped
from kdcompress.networks.teacher import FrozenTeacher
from kdcompress.networks.trainable import check_trainable

SIDE, CLASSES = 8, 4
MAPS = frozenset({"logits", "stages", "pre"})


class Mlp(nn.Sequential):
    """No map anywhere; with one channel not even a copy of the images is one."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(SIDE * SIDE, 16), nn.ReLU(), nn.Linear(16, CLASSES))


class Shared(nn.Module):
    """One convolution under two names, called at two resolutions, and a layer that is never called."""

    def __init__(self):
        super().__init__()
        self.stem, self.block = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.alias, self.never = self.block, nn.Linear(3, 7)
        self.relu, self.pool, self.fc = nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.relu(self.stem(x))
        for _ in range(2):
            x = self.pool(self.relu(self.block(x)))
        return self.fc(x.mean((2, 3)))


class ByName(nn.Module):
    """Its layers are called with keyword arguments."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.fc = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.fc(input=self.relu(input=self.conv(input=x)).mean((2, 3)))


class Functional(nn.Module):
    """No modules, parameters alone."""

    def __init__(self):
        super().__init__()
        self.kernel, self.matrix = (
            nn.Parameter(torch.randn(8, 1, 3, 3)),
            nn.Parameter(torch.randn(8, CLASSES)),
        )

    def forward(self, x):
        return torch.relu(nn.functional.conv2d(x, self.kernel)).mean((2, 3)) @ self.matrix


class DeeperInEvaluation(Shared):
    """Calls a module less often in training, as stochastic depth does."""

    def forward(self, x):
        x = self.pool(self.relu(self.stem(x)))
        for _ in range(1 if self.training else 2):
            x = self.relu(self.block(x))
        return self.fc(x.mean((2, 3)))


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(CLASSES))

    def forward(self, x):
        return self.bias.expand(len(x), -1)


class Detached(Mlp):
    def forward(self, x):
        return super().forward(x).detach()


class NoParameters(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :CLASSES]


def tapped(network):
    return Tapped(network, "python:mine:net", image_size=(SIDE, SIDE), channels=1, mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize("kind", [Mlp, Shared, ByName, Functional, DeeperInEvaluation])
def test_any_structure_gives_its_logits_as_student_and_as_teacher(kind):
    torch.manual_seed(0)
    network = kind().eval()
    images = torch.rand(3, 1, SIDE, SIDE)
    expected = network((images - 0.5) / 0.5)
    read = tapped(network)
    assert read.num_classes == CLASSES
    torch.testing.assert_close(read(images).logits, expected)
    torch.testing.assert_close(FrozenTeacher(read)(images).logits, expected)
    torch.testing.assert_close(read(images, MAPS).logits, expected)
    check_trainable(read)


@pytest.mark.parametrize(("kind", "stages"), [(Mlp, 0), (Functional, 0), (Shared, 2)])
def test_stages_are_found_where_maps_are(kind, stages):
    assert len(tapped(kind()).taps.stages) == stages


@pytest.mark.parametrize(("kind", "message"), [
    (Constant, "its output does not depend on the images"),
    (Detached, "no gradient reaches its parameters"),
    (NoParameters, "has no parameters, so there is nothing to train"),
])  # fmt: skip
def test_what_cannot_learn_is_refused_before_the_training(kind, message):
    with pytest.raises(NetworkError, match=message):
        check_trainable(tapped(kind()))


def test_a_module_that_training_calls_otherwise_is_refused_where_it_is_read_and_nowhere_else():
    network = tapped(DeeperInEvaluation())
    check_trainable(network)
    with pytest.raises(NetworkError, match="is not called in this pass as it was in the dry run; name other"):
        check_trainable(network, MAPS)


def test_the_check_leaves_the_network_as_it_was():
    network = build("cifar/resnet8", num_classes=CLASSES, channels=1, image_size=(SIDE, SIDE)).eval()
    network.fc.weight.requires_grad_(False)
    read = tapped(network)
    before, state = fingerprint(network), torch.get_rng_state()
    check_trainable(read, MAPS)
    assert fingerprint(network) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert not network.training
    assert [name for name, p in network.named_parameters() if not p.requires_grad] == ["fc.weight"]


def test_torchscript_is_refused_with_one_message():
    with pytest.warns(FutureWarning):
        scripted = torch.jit.script(nn.Linear(SIDE, CLASSES))
    with pytest.raises(NetworkError, match="0 is a TorchScript module"):
        tapped(nn.Sequential(scripted))


# ---- two builds


def drawn(seed, classes=CLASSES):
    torch.manual_seed(seed)
    return build("cifar/resnet8", num_classes=classes, channels=1, image_size=(SIDE, SIDE))


def test_equal_builds_are_pretrained_as_they_are():
    found = compare_builds(drawn(1), drawn(1), "net")
    assert (found.pretrained, found.classifier_drawn) == (True, False)


def test_different_builds_are_not_pretrained_though_their_constants_are_equal():
    found = compare_builds(drawn(1), drawn(2), "net")
    assert (found.pretrained, found.equal) == (False, 0)


@pytest.mark.parametrize("draw", [nn.init.normal_, nn.init.zeros_])
def test_a_new_classifier_on_equal_weights_is_found(draw):
    first, second = drawn(1), drawn(1)
    for network in (first, second):
        draw(network.fc.weight)
    found = compare_builds(first, second, "net")
    assert (found.pretrained, found.classifier_drawn) == (True, True)


def test_builds_of_different_networks_are_refused():
    with pytest.raises(NetworkError, match="two calls built networks with different parameters"):
        compare_builds(drawn(1), drawn(1, classes=5), "net")
