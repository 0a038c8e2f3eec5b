"""The recipe: its schema (`schema`), and how it is read, changed by options and checked (`load`)."""

from kdcompress.recipe.checks import model_problem
from kdcompress.recipe.load import (
    ResolvedRecipe,
    load_recipe,
    load_recipe_of_data,
    resolve_recipe,
    write_notice,
)
from kdcompress.recipe.network_sections import (
    AUTO,
    RANDOM,
    CacheSection,
    InputSection,
    NetworkSection,
    StudentSection,
    TeacherSection,
)
from kdcompress.recipe.schema import (
    BenchSection,
    DataSection,
    ExportSection,
    ExtraSection,
    Int8Section,
    OptimSection,
    PseudoLabelsSection,
    Recipe,
    TrainSection,
)

__all__ = [
    "AUTO",
    "RANDOM",
    "BenchSection",
    "CacheSection",
    "DataSection",
    "ExportSection",
    "ExtraSection",
    "InputSection",
    "Int8Section",
    "NetworkSection",
    "OptimSection",
    "PseudoLabelsSection",
    "Recipe",
    "ResolvedRecipe",
    "StudentSection",
    "TeacherSection",
    "TrainSection",
    "load_recipe",
    "load_recipe_of_data",
    "model_problem",
    "resolve_recipe",
    "write_notice",
]
