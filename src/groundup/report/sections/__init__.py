"""A section of the report for each step that ran.

A section is a module with a `TITLE`, the `STAGES` of which at least one must have run, and `gather`, which gives what its
template of the same name needs, as plain data. Of these the page itself takes `facts`, (what, value), for its head, and
`compared`, lines made by `words.comparison`, for the table of the summary.
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
