from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from several_families import SMALL, images_for, randomise_batch_norm, tapped
from torch import nn

from kdcompress.data.batch import Batch, DataInfo, View
from kdcompress.errors import NetworkError
from kdcompress.methods.base import configured
from kdcompress.networks.activations import LOGITS, Activations
from kdcompress.networks.fold import foldable
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import ALL, Tapped
from kdcompress.networks.teacher import FrozenTeacher, teacher_network


@pytest.mark.parametrize("model", SMALL)
def test_a_folded_teacher_reads_as_the_network_does_in_eval_mode(model):
    network = tapped(model)
    teacher = FrozenTeacher(network)
    images = images_for(network)
    network.train_mode(False)
    with torch.no_grad():
        expected = network(images, ALL)
    got = teacher(images, ALL)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.network.modules())
    # DenseNet and wide ResNets normalise sums and concatenations, which no convolution can absorb.
    assert teacher.folded == norms or model in ("torchvision/densenet121", "cifar/wrn-16-1")
    assert teacher.folded > 0
    for a, b in [
        (got.logits, expected.logits),
        (got.pooled, expected.pooled),
        *((got.stages[name], expected.stages[name]) for name in expected.stages),
        *((got.pre[name], expected.pre[name]) for name in expected.pre),
    ]:
        assert (a - b).abs().max() <= 1e-4 * b.std()


def test_the_teacher_carries_no_gradient_and_its_network_stays_as_it_was():
    network = tapped("cifar/resnet8x4")
    network.train_mode(True)
    before = {name: tensor.clone() for name, tensor in network.network.state_dict().items()}
    teacher = FrozenTeacher(network)
    got = teacher(images_for(network), ALL)
    assert not any(t.requires_grad for t in [got.logits, got.pooled, *got.stages.values(), *got.pre.values()])
    assert not got.logits.is_inference()  # inference tensors cannot be saved for a student's backward
    assert network.network.training
    assert all(parameter.requires_grad for parameter in network.network.parameters())
    for name, tensor in network.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    teacher.assert_unchanged()


def test_a_changed_teacher_is_told_by_the_tensor_that_changed():
    network = tapped("cifar/resnet8x4")
    teacher = FrozenTeacher(network)
    network.train_mode(True)
    network(images_for(network))
    with pytest.raises(AssertionError, match=r"teacher's bn1.num_batches_tracked changed"):
        teacher.assert_unchanged()


def test_a_changed_frozen_copy_is_told_too():
    teacher = FrozenTeacher(tapped("cifar/resnet8x4"))
    with torch.no_grad():
        teacher._frozen.network.fc.bias.data += 1
    with pytest.raises(AssertionError, match=r"frozen copy's fc.bias"):
        teacher.assert_unchanged()


class Remembered:
    """A teacher that is no network: it has one answer for every image."""

    model, tapped, num_classes, size, precision = "answers.onnx", None, 5, None, None

    def __call__(self, images, want=LOGITS):
        rows = images.images if isinstance(images, View) else images
        return Activations(logits=torch.arange(5.0).expand(len(rows), 5))


def test_a_teacher_need_be_no_network():
    student, teacher = tapped("cifar/resnet8x4"), Remembered()
    info = DataInfo(5, torch.zeros(8, dtype=torch.int64), (32, 32), 3)
    cls, config = configured({"name": "kd"})
    method = cls(config, Networks(student, teacher), info)
    images = images_for(student)
    rows = torch.arange(3)
    terms = method.losses(Batch((View(images, rows, 0),), torch.zeros(3, dtype=torch.int64), rows))
    assert all(bool(term.isfinite()) for term in terms.values())
    with pytest.raises(NetworkError, match=r"method x: needs the teacher as a network, and answers\.onnx"):
        teacher_network(teacher, "method x")
    frozen = FrozenTeacher(student)
    assert teacher_network(frozen, "method x") is student
    assert frozen.normalisation == [student.mean.tolist(), student.std.tolist()]
    assert frozen.input_spec == student.input_spec


def test_a_view_is_read_as_its_images():
    teacher = FrozenTeacher(tapped("cifar/resnet8x4"))
    images = images_for(teacher.tapped)
    view = View(images, torch.arange(3), 0)
    assert torch.equal(teacher(view).logits, teacher(images).logits)


def test_classify_lets_the_gradient_through_to_its_input_and_nowhere_else():
    teacher = FrozenTeacher(tapped("cifar/resnet8x4"))
    pooled = teacher(images_for(teacher.tapped), frozenset({"pooled"})).pooled.requires_grad_()
    logits = teacher.classify(pooled)
    torch.testing.assert_close(logits, teacher(images_for(teacher.tapped)).logits)
    logits.sum().backward()
    assert pooled.grad is not None
    assert all(p.grad is None for p in teacher.tapped.network.parameters())
    teacher.assert_unchanged()


def test_images_are_resized_to_the_teachers_own_size():
    network = tapped("cifar/resnet8x4")
    teacher = FrozenTeacher(network, size=(32, 32))
    images = torch.rand(2, 3, 48, 40)
    small = F.interpolate(images, (32, 32), mode="bilinear", antialias=True)
    assert torch.equal(teacher(images).logits, teacher(small).logits)
    assert teacher.shapes((48, 40)).stages["stage1"].shape == (2, 64, 32, 32)
    assert FrozenTeacher(network).shapes((48, 40)).stages["stage1"].shape == (2, 64, 48, 40)


