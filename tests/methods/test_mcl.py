from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from small_training import CLASSES, Small

from kdcompress.errors import DataError, NetworkError
from kdcompress.methods import losses
from kdcompress.methods.class_draws import ClassDraws
from kdcompress.methods.online.mcl import MCL
from kdcompress.networks.build import build


def mcl(folder, **config):
    return Small(folder, "mcl", config=config).method


def unit(rows, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=1)


def test_contrast_is_the_mean_surprise_of_the_positives_among_all_other_images():
    labels = torch.tensor([0, 0, 1, 1, 1])
    similarities = torch.tensor(
        [
            [9.0, 1, 2, 0, 0.5],
            [1, 9, 0, 1, 0],
            [2, 0, 9, 0.5, 1],
            [0, 1, 0.5, 9, 2],
            [0.5, 0, 1, 2, 9],
        ],
        dtype=torch.float64,
    )
    expected = 0.0
    for b, row in enumerate(similarities.tolist()):
        denominator = math.log(sum(math.exp(s) for c, s in enumerate(row) if c != b))
        positives = [c for c in range(5) if c != b and labels[c] == labels[b]]
        expected -= sum(row[c] - denominator for c in positives) / len(positives)
    columns = losses.batch_columns(labels, torch.float64)
    assert losses.class_contrast(similarities, columns).item() == pytest.approx(expected / 5)
    weights = torch.tensor([1.0, 0, 0, 0, 0], dtype=torch.float64)
    first = math.log(sum(map(math.exp, (1, 2, 0, 0.5)))) - 1
    assert losses.class_contrast(similarities, columns, weights).item() == pytest.approx(first / 5)


def test_an_image_whose_class_stands_in_the_batch_once_is_no_anchor_but_is_compared_with():
    similarities = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    columns = losses.batch_columns(torch.tensor([0, 1, 0, -1]), torch.float64)
    loss = losses.class_contrast(similarities, columns)
    rows = similarities.detach()
    expected = [rows[0, [1, 2, 3]].logsumexp(0) - rows[0, 2], rows[2, [0, 1, 3]].logsumexp(0) - rows[2, 0]]
    assert loss.item() == pytest.approx(sum(expected).item() / 2)
    loss.backward()
    assert not similarities.grad[[1, 3]].any()
    assert similarities.grad[0, 1] > 0
    alone = losses.batch_columns(torch.tensor([0, 1, 2, -1]), torch.float64)
    similarities.grad = None
    loss = losses.class_contrast(similarities, alone)
    loss.backward()
    assert loss.item() == 0
    assert not similarities.grad.any()


def test_networks_that_agree_have_no_soft_loss_and_the_contrast_of_one(tmp_path):
    method = mcl(tmp_path, vcl_weight=1.0, icl_weight=1.0)
    rows, labels = unit(6), torch.tensor([0, 0, 1, 1, 2, 2])
    terms = method.contrast([rows, rows, rows], labels)
    assert terms["soft_vcl"].item() == pytest.approx(0, abs=1e-12)
    assert terms["soft_icl"].item() == pytest.approx(0, abs=1e-12)
    # Sums over 3 networks and over 6 ordered pairs of them.
    assert terms["icl"].item() == pytest.approx(2 * terms["vcl"].item())


def test_targets_of_the_soft_losses_are_constants(tmp_path):
    method = mcl(tmp_path)
    first, second = unit(6, seed=1).requires_grad_(), unit(6, seed=2).requires_grad_()
    own = [method.compare(rows, rows) for rows in (first, second)]
    method.imitate(own[0], own[1]).backward()
    assert first.grad.any()
    assert second.grad is None


def test_logits_are_learnt_by_all_networks_or_by_the_last_alone(tmp_path):
    rows = [torch.randn(3, 4, requires_grad=True) for _ in range(3)]
    target = torch.stack(rows).mean(0).detach()
    for learners, which in (("all", [0, 1, 2]), ("last", [2])):
        method = mcl(tmp_path, logit_weight=0.5, logit_learners=learners)
        loss = method.logit_imitation(rows)
        expected = sum(0.5 * losses.kl(rows[i], target, 3.0) for i in which)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        for z in rows:
            z.grad = None
        loss.backward()
        assert [i for i, z in enumerate(rows) if z.grad is not None] == which
        assert "logits" in method.losses(next(Small(tmp_path, "mcl").loader.epoch(0)))


def test_every_branch_ships_as_a_plain_network_and_shares_the_first_stages(tmp_path):
    small = Small(tmp_path, "mcl", config={"branches": 3, "own_stages": 2})
    assert list(small.method.candidates()) == ["student", "branch1", "branch2"]
    small.run()
    states = [c.state() for c in small.method.candidates().values()]
    # CIFAR ResNets share the first convolution and the first of three stages.
    shared = [k for k in states[0] if all(torch.equal(states[0][k], s[k]) for s in states[1:])]
    assert "layer1.0.conv1.weight" in shared
    assert "conv1.weight" in shared
    assert not {"layer2.0.conv1.weight", "layer3.0.conv1.weight", "fc.weight"} & set(shared)
    for state in states:
        build("cifar/resnet8", num_classes=CLASSES, channels=3, image_size=(8, 8)).load_state_dict(state)


