from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from small_training import ALONE, CLASSES, Small, Watcher, assert_same, images, tapped
from torch import nn

from kdcompress.data.batch import DataInfo, no_labels
from kdcompress.data.loader import EvaluationLoader
from kdcompress.errors import Interrupted, NetworkError, Uncuttable
from kdcompress.methods import losses
from kdcompress.methods.hierarchy import TeacherHeads, cuttable, joint_heads
from kdcompress.methods.offline.hsakd import HSAKD
from kdcompress.networks.build import build
from kdcompress.networks.exits import exit_after
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import Tapped
from kdcompress.networks.teacher import FrozenTeacher
from kdcompress.recipe import OptimSection, TrainSection
from kdcompress.train.job import Job
from kdcompress.train.journal import Journal
from kdcompress.train.trainer import Trainer

STAGES = ["stage1", "stage2", "stage3"]


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(model, side=32, classes=3, **taps):
    torch.manual_seed(0)
    made = build(model, num_classes=classes, channels=3, image_size=(side, side))
    return Tapped(
        made, model, image_size=(side, side), channels=3, mean=(0.5,), std=(0.2,), taps=taps or None
    )


def beside(student, teacher, side=32, classes=3, **config):
    info = DataInfo(classes, no_labels(0), (side, side), 3)
    return HSAKD(HSAKD.Config(**config), Networks(student, FrozenTeacher(teacher)), info)


def test_a_joint_label_is_four_times_the_class_plus_the_quarter_turns():
    got = losses.joint_labels(torch.tensor([2, 0, 1]))
    assert got.tolist() == [8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7]
    image = torch.arange(4.0).reshape(1, 1, 2, 2)
    turned = losses.four_rotations(image)
    for row, label in enumerate(losses.joint_labels(torch.tensor([5])).tolist()):
        assert label == 20 + row
        assert torch.equal(turned[row], torch.rot90(image[0], row, (1, 2)))


def test_an_image_without_a_label_has_no_joint_label_either():
    assert losses.joint_labels(torch.tensor([-1, 1])).tolist() == [-1, -1, -1, -1, 4, 5, 6, 7]


def test_a_class_scores_the_sum_of_its_four_joint_logits():
    joint = torch.tensor([[1.0, 2, 3, 4, 10, 20, 30, 40]])
    assert losses.joint_to_class_logits(joint).tolist() == [[10, 100]]
    assert losses.joint_to_class_logits(joint.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("model", ["cifar/resnet8", "torchvision/mobilenet_v3_small"])
def test_a_head_is_what_follows_the_stage_with_four_times_the_classes(model):
    net = network(model)
    before = {key: value.clone() for key, value in net.network.state_dict().items()}
    heads = joint_heads(net, cuttable(net, "student"))
    maps = net.shapes().stages
    assert list(heads) == list(maps)
    for stage, head in heads.items():
        logits = head(torch.rand(4, *maps[stage].shape[1:])).logits
        assert logits.shape == (4, 12)
        ours = [tuple(p.shape) for p in head.parameters()]
        theirs = [tuple(p.shape) for p in exit_after(net, stage).parameters()]
        assert ours[:-2] == theirs[:-2]
        assert ours[-2:] == [(12, theirs[-2][1]), (12,)]
    assert_same(before, net.network.state_dict())


def test_a_head_of_the_deepest_stage_is_its_average_and_a_linear_layer():
    head = joint_heads(network("cifar/resnet8"), ["stage3"])["stage3"]
    linear = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
    map_BCHW = torch.rand(2, 64, 8, 8)
    assert len(linear) == 1
    torch.testing.assert_close(head(map_BCHW).logits, linear[0](map_BCHW.mean((2, 3))))


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ("cifar/resnet8", "cifar/resnet14", dict(zip(STAGES, STAGES, strict=True))),
        (
            "cifar/shufflenet-v2",
            "cifar/resnet14",
            {"stage2": "stage1", "stage3": "stage2", "stage4": "stage3"},
        ),
        (
            "cifar/resnet8",
            "torchvision/mobilenet_v3_small",
            {"stage1": "stage3", "stage2": "stage4", "stage3": "stage5"},
        ),
    ],
)
def test_stages_are_matched_from_the_deepest_and_the_shallowest_of_the_longer_network_stay_out(
    student, teacher, expected
):
    net = network(teacher)
    made = beside(network(student), net)
    assert made.stages == expected
    assert list(made.heads) == list(expected)
    # The preparation knows no student, so it leaves a head for each of the teacher's stages.
    assert list(made.teacher_heads) == list(net.shapes().stages)
    terms = made.losses(batch_of(32))
    assert set(terms) == {"ce", "kd", *(f"joint_{stage}" for stage in expected)}


