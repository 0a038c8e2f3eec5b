"""The recipe's schema: its sections, their keys, defaults and bounds.

The string under a field documents the key. A checked recipe is frozen and complete: `to_yaml` writes every
value that a run depends on.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from kdcompress.config import CANDIDATE_NAME, RECIPE_NAME, Section
from kdcompress.cores import MAX_THREADS
from kdcompress.recipe.network_sections import NetworkSection, StudentSection, TeacherSection
from kdcompress.strict_yaml import to_yaml


class ExtraSection(Section):
    """`data.extra:` generated images beside the real ones, for the student's training alone."""

    root: str
    """A folder (a folder per class, or images alone, without labels), or an .npz file with `images` (uint8)
    and optionally `labels`. A bare text in place of the section means this key."""
    share: float = Field(0.5, gt=0, lt=1)
    """Share of each batch. An epoch stays one pass through the real images, so it takes 1 / (1 - share) times
    the steps; a baseline gets correspondingly more epochs."""
    keep: float = Field(1.0, gt=0, le=1)
    """Share of each class to keep: the images with the lowest cross-entropy under the teacher, without
    augmentation. An image without a label counts in the class that the teacher predicts."""
    relabel: bool = False
    """Replace the labels by the teacher's predictions, after the worst images are left out."""
    license: str | None = None
    """Licence of the images, for the record and for --license-policy. None: not known."""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return {"root": value} if isinstance(value, str) else value


