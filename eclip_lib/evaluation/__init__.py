"""How a map is scored (`metrics`), an explainer over a dataset (`evaluator`), and what its rows say
(`statistics`); paper §4.1."""

from .annotated import Batch, batches, prompts
from .evaluator import MORE, evaluate, recognize
from .metrics import average_precision, best_iou, score_contrast
from .statistics import (
    MEASURES,
    bootstrap,
    class_mean,
    counts,
    gains,
    gains_in_words,
    grouped,
    in_words,
    interval,
    mean_interval,
    over_trainings,
    spread,
    summarize,
    t_difference,
    t_interval,
    table,
    training_gains,
    trainings_apart,
)