def batch_of(side, count=4):
    loader = EvaluationLoader(images(count, side), device=torch.device("cpu"))
    batch = next(iter(loader))
    batch.labels[:] = batch.labels % 3
    return batch


def test_both_networks_see_every_image_in_four_turns_and_heads_their_maps(tmp_path):
    small = Small(tmp_path, "hsakd")
    seen = {}

    def note(name):
        return lambda module, args: seen.update({name: args[0].detach()})

    small.student.network.register_forward_pre_hook(note("student"))
    small.frozen._frozen.network.register_forward_pre_hook(note("teacher"))
    for stage in STAGES:
        small.method.heads[stage].register_forward_pre_hook(note(f"student {stage}"))
        small.method.teacher_heads[stage].register_forward_pre_hook(note(f"teacher {stage}"))
    batch = next(small.loader.epoch(0))
    small.method.losses(batch)
    turned = losses.four_rotations(batch.images)
    assert torch.equal(seen["student"], small.student.normalise(turned))
    assert torch.equal(seen["teacher"], small.teacher.normalise(turned))
    for stage, shape in small.student.shapes().stages.items():
        assert seen[f"student {stage}"].shape == (len(turned), *shape.shape[1:])
    expected = small.frozen(turned, frozenset({"stages"})).stages
    for stage in STAGES:
        assert torch.equal(seen[f"teacher {stage}"], expected[stage])


def test_the_terms_are_their_definition_written_out():
    made = beside(network("cifar/resnet8"), network("cifar/resnet14"), joint_weight=0.5, kd_weight=2.0)
    ours, theirs, labels = rows(8, 3), rows(8, 3, seed=1), torch.tensor([2, 0])
    joint = {"stage1": (rows(8, 12, seed=2), rows(8, 12, seed=3))}
    terms = made.terms(ours, theirs, joint, labels)

    def kl(a, b):
        return (
            9 * F.kl_div((a / 3).log_softmax(1), (b / 3).log_softmax(1), log_target=True, reduction="sum") / 8
        )

    assert terms["ce"].item() == pytest.approx(F.cross_entropy(ours[[0, 4]], labels).item())
    assert terms["kd"].item() == pytest.approx(2 * kl(ours, theirs).item())
    assert terms["joint_stage1"].item() == pytest.approx(0.5 * kl(*joint["stage1"]).item())


def test_labels_reach_the_upright_images_alone_and_soft_labels_those_without_a_label_too():
    made = beside(network("cifar/resnet8"), network("cifar/resnet14"))
    logits = rows(12, 3).requires_grad_()
    terms = made.terms(logits, rows(12, 3, seed=1), {}, torch.tensor([1, -1, 2]))
    (by_label,) = torch.autograd.grad(terms["ce"], logits, retain_graph=True)
    assert by_label.any(dim=1).nonzero().flatten().tolist() == [0, 8]
    (by_teacher,) = torch.autograd.grad(terms["kd"], logits)
    assert by_teacher.any(dim=1).all()


def test_without_a_weight_of_cross_entropy_no_labels_are_needed():
    assert HSAKD.needs(HSAKD.Config()).labels
    needs = HSAKD.needs(HSAKD.Config(ce_weight=0.0))
    assert not needs.labels
    assert needs.unlabelled
    assert needs.cut
    assert "logits" not in HSAKD.needs(HSAKD.Config(kd_weight=0.0)).read_of_teacher


def test_the_teachers_heads_are_constants_of_the_training_and_part_of_its_checkpoint(tmp_path):
    small = Small(tmp_path, "hsakd", train={"epochs": 1})
    method = small.method
    before = {key: value.clone() for key, value in method.teacher_heads.state_dict().items()}
    moving = {id(p) for held in method.parameter_sets().values() for p in held.parameters}
    assert not moving & {id(p) for p in method.teacher_heads.parameters()}
    assert {id(p) for p in method.heads.parameters()} <= moving
    small.run()
    assert_same(before, method.teacher_heads.state_dict())
    saved = torch.load(tmp_path / "student.pt", weights_only=True)["modules"]["method"]
    assert all(torch.equal(saved[f"teacher_heads.{key}"], value) for key, value in before.items())
    method.train()
    heads = method.teacher_heads.values()
    assert not any(module.training for head in heads for module in head.modules())
    assert all(module.training for module in method.heads.modules())


