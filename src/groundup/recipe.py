"""What to build: one typed section a stage, read from TOML, changed by `--set section.key=value`.

An unknown key, a wrong type or a value out of range is refused in one line, with the nearest known name.
Everything that is not said in the recipe has the default given here; `groundup run --dry-run` prints the plan.
"""

import difflib
import glob
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from groundup.core.seals import verify
from groundup.errors import UserError

Share = Annotated[float, Field(ge=0, le=1)]
MOST = 10**15  # of anything counted: Llama 3's 15.6T tokens are the largest corpus told of, 64 times less
LARGEST = 1e15
Positive = Annotated[int, Field(gt=0, le=MOST)]
PositiveFloat = Annotated[float, Field(gt=0, le=LARGEST)]
Rate = Annotated[float, Field(gt=0, le=10)]  # a learning rate beyond it ends in numbers that are not finite
Batch = Annotated[int, Field(gt=0, le=10**6)]  # conversations or pairs that are padded into one tensor
Epochs = Annotated[int, Field(gt=0, le=1000)]  # pairs and answers are known by heart after ten
Context = Annotated[int, Field(ge=16, le=2**20)]  # the positions of every token of a row are in memory at once
# Files or folders of one's own rows (data/contracts.py), one or a list of them.
Files = Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(lambda one: [one] if isinstance(one, str) else one)]
SeedNumber = Annotated[int, Field(ge=0, lt=2**32)]  # what all of torch's, numpy's and scikit-learn's generators take


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Source(Section):
    """One source of pages: `pydoc:`, `stdlib:`, `topics:`, `https://site/`, `cc:CC-MAIN-2026-17`, `hf:org/name`, or a path.

    A path is a web archive (WARC, ARC, WET), JSON lines, Parquet, a page, or a folder of such files.
    """

    source: str
    domain: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]  # names files and figures
    max_mb: Annotated[float, Field(gt=0, le=1e9)] = 100.0  # a petabyte at most
    max_pages: Positive = 100_000
    exclude: list[str] = []  # path prefixes that are not fetched, as in robots.txt
    text_column: str = "text"  # of JSON lines, Parquet and hf:
    host: str | None = None  # of cc: only this host and those under it
    language: Annotated[str, Field(pattern=r"^[a-z]{3}$")] | None = None  # of cc: by its three letters, as eng
    mime: str | None = None  # of cc: as text/html


class Pages(Section):
    sources: list[Source] = Field(min_length=1)
    # Per remote host; our own server on loopback is not slowed down. Slower than one in 100 seconds no crawl ends.
    requests_per_second: Annotated[float, Field(ge=0.01, le=1000)] = 2.0


class Annotations(Section):
    """Measurements on every document; nothing is dropped here."""

    language: str = "en"
    quality_positives: list[str] = ["reference"]  # domains whose writing the quality score looks for
    near_duplicate_permutations: Annotated[int, Field(gt=0, le=4096)] = 128  # 4,096: errors of 1.6 %, 16 kB a document
    near_duplicate_jaccard: Share = 0.7
    against: list[str] = []  # folders of earlier corpora, whose documents come first where these repeat them
    quality_classifier: str = ""  # files written by groundup corpus train-quality, train-toxicity, train-domains
    toxicity_classifier: str = ""
    domain_classifier: str = ""
    # A list of your own, one word or phrase a line; if not given, LDNOOBW's English one for English texts.
    toxic_words: str = ""
    template_line_share: Share = 0.3  # a line on more than this share of a host's pages is its header, menu or footer

    @property
    def judges(self) -> dict[str, str]:
        """The files that documents are judged by, by the setting that names each; empty where none is given."""
        names = ("toxic_words", "toxicity_classifier", "quality_classifier", "domain_classifier")
        return {name: getattr(self, name) for name in names}


class Corpus(Section):
    """Thresholds over the annotations, and the held-out split."""

    min_words: Positive = 50  # a word is 2 characters of Chinese or Japanese, 3 of Thai and its neighbours
    max_words: Positive = 100_000
    min_language_score: Share = 0.0
    min_alphabetic_words: Share = 0.5  # Gopher asks for 0.8 of prose; code and signatures hold fewer
    max_duplicate_line_share: Share = 0.5
    max_toxic_word_share: Share = 1.0  # C4 drops a page for one such word; news and medicine use them too
    max_toxicity: Share = 1.0  # of annotations.toxicity_classifier
    min_calibrated_quality: Share = 0.0  # of annotations.quality_classifier: 0.9 keeps the best tenth of the web
    min_quality: Share = 0.02  # drop the worst 2 % of each domain by quality score
    held_out: Share = 0.05
    max_contamination: Share = 0.3  # a training document may share this much of a held-out one's 13-grams
    benchmarks: list[str] = []  # files; a document that shares 13 words in a row with one of their examples is dropped
    best_share: Share = 0.3  # the top share of each domain by quality: what the final anneal trains on


