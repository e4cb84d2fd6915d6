"""A section of the report for each step that ran.

A section is a module with a `TITLE`, the `STAGES` of which at least one must have run, and `gather`, which returns the values
of its template of the same name, as plain data. The page itself shows two of them in its summary: `facts`, (what, value), and
`compared`, lines made by `formats.comparison`.
"""

from groundup.report.sections import (
    base,
    benchmarks,
    corpus,
    costs,
    dpo,
    evaluation,
    grpo,
    long_context,
    origin,
    plan,
    ppo,
    preferences,
    reward,
    sft,
    tokenizer,
    vocabulary_sweep,
)

SECTIONS = (
    corpus, vocabulary_sweep, tokenizer, plan, base, long_context, evaluation, benchmarks, sft, preferences, reward, dpo, ppo,
    grpo, costs, origin,
)  # fmt: skip