class Preparation:
    """The preparation of a `Small` hsakd, through the loop that every training goes through."""

    def __init__(self, folder, small, *, epochs=6, watcher=None, precision=None):
        folder.mkdir(parents=True, exist_ok=True)
        (asked,) = HSAKD.preparations(small.method.config)
        torch.manual_seed(3)
        # As the pipeline does it: what stands in the student's place is the teacher's own network.
        self.method = asked.method(asked.config, Networks(small.teacher, small.frozen), small.method.data)
        train = TrainSection(epochs=epochs, precision="fp32", ship="last")
        optim = OptimSection(lr=asked.lr, schedule="multistep", milestones=list(asked.milestones))
        job = Job("preparation", folder, train, optim, epochs, False, "kdcompress distill --resume")
        self.folder = folder
        self.trainer = Trainer(
            self.method, small.loader, None, job, ALONE, Journal(folder), watcher or Watcher()
        )  # fmt: skip


def test_the_preparation_teaches_the_heads_joint_classes_and_leaves_the_teacher_alone(tmp_path):
    small = Small(tmp_path / "student", "hsakd", count=80)
    before = {key: value.clone() for key, value in small.teacher.network.state_dict().items()}
    made = Preparation(tmp_path / "preparation", small)
    sets = made.method.parameter_sets()
    assert {id(p) for held in sets.values() for p in held.parameters} == {
        id(p) for p in made.method.heads.parameters()
    }
    outcome = made.trainer.run()
    log = [json.loads(line) for line in (made.folder / "log.jsonl").read_text().splitlines()]
    first, last = log[0]["losses"], log[-1]["losses"]
    assert list(first) == [f"joint_{stage}" for stage in STAGES]
    assert all(last[term] < 0.9 * first[term] for term in first)
    small.frozen.assert_unchanged()
    assert_same(before, small.teacher.network.state_dict())
    # What they say of the class alone is right more often than chance, on images never seen. The
    # deepest reads nothing but averages of a teacher that knows nothing.
    made.method.eval()
    held_out = next(iter(EvaluationLoader(images(40, 8, 1), device=torch.device("cpu"))))
    for stage, scores in made.method.class_logits(held_out.images).items():
        assert scores.shape == (40, CLASSES)
        assert (scores.argmax(1) == held_out.labels).float().mean() > 1.5 / CLASSES, stage
    assert outcome.candidate == "heads"
    assert outcome.model == small.frozen.model

    drawn = {key: value.clone() for key, value in small.method.teacher_heads.state_dict().items()}
    small.method.take_prepared("preparation", outcome.state)
    taken = small.method.teacher_heads.state_dict()
    assert_same(outcome.state, taken)
    assert not torch.equal(taken["stage1.head.2.weight"], drawn["stage1.head.2.weight"])
    batch = next(small.loader.epoch(0))
    turned = losses.four_rotations(batch.images)
    maps = small.frozen(turned, frozenset({"stages"})).stages
    for stage, joint in made.method.joint_logits(turned).items():
        assert torch.equal(small.method.teacher_heads[stage](maps[stage]).logits, joint)


def test_heads_of_another_teacher_are_not_taken(tmp_path):
    small = Small(tmp_path, "hsakd")
    state = dict(small.method.teacher_heads.state_dict())
    missing = state.popitem()[0]
    with pytest.raises(RuntimeError, match=missing.replace(".", ".module.", 1)):
        small.method.take_prepared("preparation", state)


def test_a_stopped_and_resumed_preparation_equals_an_unbroken_one(tmp_path):
    small = Small(tmp_path / "student", "hsakd")
    expected = Preparation(tmp_path / "unbroken", small, epochs=2).trainer.run()
    stopped = Preparation(tmp_path / "stopped", small, epochs=2, watcher=Watcher(3))
    with pytest.raises(Interrupted):
        stopped.trainer.run()
    got = Preparation(tmp_path / "stopped", small, epochs=2).trainer.run()
    assert_same(expected.state, got.state)


def test_the_preparation_computes_in_the_teachers_precision_and_its_losses_in_float32(tmp_path):
    small = Small(tmp_path / "student", "hsakd", precision=torch.bfloat16)
    made = Preparation(tmp_path / "preparation", small, epochs=1)
    batch = next(small.loader.epoch(0))
    for logits in made.method.joint_logits(batch.images).values():
        assert logits.dtype == torch.float32
        assert torch.equal(logits, logits.bfloat16().float())
    assert {term.dtype for term in made.method.losses(batch).values()} == {torch.float32}
    made.trainer.run()