def test_a_teacher_with_a_size_of_its_own_has_the_stages_of_that_size():
    network = tapped("torchvision/resnet18").at((8, 8))
    assert len(network.taps.stages) < 4
    teacher = FrozenTeacher(network, size=(64, 64))
    got = teacher(torch.rand(2, 3, 8, 8), ALL)
    assert [stage.shape[2] for stage in got.stages.values()] == [16, 8, 4, 2]
    assert [stage.shape[2] for stage in teacher.shapes().stages.values()] == [16, 8, 4, 2]


def test_timms_batch_norm_with_activation_is_folded_and_still_tapped():
    timm = pytest.importorskip("timm")
    network = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=4)
    randomise_batch_norm(network)
    read = Tapped(network, "timm/x", image_size=(64, 64), channels=3, mean=(0.5,), std=(0.2,))
    teacher = FrozenTeacher(read)
    assert teacher.folded == 34
    network.eval()
    images = images_for(read)
    got, expected = teacher(images, ALL), read(images, ALL)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-3, atol=1e-4)
    assert read.taps.pre["stage1"].path == "bn1.act"
    torch.testing.assert_close(got.pre["stage1"], expected.pre["stage1"], rtol=1e-3, atol=1e-4)


def test_precision_can_be_changed_there_and_back():
    network = tapped("cifar/resnet8x4")
    teacher = FrozenTeacher(network)
    images = images_for(network)
    exact = teacher(images, ALL)
    teacher.precision = torch.bfloat16
    assert teacher.precision is torch.bfloat16
    rough = teacher(images, ALL)
    assert rough.logits.dtype == rough.stages["stage1"].dtype == torch.float32
    assert 0 < (rough.logits - exact.logits).abs().max() < 0.1 * exact.logits.std()
    torch.testing.assert_close(teacher.classify(rough.pooled), rough.logits)
    teacher.assert_unchanged()
    teacher.precision = None
    assert torch.equal(teacher(images).logits, exact.logits)


def test_a_teacher_need_not_fold():
    teacher = FrozenTeacher(tapped("cifar/resnet8x4"), fold=False)
    assert teacher.folded == 0
    assert any(isinstance(module, nn.BatchNorm2d) for module in teacher._frozen.network.modules())


class Shared(nn.Module):
    """Each of these batch norms has a reason not to be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.read_twice = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm3 = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 4, 1)
        self.norm4 = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm2(self.twice(self.norm1(self.twice(x))))
        x = self.read_twice(x)
        x = x + self.norm3(x)
        return self.fc(torch.relu(self.norm4(self.last(x))).mean((2, 3)))


def test_only_a_batch_norm_that_alone_reads_its_convolution_is_folded():
    network = Shared()
    randomise_batch_norm(network)
    read = Tapped(network, "x/y", image_size=(16, 16), channels=3, mean=(0.5,), std=(0.2,))
    assert foldable(read) == [("last", "norm4")]
    teacher = FrozenTeacher(read)
    assert teacher.folded == 1
    network.eval()
    torch.testing.assert_close(
        teacher(torch.full((2, 3, 16, 16), 0.3)).logits, read(torch.full((2, 3, 16, 16), 0.3)).logits
    )


def test_a_tapped_convolution_keeps_its_own_output():
    network = tapped("cifar/resnet8x4", stage1="conv1")
    teacher = FrozenTeacher(network)
    assert ("conv1", "bn1") not in foldable(network)
    network.train_mode(False)
    images = images_for(network)
    torch.testing.assert_close(teacher(images, ALL).stages["stage1"], network(images, ALL).stages["stage1"])


def test_a_teacher_that_folding_would_change_is_left_unfolded(monkeypatch):
    network = tapped("cifar/resnet8x4")
    monkeypatch.setattr(
        "kdcompress.networks.teacher.foldable", lambda _: [("layer1.0.conv1", "layer1.0.bn2")]
    )
    teacher = FrozenTeacher(network)
    assert (teacher.folded, teacher.foldable) == (0, 1)
    network.train_mode(False)
    images = images_for(network)
    torch.testing.assert_close(teacher(images, LOGITS).logits, network(images).logits)


def test_a_network_that_amplifies_float32_rounding_is_folded():
    network = tapped("torchvision/mobilenet_v2")
    torch.manual_seed(0)
    for module in network.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(1e-4, 2e-4)  # dead and nearly dead channels, as trained networks have
    plain, folded = FrozenTeacher(network, fold=False), FrozenTeacher(network)
    assert folded.folded == folded.foldable == 52
    images = images_for(network)
    a, b = folded(images, ALL).stages, plain(images, ALL).stages
    # The control: in float32 the two differ by more than a comparison could allow, and both are finite.
    worst = max(float((a[name] - b[name]).abs().max() / b[name].std()) for name in b)
    assert 1e-4 < worst < 1


def test_the_precision_of_the_processor_does_not_decide_about_folding(monkeypatch):
    # Convolutions that round their inputs to ten bits, as TF32 does on a GPU, in float32 alone.
    exact = nn.Conv2d._conv_forward

    def rounded(self, images, weight, bias):
        if images.dtype == torch.float32:
            images, weight = (t.bfloat16().float() for t in (images, weight))
        return exact(self, images, weight, bias)

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", rounded)
    assert FrozenTeacher(tapped("cifar/resnet8x4")).folded == 10


def test_a_network_of_float64_is_read_in_it():
    network = tapped("cifar/resnet8x4").network.double()
    read = Tapped(network, "x/y", image_size=(32, 32), channels=3, mean=(0.5,), std=(0.2,))
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    assert read(images, ALL).stages["stage2"].dtype == torch.float64
    assert FrozenTeacher(read)(images).logits.dtype == torch.float64