class DataSection(Section):
    """`data:` the images, their splits and batches."""

    dataset: str = "imagefolder"
    """One of `kdcompress datasets`."""
    root: str | None = None
    """Folder of the data, a table of labels (.csv, .tsv, .jsonl) in the folder of its images, or tar shards
    (a folder, a .tar file or a pattern of names); `--data` overrides it. None: the default locations of the
    data set (bundled, cache, system)."""
    image_size: int | None = Field(None, ge=8, le=4096)
    """Side of the training images in pixels. None: the default of the data set (224 for an image folder)."""
    resize: Literal["crop", "whole", "pad"] = "crop"
    """How pictures of any shape become squares of that side. crop: the shorter side is resized and the centre
    cut out. whole: all of the picture is squeezed into the square. pad: all of it in its own proportions, on
    a grey border. Whoever uses the student must do the same: its files say which."""
    channels: Literal["auto", 1, 3] = "auto"
    """1: images are grey; a teacher that takes three channels gets the grey one repeated. 3: colour. auto:
    what the data has and all networks take; image files are colour where they do."""
    batch_size: Annotated[int, Field(ge=2)] | Literal["auto"] = 64
    """Global batch size, summed over all processes. auto: 256, halved down to 32 while an epoch has fewer
    than 50 steps; `optim.lr` of the recipe is then that of 256 images and is scaled in proportion."""
    held_out: float = Field(0.1, ge=0)
    """Share (below 1) or number (1 and above) of the training images held out for model selection. 0: train
    on all images and ship the last epoch."""
    labels: Literal["all", "none"] | Annotated[int, Field(ge=1)] = "all"
    """all: use the labels of the data. none: ignore them. A number: that many training images keep their
    label, stratified by class; the selection does not depend on the seed of the run."""
    cut: Literal["auto", "by_class", "without_labels"] = "auto"
    """How images are set aside to choose and to test on, where the data set has no such splits. by_class: the
    same share of every class. without_labels: no label is read. auto: by class, unless labels is none."""
    labelled_share: float = Field(0.5, gt=0, lt=1)
    """Minimum share of labelled images per batch, if only some images have labels and the method uses
    both."""
    workers: int | None = Field(None, ge=0)
    """Worker processes that decode images; None: one per available core, on a CPU one per four cores, since
    the others train. Small data sets are held in memory and use none."""
    pixel_cache: Literal["off", "auto", "raw", "jpeg"] = "off"
    """Keep decoded training pictures in the cache folder, scaled down to 8/7 of the training size. raw:
    pixels. jpeg: JPEG files of quality 90, a tenth of the bytes. auto: raw up to 4 GiB, jpeg up to 64 GiB,
    else off; off below 3 epochs. Random crops are then cut out of the scaled pictures, so the student's bits
    differ."""
    decoder: Literal["pillow", "auto", "simplejpeg"] = "pillow"
    """What training pictures from files are decoded and resized by. simplejpeg: JPEG files by simplejpeg (pip
    install 'kdcompress[fast]'), and all are resized by torch; faster, with pixels that differ a little, so
    the student's bits differ. auto: simplejpeg if it is installed. Pictures for evaluation are Pillow's."""
    augment: Literal[
        "auto", "none", "crop", "crop_flip", "resized_crop_flip", "weak", "strong", "moco_v2", "simsiam"
    ] = "auto"
    """Augmentation of the training images; auto: the usual one for the data set."""
    max_broken: float = Field(0.01, ge=0, le=1)
    """Share of unreadable image files above which the run stops; they are counted, the first five named."""
    extra: ExtraSection | None = None
    """Generated images, added to the student's training images."""
    license: str | None = None
    """Licence of the images, for the record and for --license-policy; own: they are yours. None: that of the
    data set, if it is known."""

    @property
    def cut_by_class(self) -> bool:
        """True if the splits have the same share of every class."""
        return self.labels != "none" if self.cut == "auto" else self.cut == "by_class"

    @field_validator("pixel_cache", mode="before")
    @classmethod
    def _read_off(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads a bare off as false

    @field_validator("held_out")
    @classmethod
    def _check_held_out(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError("expected a share below 1 or a whole number of images")
        return value


class TrainSection(Section):
    """`train:` the training loop."""

    epochs: Annotated[int, Field(ge=1)] | Literal["auto"]
    """Epochs of the student's training. auto: as many as give 3,000 optimiser steps, at least 100 and at most
    300."""
    max_steps: int | None = Field(None, ge=1)
    """Maximum optimiser steps of every training in the run, the teacher's included; for trial runs."""
    threads: int | None = Field(None, ge=1, le=MAX_THREADS)
    """CPU threads per process. None: the available cores. Results depend on it in the last bits."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 if the device supports it natively, fp16 on older GPUs, otherwise fp32. On a CPU, networks
    with depthwise convolutions are trained in fp32, where their gradients are faster. recipe.yaml of a run
    says what it came to, unless its networks differ."""
    compile: bool | Literal["auto"] = False
    """Apply torch.compile to student, peers and teacher, with the maps that the method reads as outputs;
    branches and heads stay uncompiled. The first steps take a minute or more, and results differ in the last
    bits. auto: true in trainings that are long enough to gain from it, where a compiler is installed."""
    cuda_graphs: bool = False
    """Let the GPU replay the compiled passes of a batch as CUDA graphs: fewer launches, for small networks.
    Needs train.compile, one process and no accumulation; takes more memory."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay per step of an exponential moving average of the student's weights, added as a candidate to
    ship."""
    clip_norm: float | None = Field(None, gt=0)
    """Maximum norm of the gradient of each parameter set; most methods have one set. None: no clipping."""
    accumulate: int = Field(1, ge=1)
    """Batches per optimiser step (gradient accumulation)."""
    freeze_bn: bool = False
    """Keep the batch-norm statistics of the initial weights."""
    bn_statistics: Literal["auto", "off"] = "auto"
    """auto: re-estimate the batch-norm statistics on un-augmented training images, on a sample whenever a
    candidate is scored and on up to all of them for the network that ships; the running statistics ship if
    they score higher on held-out images. off: use the running statistics. freeze_bn implies off."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target that the cross-entropy on labels spreads over all classes."""
    class_weights: Literal["auto", "none", "balanced"] | list[float] = "auto"
    """Weights of the cross-entropy. balanced: inverse class frequency; auto: balanced if the largest class
    has at least twice the images of the smallest, otherwise none; a list: one per class. Scaled to a mean of
    1 over the images."""
    ship: str = Field("best", pattern=CANDIDATE_NAME)
    """Candidate to ship. best: the latest epoch that the best held-out top-1 does not lead by more than twice
    the standard error, and the candidate with the lowest loss there; last: the student of the last epoch
    (with ema: its average);
    ensemble: the best member, and `ensemble.onnx` with all members; or the NAME of a candidate that the
    method offers, such as student, ema, leader or peer1."""
    checkpoint_minutes: float = Field(5.0, gt=0)
    """Minutes between two checkpoints within an epoch."""
    evaluate_every: int = Field(1, ge=1)
    """Epochs between two evaluations on the held-out images; the last epoch is always evaluated. best is one
    of the evaluated epochs."""
    tensorboard: bool = False
    """Also write the log as TensorBoard events to `tensorboard/` (needs the extra `tensorboard`)."""

    @field_validator("bn_statistics", mode="before")
    @classmethod
    def _read_off(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads a bare off as false


class OptimSection(Section):
    """`optim:` the optimiser and the learning-rate schedule."""

    name: Literal["sgd", "adamw"] = "sgd"
    """The optimiser; momentum and nesterov are those of sgd."""
    lr: float = Field(gt=0)
    """Base learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of sgd."""
    nesterov: bool = True
    """Nesterov's form of the momentum."""
    weight_decay: float = Field(5e-4, ge=0)
    """L2 penalty of sgd, decoupled decay of adamw."""
    schedule: Literal["constant", "cosine", "multistep", "one_cycle"] = "cosine"
    """Course of the learning rate over the run. one_cycle: up to lr and down again."""
    milestones: list[Annotated[float, Field(ge=0)]] = Field([0.625, 0.75, 0.875])
    """For multistep: fractions of the run (below 1) or epochs (1 and above) at which the rate is divided by
    ten."""
    warmup: float = Field(0.0, ge=0)
    """Linear warm-up from zero: a fraction of the run (below 1) or epochs (1 and above)."""


class PseudoLabelsSection(Section):
    """`pseudo_labels:` pre-training without labels, whose clusters are the classes of the training."""

    clusters: int = Field(ge=2)
    """Number of clusters: as many as the classes you expect, or more."""
    method: dict[str, Any] = Field({"name": "moco"})
    """Method of the pre-training and its options: one that trains a backbone and needs neither labels nor a
    teacher."""
    epochs: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Epochs of the pre-training. auto: as many as give 3,000 optimiser steps, at least 200 and at most
    800."""
    optim: OptimSection = OptimSection(lr=0.05, nesterov=False, weight_decay=1e-4, schedule="cosine")
    """Optimiser of the pre-training. With `data.batch_size: auto`, lr is that of batches of 256."""
    whiten: bool = True
    """Whiten the features before k-means: the principal components with 99 % of their variance, at most 256,
    get equal variance. false: the features as they are. Both are brought to unit length."""
    starts: int | None = Field(None, ge=1)
    """Starts of k-means from different centres, of which the best counts. None: 10, or 3 for more than 100
    clusters."""
    student: Literal["pretrained", "random"] = "pretrained"
    """Weights that the training on the clusters begins with: those of the pre-training, or random ones."""


class Int8Section(Section):
    """`export.int8:` quantisation to `student.int8.onnx`; `int8: true` means the defaults."""

    images: int = Field(128, ge=1)
    """Calibration images: from the training split, without augmentation, balanced over the classes."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the selection of calibration images."""
    target: Literal["auto", "x86", "x86-novnni", "arm"] = "auto"
    """Processor whose int8 kernels the file is made for; auto: this machine."""
    ranges: Literal["minmax", "percentile"] = "minmax"
    """Ranges of the activations: minimum to maximum, or clipped at the 99.999th percentile."""
    rescue: int = Field(0, ge=0)
    """Number of layers that stay in float: those with the largest quantisation error."""
    max_drop: float = Field(3.0, ge=0, le=100)
    """Largest allowed loss of test top-1 against fp32, in points; beyond it the run fails."""
    qat_epochs: int = Field(0, ge=0)
    """Epochs of quantisation-aware training after the student's training, with the same teacher and method.
    The int8 file uses these weights unless they score lower on held-out images; the other files keep the
    student unchanged. 0: none."""
    qat_lr: float = Field(0.01, gt=0, le=1)
    """Learning rate of these epochs as a share of optim.lr, decayed to zero along a half cosine. Batch-norm
    statistics are fixed, so larger steps can diverge: 0.05 did for ResNet-8 after 100 steps, with and without
    rounding."""

    @model_validator(mode="after")
    def _check_qat_ranges(self) -> Self:
        if self.qat_epochs and self.ranges != "minmax":
            raise ValueError(f"qat_epochs tunes for ranges: minmax, and not for {self.ranges}; leave one out")
        return self


def expand_int8(export: Any) -> Any:
    """Expands `int8: true` to a section with the defaults, and `int8: false` to None."""
    if not isinstance(export, dict) or not isinstance(export.get("int8"), bool):
        return export
    return {**export, "int8": {} if export["int8"] else None}


class ExportSection(Section):
    """`export:` the files that ship."""

    formats: list[str] = Field(["onnx", "safetensors"], min_length=1)
    """Files to write: onnx, safetensors, openvino, executorch."""
    int8: Int8Section | None = None
    """Also write `student.int8.onnx`, with a verdict on its speed and accuracy on this machine."""
    fp16: bool = False
    """Also write `student.fp16.onnx`, half the size."""
    exits: bool = False
    """Also write `exits.onnx`: the student with the method's early exits as further outputs, each proved and
    timed. For methods that have some, such as byot."""
    calibrate: bool = False
    """Also give the exported files a second output `probabilities`: softmax(logits / temperature), with a
    temperature fitted on held-out images. `logits` stay the first output and do not change. For the formats
    onnx and openvino and the files made from student.onnx; student.safetensors is the plain network."""
    embed_preprocess: Literal["normalize", "resize"] = "normalize"
    """Preprocessing inside the graph. normalize: `student.onnx` takes resized images in [0, 1]; resize: also
    write `student.image.onnx`, which takes decoded images of any size."""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return expand_int8(value)


class BenchSection(Section):
    """`bench:` the latency measurement at the end of the run."""

    threads: list[Annotated[int, Field(ge=1)] | Literal["all"]] = Field([1], min_length=1)
    """CPU threads, one measurement each."""
    batch: list[Annotated[int, Field(ge=1)]] = Field([1], min_length=1)
    """Images per call, one measurement each."""
    rounds: int = Field(21, ge=1, le=1000)
    """Interleaved rounds in shuffled order. Below 6 there is no 95 % interval; about 21 detect a difference
    of 5 %."""


class Recipe(Section):
    """A checked recipe: every value that a run depends on."""

    name: str = Field(pattern=RECIPE_NAME)
    """Name of the run's folder below `runs/`."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the student's weights, the order of the images and the augmentation."""
    data: DataSection = DataSection()
    teacher: TeacherSection | None = None
    """The frozen network that teaches; none for methods without one."""
    student: StudentSection
    peers: list[NetworkSection] = Field([])
    """Networks that train beside the student, for online methods of whole networks."""
    method: dict[str, Any]
    """The method's `name` and its options, as `kdcompress methods NAME` lists them."""
    pseudo_labels: PseudoLabelsSection | None = None
    train: TrainSection
    optim: OptimSection
    export: ExportSection = ExportSection()
    bench: BenchSection = BenchSection()

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, document: Any) -> Any:
        return expand_shorthand(document) if isinstance(document, dict) else document

    def to_yaml(self) -> str:
        """Writes the recipe as YAML that `load_recipe` reads back to an equal recipe."""
        return to_yaml(self.model_dump(mode="json"))

    def replace(self, **sections: Any) -> Self:
        """Returns a copy with whole sections replaced."""
        return self.model_copy(update=sections)

    @property
    def epochs(self) -> int:
        """Epochs of the student's training, once `auto` is resolved."""
        assert isinstance(self.train.epochs, int), "resolved when the data is known"
        return self.train.epochs

    @property
    def batch_size(self) -> int:
        """Global batch size, once `auto` is resolved."""
        assert isinstance(self.data.batch_size, int), "resolved when the data is known"
        return self.data.batch_size

    def lengthened(self, times: float) -> Self:
        """Returns a copy with the epochs, and milestones and warm-up counted in epochs, multiplied."""
        if times == 1:
            return self
        epochs = max(1, round(self.epochs * times))
        times = epochs / self.epochs
        optim, milestones = self.optim, [m if m < 1 else m * times for m in self.optim.milestones]
        warmup = optim.warmup if optim.warmup < 1 else optim.warmup * times
        return self.replace(
            train=self.train.model_copy(update={"epochs": epochs}),
            optim=optim.model_copy(update={"milestones": milestones, "warmup": warmup}),
        )


def expand_shorthand(document: dict[str, Any]) -> dict[str, Any]:
    """Returns the document with a section wherever a bare text stands for one, so that `--set` reaches it."""
    # `peers: [cifar/resnet8]`: a bare name is a network without weights.
    if isinstance(document.get("peers"), list):
        peers = [{"model": peer} if isinstance(peer, str) else peer for peer in document["peers"]]
        document = {**document, "peers": peers}
    data = document.get("data")
    if isinstance(data, dict) and isinstance(data.get("extra"), str):
        document = {**document, "data": {**data, "extra": {"root": data["extra"]}}}
    pseudo = document.get("pseudo_labels")
    if isinstance(pseudo, dict) and isinstance(pseudo.get("method"), str):
        document = {**document, "pseudo_labels": {**pseudo, "method": {"name": pseudo["method"]}}}
    if "export" in document:
        document = {**document, "export": expand_int8(document["export"])}
    return document