class Tokenizer(Section):
    # At most 2^20: four times the largest in use (Gemma's 262,144), and merging takes one pass over the counts for each.
    vocabulary: Annotated[int, Field(ge=260, le=2**20)] = 4096  # 260: every byte a token, nothing merged
    folder: str = ""  # take the tokenizer of this folder instead, as base.start_from needs; empty: train one


class Tokens(Section):
    pass


class Mixture(Section):
    """How much of training each domain gets."""

    weights: dict[str, PositiveFloat] = {}  # share of training tokens by domain; empty: as found
    # Repeating data beyond 4 epochs gains little (Muennighoff et al. 2023). At most 1,000: each repeat is an entry in memory.
    max_repeats: Annotated[float, Field(gt=0, le=1000)] = 4.0


class Base(Section):
    architecture: Literal["dense", "experts", "lstm", "convolution", "patches"] = "dense"
    experts: Annotated[int, Field(gt=0, le=1024)] = 8  # of "experts", in each layer; DeepSeek-V3 has 256
    experts_per_token: Annotated[int, Field(gt=0, le=1024)] = 2  # together as wide as the dense model's MLP
    balance: Annotated[float, Field(ge=0, le=LARGEST)] = 0.02  # coefficient of the loss that keeps the load even
    # The one dial: what is 0 or not given below follows from it (training/budget.py). At most 126, Llama 3 405B's: of
    # ours that is width 8,064 and 98G parameters, 393 GB in float32.
    depth: Annotated[int, Field(gt=0, le=126)] = 4
    context: Context = 512
    tokens: Annotated[int, Field(ge=0, le=MOST)] = 0
    batch_tokens: Annotated[int, Field(ge=0, le=10**9)] = 0  # of a step; its rows are numbered in memory
    weight_decay: Annotated[float, Field(ge=0, le=LARGEST)] | None = None  # of matrices, times their rate
    micro_batch_tokens: Annotated[int, Field(gt=0, le=10**9)] = 16_384
    anneal_share: Share = 0.4  # the last part of training, on falling rate
    best_data_share: Share = 0.15  # the last part of training, on the best data only
    rate_scale: Annotated[float, Field(gt=0, le=1000)] = 1.0  # multiplies every learning rate
    start_from: str = ""  # a Hugging Face folder to continue from, with tokenizer.folder the same; empty: from nothing
    # Then go on with rows this long and documents to fill them; 0: do not.
    long_context: Annotated[int, Field(ge=0, le=2**20)] = 0
    long_tokens: Positive = 1_000_000  # for that
    shard: bool = False  # under torchrun: FSDP2, each process holding its rows of every parameter, instead of DDP


class Evaluation(Section):
    held_out_kb: Positive = 1000
    sentence_pairs: Positive = 400
    questions: Positive = 300


class Sft(Section):
    data: Files = []  # conversations to learn from; empty: questions made from docstrings
    max_objects: Positive = 6000
    epochs: Epochs = 1
    batch_examples: Batch = 64
    learning_rate: Rate = 5e-4
    max_answer_tokens: Annotated[int, Field(gt=0, le=2**20)] = 64
    held_out_questions: Positive = 600


class Preferences(Section):
    prompts: Positive = 1500
    held_out_prompts: Positive = 400
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0  # beyond, every token is as likely as any other
    min_gap: Share = 0.05  # pairs closer than this in overlap are ties and teach nothing


class Reward(Section):
    data: Files = []  # preferences to learn from; empty: those of the simulated annotator
    epochs: Epochs = 1
    batch_pairs: Batch = 32
    learning_rate: Rate = 1e-4


class Dpo(Section):
    data: Files = []  # as reward.data
    beta: PositiveFloat = 0.1
    epochs: Epochs = 1
    batch_pairs: Batch = 32
    learning_rate: Rate = 2e-5


class Ppo(Section):
    data: Files = []  # prompts, preferences or conversations to take prompts from; empty: those that preferences were made of
    iterations: Annotated[int, Field(gt=0, le=10**6)] = 30
    rollouts: Batch = 256
    minibatches: Batch = 4
    epochs: Epochs = 1
    kl_coefficient: Annotated[float, Field(ge=0, le=LARGEST)] = 0.05
    clip: PositiveFloat = 0.2
    learning_rate: Rate = 2e-5


class Report(Section):
    watts: PositiveFloat = 30.0  # drawn by the machine while it works
    price_per_hour: Annotated[float, Field(ge=0, le=LARGEST)] = 0.10  # of a machine like this one, rented, in dollars
    grams_co2_per_kwh: Annotated[float, Field(ge=0, le=LARGEST)] = 400.0


class Recipe(Section):
    name: str
    seed: SeedNumber = 0
    threads: Annotated[int, Field(ge=0, le=4096)] = 0  # 0: one a core; each is a process, and no machine has more cores
    memory_mb: Annotated[int, Field(gt=0, le=1 << 24)] = 1024  # for finding near duplicates; the result is the same
    ray: str | None = None  # address of the Ray cluster that works on the pages, "local" to start one; none: processes
    pages: Pages
    annotations: Annotations = Annotations()
    corpus: Corpus = Corpus()
    tokenizer: Tokenizer = Tokenizer()
    tokens: Tokens = Tokens()
    mixture: Mixture = Mixture()
    base: Base = Base()
    evaluation: Evaluation = Evaluation()
    sft: Sft = Sft()
    preferences: Preferences = Preferences()
    reward: Reward = Reward()
    dpo: Dpo = Dpo()
    ppo: Ppo = Ppo()
    report: Report = Report()


