"""Sections of a recipe that describe networks: student, teacher and peers, with their weights."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from kdcompress.config import SHA256, Section

AUTO = "auto"
"""Value that a run resolves once, before anything is written."""
RANDOM = "random"
"""Initial weights that are freshly drawn."""


class InputSection(Section):
    """`teacher.input:` the normalisation and size that a teacher's weights expect."""

    mean: list[float] | None = Field(None, min_length=1)
    """Mean per channel, for images in [0, 1]. None: from the weights, otherwise from the data set."""
    std: list[Annotated[float, Field(gt=0)]] | None = Field(None, min_length=1)
    """Standard deviation per channel, like the mean."""
    size: int | None = Field(None, ge=8, le=4096)
    """Side in pixels that the images are resized to for this network. None: from the weights."""
    channels: Literal[1, 3] | None = None
    """Channels that it takes; grey images are repeated on three. None: those of the images, or three where
    the network or its weights take no grey images."""


class NetworkSection(Section):
    """Each of `peers:` a network and its initial weights."""

    model: str
    """`FAMILY/NAME`, or `python:package.module:function` with --allow-code."""
    weights: str | None = None
    """An enum name of the family (IMAGENET1K_V2), a .safetensors/.pt/.pth file, or a run folder. random or
    None: random."""
    sha256: str | None = Field(None, pattern=SHA256)
    """Expected SHA-256 of the weights' file. None: not checked."""
    taps: dict[str, str] | None = None
    """{stage1: module.path, ..., classifier: module.path}. None: detected by a dry run."""
    license: str | None = None
    """Licence of the weights, for the record and for --license-policy; own: they are yours. None: what they
    came with."""

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, value: str | None) -> str | None:
        if value == AUTO and not issubclass(cls, StudentSection):
            raise ValueError("expected random or weights by name, since auto is for the student")
        return value

    @field_validator("sha256")
    @classmethod
    def _check_sha256(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("weights") in (AUTO, RANDOM, None):
            raise ValueError("expected nothing, since weights names no file")
        return value

    @property
    def initial_weights(self) -> str | None:
        """Name or file of the weights to load; None: random ones."""
        assert self.weights != AUTO, "a run resolves it before it builds networks"
        return None if self.weights == RANDOM else self.weights


class StudentSection(NetworkSection):
    """`student:` the network that ships, and its initial weights."""

    weights: str | None = AUTO
    """A name, a file or a run folder, as in `peers.N.weights`. auto: torchvision's best or timm's default
    weights for the network, if there are fewer than 100,000 training images, otherwise random. recipe.yaml
    of the run holds the result."""


class CacheSection(Section):
    """`teacher.cache:` outputs of the teacher, kept on disk so that it computes each of them once."""

    views: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Number of augmented views of each image, which repeat: in later epochs the teacher computes nothing.
    auto: a quarter of the epochs, at least 8 and at most 50, as far as limit_gb allows."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the views. Separate from the run's, so that runs with other seeds, students and methods share
    the cache."""
    keep: Literal["auto", "pooled", "logits", "top_k"] = "auto"
    """Form of the outputs. pooled: 16-bit features, which also give all logits by the teacher's classifier;
    logits: 16-bit logits; top_k: the largest logits, only for soft labels at a temperature of at most 1.5.
    auto: pooled where a linear layer gives the logits and limit_gb allows it, otherwise logits."""
    top_k: int = Field(16, ge=1, le=65536)
    """Logits of an image that are kept with top_k."""
    folder: str | None = None
    """Folder of the cache. None: `teacher-outputs` in the user's cache folder."""
    limit_gb: float = Field(20.0, gt=0)
    """Largest size in GB (10⁹ bytes)."""
    mode: Literal["fill", "read"] = "fill"
    """fill: compute and keep what is missing. read: a missing output ends the run, and the teacher is not
    built before the student is trained."""


class TeacherSection(NetworkSection):
    """`teacher:` the frozen network whose outputs the student learns from."""

    pretrained: Literal["auto"] | bool = "auto"
    """If a `python:` builder, without teacher.weights, loads weights by itself. true: it does, so it is used
    as it is or fine-tuned. false: it does not, so it is trained from scratch. auto: it is built twice under
    two seeds; it does if both have the same weights, but perhaps for the classifier."""
    train: Literal["auto", "always", "never"] = "auto"
    """auto: train it if it has no weights, fine-tune it if its classes differ from those of the data. never:
    use the weights unchanged; other classes are an error."""
    epochs: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Epochs of its training or fine-tuning, if any. auto: as the student's; for a fine-tuning 1,000
    optimiser steps, at least 10 and at most 60 epochs."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of its training. Separate from the run's, so that `--seeds` keeps one teacher for all students."""
    lr: float | None = Field(None, gt=0)
    """Learning rate of its training. None: `optim.lr`, or a tenth of it for fine-tuning."""
    min_top1: float | None = Field(None, ge=0, le=1)
    """Minimum held-out top-1 (0 to 1) below which the run stops. None: what a teacher that guesses, or always
    says the largest class, may reach by chance on so few images."""
    input: InputSection = InputSection()
    cache: CacheSection | Literal["off", "auto"] = "off"
    """Keep the teacher's outputs on disk, for views that repeat. off: it computes at every step. auto: as the
    section's defaults, where there are more epochs than views and the cache fits limit_gb; otherwise off."""

    @field_validator("cache", mode="before")
    @classmethod
    def _read_switch(cls, value: Any) -> Any:
        return {False: "off", True: AUTO}.get(value, value) if isinstance(value, bool) else value

    @property
    def may_load_own_weights(self) -> bool:
        """True for a builder of the user's that gets no weights from the recipe."""
        return self.model.startswith("python:") and self.initial_weights is None

    @field_validator("pretrained")
    @classmethod
    def _check_pretrained(cls, value: str | bool, info: ValidationInfo) -> str | bool:
        model, weights = str(info.data.get("model")), info.data.get("weights")
        if value is True and weights in (RANDOM, None) and not model.startswith("python:"):
            raise ValueError(
                f"expected auto or false, since {model} loads no weights; name some in teacher.weights"
            )
        if value is False and weights not in (RANDOM, None):
            raise ValueError("expected auto or true, since teacher.weights names weights")
        return value
