"""Rounded passes against the truth: the int8 file of the same weights, run by onnxruntime."""

from __future__ import annotations

import copy
import platform

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdcompress.bench.environment import environment
from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.calibration import Calibration
from kdcompress.deploy.float_graph import outputs
from kdcompress.deploy.formats import onnx as onnx_format
from kdcompress.deploy.int8_diagnosis import usual_target
from kdcompress.deploy.quantize import Quantiser
from kdcompress.errors import NetworkError
from kdcompress.networks.build import build
from kdcompress.networks.rounding import Rounding

MEAN, STD = 0.4, 0.2
# Without VNNI instructions the products of 8-bit weights saturate: such a file is no truth to compare with.
TARGET = usual_target(platform.machine(), environment()["isa"])
BITS = 7 if TARGET == "x86-novnni" else 8


def pictures(count, side, seed=1):
    """Smooth images: noise alone has hardly any contrast."""
    noise = torch.rand(count, 3, side + 4, side + 4, generator=torch.Generator().manual_seed(seed))
    return (F.avg_pool2d(noise, 5, 1) * 4 - 1.5).clamp(0, 1)


def normalised(images):
    return (images - MEAN) / STD


def with_statistics(network, images):
    """The network with the batch-norm statistics of the images, so that its maps are of sane size."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            module.momentum = None
    network.train()
    with torch.no_grad():
        network(normalised(images))
    return network.eval()


def built(name, side, **options):
    torch.manual_seed(0)
    network = build(name, num_classes=10, channels=3, image_size=(side, side), **options)
    return with_statistics(network, pictures(48, side))


def of_the_file(network, side, seen, asked, folder):
    """(logits of the int8 file, its graph, layers with weights)."""
    spec = InputSpec(3, side, side, mean=(MEAN,) * 3, std=(STD,) * 3)
    onnx_format.write(network, spec, folder / "student.onnx", metadata={})
    quantiser = Quantiser(folder / "student.onnx", Calibration((seen.numpy(),), 0, ""), TARGET)
    graph = quantiser.graph()
    return torch.from_numpy(outputs(graph, asked.numpy())), graph, quantiser.layers


# The bounds are about twice what was measured (0.16, 0.13, 0.22). What remains is chaos: a sum in another
# order rounds to another level now and then, and each such level moves others behind it. Rounding at wrong
# places, without the biases, or none at all gives 0.5 to 1.
@pytest.mark.parametrize(
    ("name", "side", "bound"),
    [
        ("cifar/resnet8", 32, 0.3),
        ("cifar/wrn-16-1", 32, 0.3),
        pytest.param("torchvision/mobilenet_v3_small", 32, 0.45, marks=pytest.mark.exhaustive),
    ],
)
def test_rounded_passes_are_nearer_to_the_int8_file_than_the_file_is_to_float(name, side, bound, tmp_path):
    network, images = built(name, side), pictures(48, side)
    seen, asked = images[:32], images[32:]
    truth, graph, layers = of_the_file(network, side, seen, asked, tmp_path)
    rounding = Rounding(network, [normalised(seen)], weight_bits=BITS)
    given = normalised(asked)
    with torch.no_grad():
        exact = network(given)
        with rounding.rounded():
            ours = network(given)
    assert rounding.plan.layers == len(layers)
    # Flattening is rounded twice in the file, to the same levels.
    pairs = sum(node.op_type == "QuantizeLinear" for node in graph.graph.node)
    assert len(rounding.plan.uses) == pairs - 1
    assert (ours - truth).norm() < bound * (truth - exact).norm()
    assert (truth - exact).norm() > 0


def test_the_levels_are_those_of_the_file(tmp_path):
    from onnx import numpy_helper

    network, images = built("cifar/resnet8", 16), pictures(32, 16)
    _, graph, _ = of_the_file(network, 16, images, images[:1], tmp_path)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    theirs = {
        (float(values[node.input[1]]), int(values[node.input[2]]))
        for node in graph.graph.node
        if node.op_type == "QuantizeLinear"
    }
    rounding = Rounding(network, [normalised(images)])
    ours = list(zip(rounding.scales.tolist(), rounding.zeros.tolist(), strict=True))
    assert len(ours) == len(theirs)
    for scale, zero in ours:
        assert any(abs(scale / known - 1) < 1e-5 and zero == at for known, at in theirs), (scale, zero)


def test_every_parameter_gets_a_gradient_near_that_of_the_float_pass():
    network, images = built("cifar/resnet8", 16), normalised(pictures(32, 16))
    rounding = Rounding(network, [images])
    gradients = []
    for context in (rounding.rounded, torch.enable_grad):
        network.zero_grad()
        with context():
            logits = network(images)
        F.cross_entropy(logits, torch.arange(32) % 10).backward()
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters()})
    for name, exact in gradients[1].items():
        cosine = F.cosine_similarity(gradients[0][name].flatten(), exact.flatten(), dim=0)
        # Where rounding turns a ReLU off or on, the gradient follows it.
        assert cosine > 0.8, name


def test_levels_move_only_when_they_are_measured_and_are_all_that_a_checkpoint_holds():
    network, images = built("cifar/resnet8", 16), normalised(pictures(32, 16))
    rounding = Rounding(network, [images])
    before = rounding.scales.clone()
    with torch.no_grad():
        network.conv1.weight.mul_(3)
        with rounding.rounded():
            network(images)
    assert torch.equal(rounding.scales, before)
    rounding.measure(network)
    assert not torch.equal(rounding.scales, before)
    assert set(rounding.state_dict()) == {"scales", "zeros"}


def test_the_network_is_left_as_it_was_and_its_copy_can_be_rounded_too():
    network, images = built("cifar/resnet8", 16), normalised(pictures(32, 16))
    state = copy.deepcopy(network.state_dict())
    rounding = Rounding(network, [images])
    with torch.no_grad(), rounding.rounded():
        first = network(images)
    twin = copy.deepcopy(network)
    with torch.no_grad(), rounding.rounded():
        assert torch.equal(twin(images), first)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_what_int8_adds_up_in_place_is_not_overwritten_for_another_reader():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            x = self.a(x)
            y = self.b(x)
            y += x
            y.relu_()
            return self.fc((y + x).mean((2, 3)))

    torch.manual_seed(0)
    network, images = Residual(), torch.randn(4, 3, 5, 5)
    rounding = Rounding(network, [images])
    with rounding.rounded():
        rounded = network(images)
    rounded.sum().backward()
    assert (rounded - network(images)).abs().max() < 0.1
    assert all(p.grad is not None for p in network.parameters())


def test_a_network_without_layers_has_nothing_to_round():
    class Pooled(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    with pytest.raises(NetworkError, match="no convolution and no linear layer"):
        Rounding(Pooled(), [torch.rand(2, 3, 4, 4)])


def test_a_network_that_changes_its_mind_is_refused():
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.more = nn.Linear(3, 3), False

        def forward(self, x):
            x = self.fc(x.flatten(1))
            return torch.sigmoid(x) + x if self.more else x

    network, images = Moody(), torch.rand(2, 3, 1, 1)
    rounding = Rounding(network, [images])
    network.more = True
    with pytest.raises(NetworkError, match="computes otherwise from pass to pass"), rounding.rounded():
        network(images)