def test_batches_are_class_paired_unless_images_are_remembered():
    assert MCL.needs(MCL.Config()).order == "class_paired"
    assert MCL.needs(MCL.Config(form="memory")).order == "shuffled"
    assert (MCL.needs(MCL.Config()).peers, MCL.needs(MCL.Config()).cut) == (1, False)
    branches = MCL.needs(MCL.Config(branches=2))
    assert (branches.peers, branches.cut) == (None, True)
    with pytest.raises(ValidationError, match="0 for whole networks, or at least 2 branches"):
        MCL.Config(branches=1)


def test_branches_that_would_share_no_stage_are_refused(tmp_path):
    with pytest.raises(NetworkError, match="branches with 3 of their own would share none"):
        Small(tmp_path, "mcl", config={"branches": 2, "own_stages": 3})


def test_columns_are_the_image_another_of_its_class_and_images_of_other_classes():
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 3])
    draws = ClassDraws(labels, 1000)
    assert draws.negatives == 4  # 7 images, 3 of them of the largest class
    indices = torch.arange(7)
    same = [set() for _ in labels]
    others = [set() for _ in labels]
    for _ in range(300):
        columns = draws(indices)
        assert columns.shape == (7, 6)
        assert torch.equal(columns[:, 0], indices)
        for i, row in enumerate(columns.tolist()):
            same[i].add(row[1])
            others[i].update(row[2:])
        draws.advance()
    for i, label in enumerate(labels.tolist()):
        own = {j for j, other in enumerate(labels.tolist()) if other == label}
        assert same[i] == (own - {i} or {i})
        assert others[i] == set(range(7)) - own


def test_columns_are_the_same_whichever_process_draws_them_and_new_ones_at_each_step():
    torch.manual_seed(0)
    draws = ClassDraws(torch.arange(40) % 4, 20)
    indices = torch.tensor([3, 17, 8, 30])
    together = draws(indices)
    assert torch.equal(together, torch.cat([draws(indices[:2]), draws(indices[2:])]))
    draws.advance()
    assert not torch.equal(draws(indices), together)


def test_against_banks_the_image_itself_is_a_second_positive_across_networks_alone(tmp_path):
    method = mcl(tmp_path, form="memory", vcl_weight=1.0, icl_weight=1.0, width=5, negatives=3)
    method.double()
    banks = [unit(40, seed=3), unit(40, seed=4)]
    for bank, rows in zip(method.banks, banks, strict=True):
        bank.rows.copy_(rows)
    columns = method.draws(torch.tensor([1, 2]))
    v = [unit(2, seed=5), unit(2, seed=6)]
    terms = method.bank_contrast(v, columns)
    similarity = {
        (i, j): (banks[i][columns] * v[j].unsqueeze(1)).sum(2) / 0.1 for i in range(2) for j in range(2)
    }
    vcl = sum(-similarity[i, i][:, 1:].log_softmax(1)[:, 0].mean() for i in range(2))
    icl = sum(-similarity[i, 1 - i].log_softmax(1)[:, :2].mean() for i in range(2))
    assert terms["vcl"].item() == pytest.approx(vcl.item())
    assert terms["icl"].item() == pytest.approx(icl.item())


@pytest.mark.parametrize("width", [2, 128])
def test_banks_give_the_same_terms_on_the_cpu_and_read_whole_or_by_row(width, tmp_path):
    columns, v = torch.randint(40, (3, 9)), [unit(3, width, 1).float(), unit(3, width, 2).float()]
    both = [
        mcl(tmp_path, form="memory", bank_device=device, width=width).bank_contrast(v, columns)
        for device in ("method", "cpu")
    ]
    for term in both[0]:
        torch.testing.assert_close(both[0][term], both[1][term])


def test_banks_remember_every_batch_of_a_step_once_it_is_done(tmp_path):
    method = mcl(tmp_path, form="memory", bank_momentum=0.25, width=5)
    before = [bank.rows.clone() for bank in method.banks]
    new = [unit(16, seed=s).float() for s in (1, 2)]
    for start in (0, 8):
        indices = torch.arange(start, start + 8)
        method.keep(indices, [rows[start : start + 8] for rows in new])
    assert torch.equal(method.banks[0].rows, before[0])
    method.after_step(None)
    for bank, was, rows in zip(method.banks, before, new, strict=True):
        torch.testing.assert_close(bank.rows[:16], F.normalize(0.25 * was[:16] + 0.75 * rows, dim=1))
        assert torch.equal(bank.rows[16:], was[16:])
    assert method.draws.steps == 1


def test_a_bank_takes_the_bytes_that_the_option_announces(tmp_path):
    method = mcl(tmp_path, form="memory", width=16)
    assert [bank.bytes for bank in method.banks] == [4 * 16 * 40] * 2
    assert {bank.rows.dtype for bank in method.banks} == {torch.float32}


def test_images_of_one_class_have_no_negatives(tmp_path):
    small = Small(tmp_path, "mcl")
    data = replace(small.method.data, labels=torch.zeros(8, dtype=torch.int64))
    with pytest.raises(DataError, match="the training images are of 1"):
        MCL(MCL.Config(form="memory"), small.method.networks, data)
