"""Teacher to student on joint classes of object and rotation."""

from __future__ import annotations

import types

from golden_checks.method import gradients, method
from kdcompress.data.batch import DataInfo, no_labels
from kdcompress.methods import losses
from kdcompress.methods.base import Method
from kdcompress.methods.hierarchy import TeacherHeads


def hsakd_student(z, dtype, compare):
    logits, teacher, labels = z.tensor("logits_s").requires_grad_(), z.tensor("logits_t"), z.tensor("target")
    assert z.number("hp_num_classes") == logits.shape[1]
    heads = [int(name.rpartition("_")[2]) for name in z.names if name.startswith("ss_logits_s_")]
    joint = {i: (z.tensor(f"ss_logits_s_{i}").requires_grad_(), z.tensor(f"ss_logits_t_{i}")) for i in heads}
    made = method("hsakd", logits.shape[1], temperature=z.number("hp_T"))
    terms = made.terms(logits, teacher, joint, labels)
    assert set(terms) == {"ce", "kd", *(f"joint_{i}" for i in heads)}
    compare("loss_ce", terms["ce"])
    compare("loss_div_main", terms["kd"])
    for i in heads:
        compare(f"loss_div_aux_{i}", terms[f"joint_{i}"])
    compare("loss_div", terms["kd"] + sum(terms[f"joint_{i}"] for i in heads))
    total = sum(terms.values())
    compare("loss", total)
    compare("grad_logits_s", gradients(total, [logits])[0])
    for i in heads:
        compare(f"grad_ss_logits_s_{i}", gradients(total, [joint[i][0]])[0])
    images, turned = z.tensor("images"), z.tensor("out_rotated_images")
    assert len(turned) == z.number("hp_num_rotations") * len(images)
    compare("out_rotated_images", losses.four_rotations(images))
    z.equal("out_joint_labels_first2", losses.joint_labels(labels[:2]))


def hsakd_teacher(z, dtype, compare):
    logits, labels = z.tensor("logits").requires_grad_(), z.tensor("target")
    heads = [int(name.rpartition("_")[2]) for name in z.names if name.startswith("ss_logits_")]
    joint = {i: z.tensor(f"ss_logits_{i}").requires_grad_() for i in heads}
    z.equal("out_joint_labels", losses.joint_labels(labels))
    made = preparation(logits.shape[1])
    # The backbone's own term is a constant where the backbone is frozen, so the preparation has none.
    total = made.cross_entropy(logits[0::4], labels) + sum(made.terms(joint, labels).values())
    compare("loss", total)
    compare("grad_logits", gradients(total, [logits])[0])
    for i in heads:
        compare(f"grad_ss_logits_{i}", gradients(total, [joint[i]])[0])
    compare("out_class_scores_from_joint", losses.joint_to_class_logits(joint[heads[0]]))


def preparation(num_classes):
    """The preparation beside networks that nobody runs."""
    made = TeacherHeads.__new__(TeacherHeads)
    networks = types.SimpleNamespace(student=None, teacher=None, peers=())
    Method.__init__(made, TeacherHeads.Config(), networks, DataInfo(num_classes, no_labels(0), (8, 8), 1))
    return made


CHECKS = {"hsakd_student": hsakd_student, "hsakd_teacher": hsakd_teacher}
