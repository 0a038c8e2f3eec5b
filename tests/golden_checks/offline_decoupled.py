"""Teacher to student on logits: decoupled, standardised, and at a learnt temperature."""

from __future__ import annotations

import torch

from golden_checks.method import gradients, method
from kdcompress.methods import losses

TEMPERATURE_GRADIENT = {torch.float64: None, torch.float32: 1e-3}


def dkd(z, dtype, compare):
    student, teacher, target = z.tensor("logits_s").requires_grad_(), z.tensor("logits_t"), z.tensor("target")
    temperature = z.number("hp_T")
    for name, loss in {
        "tckd": losses.tckd(student, teacher, target, temperature),
        "nckd": losses.nckd(student, teacher, target, temperature),
    }.items():
        compare(f"loss_{name}", loss)
        compare(f"grad_logits_s_{name}", gradients(loss, [student])[0])
    total = decoupled(z, student, teacher, target, temperature)
    compare("loss", total)
    compare("grad_logits_s", gradients(total, [student])[0])


def decoupled(z, student, teacher, target, temperature, alpha="hp_alpha", beta="hp_beta", **config):
    made = method(
        "dkd",
        student.shape[1],
        temperature=temperature,
        ce_weight=0.0,
        alpha=z.number(alpha),
        beta=z.number(beta),
        warmup_epochs=0,
        **config,
    )
    return sum(made.terms(student, teacher, target).values())


def dkd_learnable_temperature(z, dtype, compare):
    student, teacher, target = (z.tensor(name) for name in ("logits_s", "logits_t", "target"))
    temperature = torch.tensor(z.number("hp_T"), dtype=dtype, requires_grad=True)
    loss = z.number("hp_alpha") * losses.tckd(student, teacher, target, temperature)
    loss = loss + z.number("hp_beta") * losses.nckd(student, teacher, target, temperature)
    compare("loss", loss)
    gradient = gradients(loss, [temperature])[0]
    compare("out_dloss_dtemperature_own", gradient, TEMPERATURE_GRADIENT[dtype])
    # A difference quotient of float64 values.
    compare("out_dloss_dtemperature_finite_difference", gradient, TEMPERATURE_GRADIENT[dtype] or 1e-6)
    # That the authors' form gives NaN here is a note; ours must not.
    assert z.number("out_reference_gradient_is_nan") in (0, 1)
    assert gradient.isfinite()


def logit_standardization(z, dtype, compare):
    student, teacher, target = z.tensor("logits_s").requires_grad_(), z.tensor("logits_t"), z.tensor("target")
    temperature = z.number("hp_base_T")
    compare("out_standardized_s", losses.standardized(student))
    kd = method(
        "kd",
        student.shape[1],
        temperature=temperature,
        ce_weight=0.0,
        kd_weight=1.0,
        logit_standardization=True,
    )
    loss = sum(kd.terms(student, teacher, target).values())
    compare("loss", loss)
    compare("grad_logits_s", gradients(loss, [student])[0])
    loss = decoupled(
        z,
        student,
        teacher,
        target,
        temperature,
        alpha="hp_dkd_alpha",
        beta="hp_dkd_beta",
        logit_standardization=True,
    )
    compare("loss_dkd", loss)
    compare("grad_logits_s_dkd", gradients(loss, [student])[0])


def ctkd(z, dtype, compare):
    student, teacher = z.tensor("logits_s").requires_grad_(), z.tensor("logits_t")
    raw = torch.nn.Parameter(z.tensor("param_global_T"))
    bounds = {"t_start": z.number("hp_t_start"), "t_range": z.number("hp_t_end")}
    weights = {"ce_weight": 0.0, "kd_weight": 1.0}
    made = method("ctkd", student.shape[1], **weights, **bounds)
    made.raw_temperature = raw
    temperature = made.temperature()
    compare("out_temperature", temperature.reshape(()))
    loss = losses.kl(student, teacher, temperature)
    compare("loss", loss)
    compare("grad_logits_s", gradients(loss, [student])[0])
    at_temperature = gradients(loss, [temperature])[0]
    tolerance = TEMPERATURE_GRADIENT[dtype]
    if tolerance:
        # The difference of two terms of 2 · loss / T. Where they nearly cancel, as they may at so high a
        # temperature, float32 knows it to 1e-5 of these, in the authors' form too.
        terms = 2 * z.number("loss") / z.number("out_temperature")
        tolerance = max(tolerance, 1e-5 * terms / abs(z.number("out_dloss_dtemperature")))
    compare("out_dloss_dtemperature", at_temperature, tolerance)
    for tag in [name.removeprefix("hp_lambda_") for name in z.names if name.startswith("hp_lambda_")]:
        strength = z.number(f"hp_lambda_{tag}")
        # From the first epoch on at this strength.
        made = method("ctkd", student.shape[1], reversal_end=strength, ramp_epochs=1, **weights, **bounds)
        made.raw_temperature = raw
        total = sum(made.terms(student, teacher, None).values())
        compare("loss", total)
        compare(f"grad_global_T_{tag}", gradients(total, [raw])[0], tolerance)
    given = torch.tensor(z.number("hp_given_T"), dtype=dtype)
    loss = losses.kl(student, teacher, given)
    compare("loss_given_T", loss)
    compare("grad_logits_s_given_T", gradients(loss, [student])[0])
    per_row = z.tensor("temperature_instance").requires_grad_()
    loss = losses.kl(student, teacher, per_row, shift=1e-7)
    compare("loss_instance", loss)
    compare("grad_logits_s_instance", gradients(loss, [student])[0])
    compare("grad_temperature_instance", gradients(loss, [per_row])[0], TEMPERATURE_GRADIENT[dtype])
    ramp = {"start": z.number("hp_decay_max"), "end": z.number("hp_decay_min")}
    for curriculum, stored in (("cosine", "cosine"), ("linear_reference", "linear")):
        values = [
            losses.reversal(epoch, z.number("hp_decay_loops"), curriculum, **ramp)
            for epoch in z.tensor("out_schedule_epoch").tolist()
        ]
        compare(f"out_schedule_{stored}", torch.tensor(values, dtype=dtype))


CHECKS = {
    "dkd": dkd,
    "dkd_learnable_temperature": dkd_learnable_temperature,
    "logit_standardization": logit_standardization,
    "ctkd": ctkd,
}
