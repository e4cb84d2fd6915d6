"""Settings of the tests made from held-out documents."""

from groundup.core.config import Positive, Section


class EvaluationConfig(Section):
    held_out_kb: Positive = 1000
    sentence_pairs: Positive = 400
    questions: Positive = 300