def test_the_preparation_weighs_classes_and_smooths_labels_as_the_run_does():
    teacher = FrozenTeacher(network("cifar/resnet8"))
    weights = torch.tensor([0.5, 1.0, 1.5])
    info = DataInfo(3, no_labels(0), (32, 32), 3, class_weights=weights, label_smoothing=0.1)
    made = TeacherHeads(TeacherHeads.Config(), Networks(teacher.tapped, teacher), info).double()
    joint, labels = rows(8, 12), torch.tensor([2, 0])
    by_hand = 0.0
    for row, label in enumerate([8, 9, 10, 11, 0, 1, 2, 3]):
        log_p = joint[row].log_softmax(0)
        per_class = -weights.double().repeat_interleave(4) * log_p
        by_hand += (0.9 * per_class[label] + 0.1 * per_class.mean()).item() / 8
    got = made.terms({"stage1": joint}, labels)
    assert got["joint_stage1"].item() == pytest.approx(by_hand, rel=1e-12)


def test_the_preparation_is_what_the_config_says():
    (asked,) = HSAKD.preparations(HSAKD.Config())
    assert (asked.method, asked.epochs, asked.lr, asked.milestones) == (
        TeacherHeads, 100, 0.05, (0.3, 0.6, 0.9),
    )  # fmt: skip
    needs = asked.method.needs(asked.config)
    assert (needs.teacher, needs.labels, needs.unlabelled) == (True, True, False)
    (asked,) = HSAKD.preparations(HSAKD.Config(head_epochs=7, head_lr=0.2, head_milestones=[0.5]))
    assert (asked.epochs, asked.lr, asked.milestones) == (7, 0.2, (0.5,))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"ce_weight": 0.0, "kd_weight": 0.0}, "nothing trains the classifier"),
        ({"joint_weight": 0.0}, "joint_weight"),
        ({"head_milestones": [30]}, "head_milestones"),
        ({"head_epochs": 0}, "head_epochs"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(config, message):
    with pytest.raises(ValidationError, match=message):
        HSAKD.Config(**config)


class Own(nn.Module):
    """A network of the user's, whose stages nobody can cut."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.second(self.first(x).relu()).relu().mean((2, 3)))


def own():
    return Tapped(Own(), "python:mine:Own", image_size=(32, 32), channels=3, mean=(0.5,), std=(0.2,))


def test_a_network_that_cannot_be_cut_is_refused_with_the_reason():
    cut = network("cifar/resnet8")
    for student, teacher, role in ((own(), cut, "student"), (cut, own(), "teacher")):
        expected = rf"follows each stage of the {role}; python:mine:Own: heads .* not from your own"
        with pytest.raises(Uncuttable, match=expected):
            beside(student, teacher)


def test_a_network_without_stages_is_refused():
    flat = Tapped(
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3)), "python:mine:flat", image_size=(32, 32),
        channels=3, mean=(0.5,), std=(0.2,),
    )  # fmt: skip
    with pytest.raises(NetworkError, match=r"of the teacher, and python:mine:flat has no stages; choose a"):
        beside(network("cifar/resnet8"), flat)


def test_a_stage_that_cannot_be_cut_stays_out_of_the_matching():
    student = network("cifar/resnet8", stage1="layer1.0.conv1", stage2="layer2", stage3="layer3")
    assert cuttable(student, "student") == {"stage2": 1, "stage3": 0}
    made = beside(student, network("cifar/resnet14"))
    assert made.stages == {"stage2": "stage2", "stage3": "stage3"}


def test_networks_without_a_common_stage_are_refused():
    student = network("cifar/resnet8", stage1="layer1", stage2="layer2.0.conv1")
    teacher = network("cifar/resnet14", stage1="layer3")
    expected = r"resnet8 can be cut behind stage1 and cifar/resnet14 behind stage1; counted from the deepest"
    with pytest.raises(NetworkError, match=expected):
        beside(student, teacher)


def test_images_that_are_not_square_are_refused_in_both_trainings(tmp_path):
    expected = r"method hsakd: .* must be square, not 8x12; set data.image_size to one number"
    with pytest.raises(NetworkError, match=expected):
        Small(tmp_path, "hsakd", data={"image_size": (8, 12)})
    teacher = tapped("cifar/resnet8", 8)
    info = DataInfo(CLASSES, no_labels(0), (8, 12), 3)
    with pytest.raises(NetworkError, match=expected):
        TeacherHeads(TeacherHeads.Config(), Networks(teacher, FrozenTeacher(teacher)), info)
