"""All measures by name. A new measure is one file and one row here; a new probe needs neither."""

from . import (
    averages,
    classification,
    detections,
    domain_shift,
    evaluation,
    known_answer,
    probes,
    same_class,
    training_loss,
)
from .measure import Measure

# In the order in which a run takes them, and its table shows them.
MEASURES: dict[str, Measure] = {
    "evaluation": evaluation.MEASURE,
    "detections": detections.MEASURE,
    **probes.MEASURES,
    "known_answer": known_answer.MEASURE,
    "training_loss": training_loss.MEASURE,
    "training_error": classification.TRAINING_ERROR,
    "classification_error": classification.MEASURE,
    "same_class_error": same_class.MEASURE,
    "moving_averages": averages.MEASURE,
    "domain_shift": domain_shift.MEASURE,
}
DEFAULT = ("evaluation", *probes.MEASURES)  # of a study that names none
