"""Floating-point operations of training a transformer.

As in PaLM's appendix B (Chowdhery et al. 2022); Chinchilla's appendix F (Hoffmann et al. 2022) counts the same work
operation by operation. Each parameter costs 2 FLOP per token forwards and 4 backwards, and attention adds 12·L·d·T per token
for the products that have no parameters (queries with keys, weights with values).
"""


def training_flops(parameters_without_embeddings: float, layers: int, width: int, context: int, tokens: float) -> float:
    """FLOP of training a dense transformer on `tokens`: (6·N + 12·L·d·T) a token.

    N leaves out the embedding table, which is looked up and not multiplied; add width × vocabulary to N to count an
    output layer that shares its weights, which matters in small models. The attention term counts the whole T × T
    square, as PaLM does, although a causal mask needs half of it. For mixture-of-experts models N is the active
    parameters; d, the `width`, is that of all query heads together, which in most models is the model's.
    """
    return (6 * parameters_without_embeddings + 12 * layers * width * context) * tokens
