"""What to build: one typed section per kind of step, read from TOML, changed by `--set section.key=value`.

The standard steps run unless `standard` lists fewer; `[[steps]]` adds more of any kind, each with settings and inputs of its
own; `[given]` names what exists already, so that a run can start from a user's corpus, tokenizer or model.

An unknown key, a wrong type or a value out of range is refused in one line, with the nearest known name.
A value that the recipe leaves out has the default given here; `groundup run --dry-run` prints the plan.
"""

import difflib
import glob
import logging
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field, ValidationError

from groundup.core.config import Section, SeedNumber
from groundup.core.errors import UserError
from groundup.core.seals import verify
from groundup.core.text import shown
from groundup.corpus.config import AnnotationsConfig, PagesConfig, SelectionConfig, SourceConfig
from groundup.data.config import MixtureConfig
from groundup.evaluation.config import BenchmarksConfig, EvaluationConfig
from groundup.pipeline.shipped_recipes import find, shipped
from groundup.posttraining.config import DpoConfig, GrpoConfig, PpoConfig, PreferencesConfig, RewardConfig, SftConfig
from groundup.report.config import ReportConfig
from groundup.scaling.config import VocabularySweepConfig
from groundup.tokenizer.config import TokenizerConfig, TokensConfig
from groundup.training.config import LongContextConfig, PretrainingConfig

RENAMED = {
    "base.context": "base.context_length",
    "base.anneal_share": "base.decay_fraction",
    "base.best_data_share": "base.anneal_data_fraction",
    "base.rate_scale": "base.lr_scale",
    "base.long_context": "long_context.context_length, of a step of kind long_context (docs/recipes.md)",
    "base.long_tokens": "long_context.tokens, of a step of kind long_context (docs/recipes.md)",
}


class StepSettings(Section):
    """One more step: settings that differ from its kind's section, and inputs other than the standard steps."""

    kind: str
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=60)]  # names its folder
    inputs: dict[str, str] = {}  # as base = "deep": another step's name; or a folder, absolute or beginning with ./ or ../
    settings: dict[str, Any] = {}


logger = logging.getLogger(__name__)
PLANNED = ("depth", "tokens")  # of the base model, which follow from its minutes
MODELS = ("base", "sft", "dpo", "ppo", "grpo")  # steps that write a model with its tokenizer


class Recipe(Section):
    name: str
    seed: SeedNumber = 0
    threads: Annotated[int, Field(ge=0, le=4096)] = 0  # 0: one a core; each is a process, and no machine has more cores
    memory_mb: Annotated[int, Field(gt=0, le=1 << 24)] = 256  # for finding near duplicates; the result is the same
    ray: str | None = None  # address of the Ray cluster that works on the pages, "local" to start one; none: processes
    standard: list[str] | None = None  # of the standard steps, those that run; none: all whose inputs are there
    steps: list[StepSettings] = []
    given: dict[str, str] = {}  # as corpus = "/data/corpus": a folder that takes the place of a step
    pages: PagesConfig | None = None  # not needed where `given` begins later
    annotations: AnnotationsConfig = AnnotationsConfig()
    corpus: SelectionConfig = SelectionConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    tokens: TokensConfig = TokensConfig()
    mixture: MixtureConfig = MixtureConfig()
    base: PretrainingConfig = PretrainingConfig()
    long_context: LongContextConfig = LongContextConfig()
    vocabulary_sweep: VocabularySweepConfig = VocabularySweepConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    benchmarks: BenchmarksConfig = BenchmarksConfig()
    sft: SftConfig = SftConfig()
    preferences: PreferencesConfig = PreferencesConfig()
    reward: RewardConfig = RewardConfig()
    dpo: DpoConfig = DpoConfig()
    ppo: PpoConfig = PpoConfig()
    grpo: GrpoConfig = GrpoConfig()
    report: ReportConfig = ReportConfig()

    @property
    def continued(self) -> str:
        """The folder of a model whose training continues, with its tokenizer and chat template unchanged; "" for a new model."""
        return self.base.start_from or next((self.given[name] for name in MODELS if name in self.given), "")


