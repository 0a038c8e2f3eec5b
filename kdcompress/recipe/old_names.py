"""Names of former recipes that differed from another by their method alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OldName:
    """The options that replace a former recipe.

    Args:
        recipe: Name of the recipe with the same networks and schedule.
        method: The method.
        preset: The preset of the method, or None for the method's defaults.
        overrides: Settings of the former recipe that no preset can set.
    """

    recipe: str
    method: str
    preset: str | None = None
    overrides: tuple[str, ...] = ()

    def options(self) -> str:
        """Writes the options as a user types them."""
        preset = [] if self.preset is None else ["--preset", self.preset]
        settings = [word for item in self.overrides for word in ("--set", item)]
        return " ".join(["--recipe", self.recipe, "--method", self.method, *preset, *settings])


_CIFAR = "cifar100-resnet32x4-to-resnet8x4"
_CIFAR_METHODS = (
    "ab", "at", "crd", "ctkd", "dist", "dkd", "fitnet", "hsakd",
    "mlkd", "reviewkd", "rkd", "seed", "simreg", "sp", "srrl", "sskd",
)  # fmt: skip
_IMAGENET = "resnet34-to-resnet18"
_IMAGENET_METHODS = (
    "ab", "at", "crd", "ctkd", "dist", "dkd", "fitnet", "hsakd",
    "kd", "mlkd", "reviewkd", "rkd", "sp", "srrl", "sskd",
)  # fmt: skip
# Published with batches of 512; twice the batch, twice the learning rate.
_LARGE_BATCH = ("data.batch_size=512", "optim.lr=0.2")

OLD_NAMES = {
    **{f"{_CIFAR}-{method}": OldName(_CIFAR, method, "cifar100") for method in _CIFAR_METHODS},
    **{
        f"{_IMAGENET}-{method}": OldName(
            _IMAGENET, method, "imagenet", _LARGE_BATCH if method in {"dkd", "srrl"} else ()
        )
        for method in _IMAGENET_METHODS
    },
    "quickstart-byot": OldName("quickstart", "byot"),
    "quickstart-dml": OldName("quickstart", "dml"),
    "resnet50-to-mobilenet-v2-simreg": OldName("resnet50-to-mobilenet-v2", "simreg", "imagenet"),
    "resnet50-to-mobilenet-v3-large-seed": OldName("resnet50-to-mobilenet-v3-large", "seed", "imagenet"),
}
"""{name of a former recipe: the options that replace it}."""
