"""Settings of pre-training."""

from typing import Annotated, Literal

from pydantic import Field

from groundup.core.config import LARGEST, MOST, ContextLength, Positive, SaveDtype, Section, Share

LONGEST_MINUTES = 1e7  # nineteen years


class PretrainingConfig(Section):
    architecture: Literal["dense", "experts", "lstm", "convolution", "patches"] = "dense"
    experts: Annotated[int, Field(gt=0, le=1024)] = 8  # of "experts", in each layer; DeepSeek-V3 has 256
    experts_per_token: Annotated[int, Field(gt=0, le=1024)] = 2  # together as wide as the dense model's MLP
    balance: Annotated[float, Field(ge=0, le=LARGEST)] = 0.02  # coefficient of the loss that keeps the load even
    # The one dial: what is 0 or not given below follows from it (training/budget.py). At most 126, Llama 3 405B's: of
    # ours that is width 8,064 and 98G parameters, 393 GB in float32.
    depth: Annotated[int, Field(gt=0, le=126)] = 4
    context_length: ContextLength = 512
    tokens: Annotated[int, Field(ge=0, le=MOST)] = 0
    # Of the whole run, in place of depth and tokens, which then follow from this machine's speed (pipeline/minutes.py); 0: none.
    minutes: Annotated[float, Field(ge=0, le=LONGEST_MINUTES)] = 0.0
    batch_tokens: Annotated[int, Field(ge=0, le=10**9)] = 0  # of a step; its rows are numbered in memory
    weight_decay: Annotated[float, Field(ge=0, le=LARGEST)] | None = None  # of matrices, times their learning rate
    micro_batch_tokens: Annotated[int, Field(gt=0, le=10**9)] = 16_384
    decay_fraction: Share = 0.4  # the last part of training, on a falling learning rate
    anneal_data_fraction: Share = 0.15  # the last part of training, on the best data only
    lr_scale: Annotated[float, Field(gt=0, le=1000)] = 1.0  # multiplies every learning rate
    start_from: str = ""  # a Hugging Face folder to continue from, with tokenizer.folder the same; empty: from nothing
    save_dtype: SaveDtype = ""
    shard: bool = False  # under torchrun: FSDP2, each process holding its rows of every parameter, instead of DDP


class LongContextConfig(Section):
    """Training a decoder on, on longer rows and on documents that fill them."""

    context_length: Annotated[int, Field(ge=0, le=2**20)] = 0  # 0: four times that of the model
    tokens: Positive = 1_000_000
    batch_tokens: Annotated[int, Field(ge=0, le=10**9)] = 0  # of a step; 0: from the tokens (training/budget.py)
    micro_batch_tokens: Annotated[int, Field(gt=0, le=10**9)] = 16_384
    lr_scale: Annotated[float, Field(gt=0, le=1000)] = 0.1  # multiplies every learning rate: the model has been annealed already
    balance: Annotated[float, Field(ge=0, le=LARGEST)] = 0.02  # as in pre-training, of a mixture of experts
    shard: bool = False  # as in pre-training, under torchrun
    save_dtype: SaveDtype = ""