def load(path: Path, overrides: list[str] | None = None, minutes: float | None = None) -> Recipe:
    """Read a recipe, or the shipped one of that name, and apply `section.key=value` overrides (TOML; a bare word is a string).

    minutes: base.minutes, in place of the depth and tokens of the file.

    Raises UserError, in one line, for a missing file, bad TOML, an unknown key, a wrong type or a value out of range.
    """
    try:
        path = find(path)
        if path.exists() and not path.is_file():  # a named pipe would wait for ever
            raise UserError(f"{path}: not a plain file; `groundup init` writes a commented recipe")
        verify(path.parent, glob.escape(path.name))  # the recipe may be that of a report's folder
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        known = ", ".join(shipped())
        raise UserError(f"{path}: no such recipe; groundup has {known}, and `groundup init` writes one") from None
    except RecursionError:
        raise UserError(f"{path}: not valid TOML: nested too deep") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid TOML: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except ValueError as error:  # TOML's, and that of a number of thousands of digits
        raise UserError(f"{path}: not valid TOML: {str(error)[:150]}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    content.setdefault("name", path.stem)
    if minutes is not None:
        _replace_sizes_by_minutes(content, minutes)
    return resolve(content, overrides or [], str(path))


def _replace_sizes_by_minutes(content: dict[str, Any], minutes: float) -> None:
    base = content.setdefault("base", {})
    if isinstance(base, dict):
        replaced = [f"base.{name} = {shown(base.pop(name))}" for name in PLANNED if name in base]
        base["minutes"] = minutes
        if replaced:
            logger.info(f"{minutes:g} minutes take the place of {' and '.join(replaced)}")


def resolve(content: dict[str, Any], overrides: list[str], where: str) -> Recipe:
    """The recipe of this content with overrides applied; every error message begins with `where`.

    Raises UserError as `load` does.
    """
    for override in overrides:
        _apply_override(content, override)
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}: {_one_line(error)}") from None
    if recipe.pages is None and not recipe.given:
        raise UserError(f"{where}: pages is missing")
    domains = [source.domain for source in recipe.pages.sources] if recipe.pages else []
    if recipe.corpus.domain_by_language and "all" not in recipe.annotations.languages:
        domains += [f"{domain}-{language}" for domain in domains for language in recipe.annotations.languages]
    elif recipe.corpus.domain_by_language:
        domains = []  # which languages there are is known later
    for name in recipe.mixture.weights:
        if domains and name not in domains:
            matches = difflib.get_close_matches(name, domains, n=1)
            hint = f"did you mean {matches[0]}?" if matches else f"the sources have {', '.join(domains)}"
            raise UserError(f"{where}: mixture.weights.{name}: no source has this domain; {hint}")
    _check_minutes(recipe, where)
    _check_together(recipe, where)
    return recipe


def _check_minutes(recipe: Recipe, where: str) -> None:
    base = recipe.base
    if not base.minutes:
        return
    if base.minutes < 1:
        raise UserError(f"{where}: base.minutes = {base.minutes:g}: under a minute is too short for a run; give 1 or more")
    if sizes := [name for name in PLANNED if name in base.model_fields_set and (name == "depth" or base.tokens)]:
        raise UserError(
            f"{where}: base.minutes = {base.minutes:g} and base.{sizes[0]} = {getattr(base, sizes[0])}: depth and tokens follow "
            "from the minutes; leave one out (base.minutes = 0 is none)"
        )
    if recipe.continued:
        raise UserError(
            f"{where}: base.minutes = {base.minutes:g}: a model that is trained on has its size already; set base.minutes = 0, "
            "and base.tokens for how long to train"
        )
    if recipe.standard is not None and "base" not in recipe.standard:
        raise UserError(f"{where}: base.minutes: no base model is among the steps of `standard`; leave it out")


def _check_together(recipe: Recipe, where: str) -> None:
    """Raises UserError for values that are each valid and cannot work together."""
    base, tokenizer = recipe.base, recipe.tokenizer
    kinds = {*(recipe.standard or ()), *(step.kind for step in recipe.steps)}
    for section in ("long_context", "vocabulary_sweep", "grpo", "benchmarks"):  # of steps that run only where they are named
        if getattr(recipe, section) != config_of(section)() and section not in kinds:
            also = " or `standard`" if section == "grpo" else ""
            raise UserError(f"{where}: {section}: no step is of this kind; add one to [[steps]]{also} (docs/recipes.md)")
    if base.start_from and not tokenizer.folder:
        raise UserError(f"{where}: base.start_from needs its own tokenizer: set tokenizer.folder = {base.start_from!r}")
    if base.start_from:
        return
    if base.architecture == "experts" and base.experts_per_token > base.experts:
        raise UserError(f"{where}: base.experts_per_token = {base.experts_per_token} of {base.experts} experts")
    if base.architecture == "patches" and not tokenizer.folder and tokenizer.vocabulary > 260:
        raise UserError(f"{where}: base.architecture = 'patches' reads bytes; set tokenizer.vocabulary = 260")


