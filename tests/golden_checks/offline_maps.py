"""Teacher to student, on feature maps."""

from __future__ import annotations

import torch

from golden_checks.method import gradients, method
from kdcompress.methods import losses
from kdcompress.methods.offline.fitnet import Regressor


def fitnet_mse(z, dtype, compare):
    student = z.tensor("feat_s").requires_grad_()
    loss = losses.mse(student, z.tensor("feat_t"))
    compare("loss", loss)
    compare("grad_feat_s", gradients(loss, [student])[0])


def fitnet_regressor(z, dtype, compare):
    for tag in [name.removeprefix("feat_s_") for name in z.names if name.startswith("feat_s_")]:
        student, teacher = z.tensor(f"feat_s_{tag}").requires_grad_(), z.tensor(f"feat_t_{tag}")
        regressor = Regressor(student.shape[1:], teacher.shape[1:]).to(dtype)
        conv, norm = regressor.conv, regressor.norm
        assert norm.eps == z.number("hp_bn_eps")
        assert isinstance(conv, torch.nn.ConvTranspose2d) == bool(z.number(f"hp_transposed_{tag}"))
        for key in ("kernel", "stride", "padding"):
            got = getattr(conv, "kernel_size" if key == "kernel" else key)
            assert list(got) == z.tensor(f"hp_{key}_{tag}").tolist()
        for module, name in ((conv, "conv"), (norm, "bn")):
            for key, parameter in module.named_parameters():
                parameter.data.copy_(z.tensor(f"param_{name}_{key}_{tag}"))
        regressed = regressor(student)
        loss = losses.mse(regressed, teacher)
        compare(f"out_regressed_{tag}", regressed)
        compare(f"loss_{tag}", loss)
        for name, grad in zip(
            ("feat_s", "conv_weight"), gradients(loss, [student, conv.weight]), strict=True
        ):
            compare(f"grad_{name}_{tag}", grad)


def stages(z, side):
    """The maps of a network, shallow to deep."""
    count = sum(name.startswith(f"feat_{side}_") for name in z.names)
    return [z.tensor(f"feat_{side}_{i}") for i in range(count)]


def at(z, dtype, compare):
    students, teachers = [s.requires_grad_() for s in stages(z, "s")], stages(z, "t")
    power = z.number("hp_p")
    for i, (student, teacher) in enumerate(zip(students, teachers, strict=True)):
        compare(f"loss_stage_{i}", losses.attention_transfer(student, teacher, power))
    loss = method("at", 10, weight=1.0, power=power).attention(students, teachers)
    compare("loss", loss)
    for i, grad in enumerate(gradients(loss, students)):
        compare(f"grad_feat_s_{i}", grad)


def ab(z, dtype, compare):
    students, teachers = [s.requires_grad_() for s in stages(z, "s")], stages(z, "t")
    made = method("ab", 10, weight=z.number("hp_scale"), margin=z.number("hp_margin"))
    each = made.boundaries(students, teachers)
    for i, loss in enumerate(each):
        compare(f"loss_stage_{i}", loss)
    total = torch.stack(each).sum()
    compare("loss", total)
    for i, grad in enumerate(gradients(total, students)):
        compare(f"grad_feat_s_{i}", grad)


def sp(z, dtype, compare):
    student = z.tensor("feat_s").requires_grad_()
    loss = losses.similarity_preserving(student, z.tensor("feat_t"))
    compare("loss", loss)
    compare("grad_feat_s", gradients(loss, [student])[0])


CHECKS = {"fitnet_mse": fitnet_mse, "fitnet_regressor": fitnet_regressor, "at": at, "ab": ab, "sp": sp}