def load(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe and apply `section.key=value` overrides (values are TOML; a bare word is a string).

    Raises UserError, in one line, for a missing file, bad TOML, an unknown key, a wrong type or a value out of range.
    """
    try:
        if path.exists() and not path.is_file():  # a named pipe would wait for ever
            raise UserError(f"{path}: not a plain file; recipes/laptop.toml is a commented example")
        verify(path.parent, glob.escape(path.name))  # beside a report lies the recipe of its run
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe; recipes/laptop.toml is a commented example") from None
    except RecursionError:
        raise UserError(f"{path}: not valid TOML: nested too deep") from None
    except ValueError as error:  # TOML's, UTF-8's, and that of a number of thousands of digits
        raise UserError(f"{path}: not valid TOML: {str(error)[:150]}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    content.setdefault("name", path.stem)
    return resolve(content, overrides or [], str(path))


def resolve(content: dict[str, Any], overrides: list[str], where: str) -> Recipe:
    """The recipe of this content with overrides applied; `where` it is from begins every complaint.

    Raises UserError as `load` does.
    """
    for override in overrides:
        _apply(content, override)
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}: {_one_line(error)}") from None
    domains = [source.domain for source in recipe.pages.sources]
    for name in recipe.mixture.weights:
        if name not in domains:
            near = difflib.get_close_matches(name, domains, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the sources have {', '.join(domains)}"
            raise UserError(f"{where}: mixture.weights.{name}: no source has this domain; {hint}")
    _check_together(recipe, where)
    return recipe


def _check_together(recipe: Recipe, where: str) -> None:
    """Values that are right by themselves and cannot work together."""
    base, tokenizer = recipe.base, recipe.tokenizer
    if base.start_from and not tokenizer.folder:
        raise UserError(f"{where}: base.start_from needs its own tokenizer: set tokenizer.folder = {base.start_from!r}")
    if base.start_from:
        return
    if base.architecture == "experts" and base.experts_per_token > base.experts:
        raise UserError(f"{where}: base.experts_per_token = {base.experts_per_token} of {base.experts} experts")
    if base.architecture == "patches" and not tokenizer.folder and tokenizer.vocabulary > 260:
        raise UserError(f"{where}: base.architecture = 'patches' reads bytes; set tokenizer.vocabulary = 260")
    if base.long_context and base.long_context <= base.context:
        raise UserError(f"{where}: base.long_context = {base.long_context} is no longer than base.context = {base.context}")
    if base.long_context and base.architecture not in ("dense", "experts"):
        raise UserError(f"{where}: base.long_context is for dense decoders and mixtures of experts, not {base.architecture}")


def source(text: str) -> dict[str, str]:
    """`[domain=]source` of the command line, as it would stand in a recipe; the domain is `web` if none is given."""
    found = re.fullmatch(r"([a-z0-9_-]+)=(.+)", text)
    return {"domain": found[1], "source": found[2]} if found else {"domain": "web", "source": text}


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    shown = override if len(override) <= 80 else f"{override[:77]}..."
    if not equals or not key.strip():
        raise UserError(f"--set {shown}: expected section.key=value")
    *sections, name = key.strip().split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise UserError(f"--set {shown}: {section[:80]} is not a section")
    try:
        content[name] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        content[name] = value
    except (ValueError, RecursionError):
        raise UserError(f"--set {shown}: a number of too many digits, or nested too deep") from None


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    location = [part for part in first["loc"] if isinstance(part, str | int)]
    key = ".".join(str(part) for part in location)
    key = key if len(key) <= 80 else f"{key[:77]}..."
    if first["type"] == "extra_forbidden":
        return f"unknown key {key}{_suggestion(location)}"
    if first["type"] == "missing":
        return f"{key} is missing"
    return f"{key} = {_shown(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python refuses to write a number of thousands of digits
        return f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _suggestion(location: list[str | int]) -> str:
    """The nearest known key: first within the same section, then anywhere."""
    *path, name = [part for part in location if isinstance(part, str)]
    everywhere = {"": list(Recipe.model_fields), "pages.sources": list(Source.model_fields)}
    for section, field in Recipe.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            everywhere[section] = list(field.annotation.model_fields)
    here = ".".join(path)
    near = difflib.get_close_matches(str(name), everywhere.get(here, []), n=1, cutoff=0.6)
    if near:
        return f"; did you mean {'.'.join([*path, near[0]])}?"
    for section, keys in everywhere.items():
        near = difflib.get_close_matches(str(name), keys, n=1, cutoff=0.8)
        if near:
            return f"; did you mean {section + '.' if section else ''}{near[0]}?"
    return f"; known here: {', '.join(everywhere.get(here, []))}"