def config_of(section: str) -> type[Section] | None:
    """The class of a section of the recipe; None for a single value."""
    annotation = Recipe.model_fields[section].annotation
    kinds = [annotation, *get_args(annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def with_settings(recipe: Recipe, section: str, settings: dict[str, Any], where: str) -> Recipe:
    """The recipe with some values of one section changed. Raises UserError, which begins with `where`, as `load` does."""
    content = recipe.model_dump(exclude_unset=True)
    content[section] = {**(content.get(section) or {}), **settings}
    return resolve(content, [], where)


def source(text: str) -> dict[str, str]:
    """`[domain=]source` of the command line, as it would stand in a recipe; the domain is `web` if none is given."""
    match = re.fullmatch(r"([a-z0-9_-]+)=(.+)", text)
    return {"domain": match[1], "source": match[2]} if match else {"domain": "web", "source": text}


def _apply_override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    short = override if len(override) <= 80 else f"{override[:77]}..."
    if not equals or not key.strip():
        raise UserError(f"--set {short}: expected section.key=value")
    *sections, name = key.strip().split(".")
    inner: Any = content
    for section in sections:
        if isinstance(inner, list) and section in map(str, range(len(inner))):  # one of several, such as sources, from 0
            inner = inner[int(section)]
        else:
            inner = inner.setdefault(section, {}) if isinstance(inner, dict) else None
    if not isinstance(inner, dict):
        hint = f"; give a number from 0 to {len(inner) - 1} after it" if isinstance(inner, list) and inner else ""
        raise UserError(f"--set {short}: {'.'.join(sections)[:80]} is not a section{hint}")
    try:
        # A value of several lines would set other keys too.
        inner[name] = tomllib.loads(f"value = {value}")["value"] if "\n" not in value else value
    except tomllib.TOMLDecodeError:
        inner[name] = value
    except (ValueError, RecursionError):
        raise UserError(f"--set {short}: a number of too many digits, or nested too deep") from None


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    location = [part for part in first["loc"] if isinstance(part, str | int)]
    key = ".".join(str(part) for part in location)
    key = key if len(key) <= 80 else f"{key[:77]}..."
    if first["type"] == "extra_forbidden" and key in RENAMED:
        return f"unknown key {key}: it is called {RENAMED[key]} now"
    if first["type"] == "extra_forbidden":
        return f"unknown key {key}{_suggestion(location)}"
    if first["type"] == "missing":
        return f"{key} is missing"
    if first["type"] == "value_error":  # of a check of ours, which says what is wrong
        return f"{key}: {first['ctx']['error']}"
    return f"{key} = {shown(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _suggestion(location: list[str | int]) -> str:
    """The nearest known key: of this name in another section, else of a like name in the same one, else anywhere."""
    *path, name = [part for part in location if isinstance(part, str)]
    known_keys = {"": list(Recipe.model_fields), "pages.sources": list(SourceConfig.model_fields)}
    for section in Recipe.model_fields:
        if config := config_of(section):
            known_keys[section] = list(config.model_fields)
    current = ".".join(path)
    if other := next((section for section, keys in known_keys.items() if section and name in keys), ""):
        return f"; did you mean {other}.{name}?"
    matches = difflib.get_close_matches(str(name), known_keys.get(current, []), n=1, cutoff=0.6)
    if matches:
        return f"; did you mean {'.'.join([*path, matches[0]])}?"
    for section, keys in known_keys.items():
        matches = difflib.get_close_matches(str(name), keys, n=1, cutoff=0.8)
        if matches:
            return f"; did you mean {section + '.' if section else ''}{matches[0]}?"
    known = ", ".join(known_keys.get(current, []))
    if len(known) > 120:
        known = known[:120].rpartition(", ")[0] + " and others"
    return f"; known here: {known}"
