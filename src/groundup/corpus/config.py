"""Pages to documents: sources, annotations, thresholds."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from groundup.core.config import Positive, Section, Share


class SourceConfig(Section):
    """One source of pages: `pydoc:`, `stdlib:`, `topics:`, `https://site/`, `cc:CC-MAIN-2026-17`, `hf:org/name`,
    `sitemap:https://site/sitemap.xml`, `oai:https://host/oai`, or a path.

    A path is a web archive (WARC, WACZ, ARC, WET), JSON lines, Parquet, a page, a PDF, a dump of a wiki or of Stack
    Exchange, or a folder of such files.
    """

    source: Annotated[str, Field(min_length=1)]
    domain: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]  # names files and figures
    max_mb: Annotated[float, Field(gt=0, le=1e9)] = 100.0  # a petabyte at most
    max_pages: Positive = 100_000
    exclude: list[str] = []  # path prefixes that are not fetched, as in robots.txt
    text_column: str = "text"  # of JSON lines, Parquet and hf:
    host: str | None = None  # of cc: only this host and those under it
    language: Annotated[str, Field(pattern=r"^[a-z]{3}$")] | None = None  # of cc: by its three letters, as eng
    mime: str | None = None  # of cc: as text/html


class PagesConfig(Section):
    sources: list[SourceConfig] = Field(min_length=1)
    # Per remote host; our own server on loopback is not slowed down. Slower than one in 100 seconds no crawl ends.
    requests_per_second: Annotated[float, Field(ge=0.01, le=1000)] = 2.0


class AnnotationsConfig(Section):
    """Measurements on every document, and what counts as a near duplicate; nothing is dropped here."""

    # The languages whose documents are kept, by code; ["all"] for any; `language = "de"` for one. Code, and text in no known
    # language, is measured as the first of them; the rules of no language apply where that is "all".
    languages: Annotated[list[Annotated[str, Field(pattern=r"^(all|[a-z]{2,3})$")]], Field(min_length=1, max_length=100)] = ["en"]
    comments: bool = False  # keep what readers wrote under a page; a forum's posts are its content either way
    quality_positives: list[str] = ["reference"]  # domains whose writing the quality score looks for
    near_duplicate_permutations: Annotated[int, Field(gt=0, le=4096)] = 128  # 4,096: errors of 1.6 %, 16 kB per document
    near_duplicate_jaccard: Share = 0.7  # texts that share more of their word 5-grams are near duplicates
    against: list[str] = []  # folders of earlier corpora: documents that repeat one of theirs are duplicates
    quality_classifier: str = ""  # files written by groundup corpus train-quality, train-toxicity, train-domains
    toxicity_classifier: str = ""
    domain_classifier: str = ""
    # A list of your own, one word or phrase per line; if not given, LDNOOBW's list for each text's language, where there is one.
    toxic_words: str = ""
    template_line_share: Share = 0.3  # a line on more than this share of a host's pages is its header, menu or footer

    @model_validator(mode="before")
    @classmethod
    def _one_language(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "language" not in given:
            return given
        if "languages" in given:
            raise ValueError("annotations has language and languages: keep one of them")
        return {name: value for name, value in given.items() if name != "language"} | {"languages": [given["language"]]}

    @field_validator("languages", mode="before")
    @classmethod
    def _as_list(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given

    @property
    def wanted_languages(self) -> tuple[str, ...]:
        """Language codes; empty for any language."""
        return () if "all" in self.languages else tuple(self.languages)

    @property
    def classifiers(self) -> dict[str, str]:
        """The files of the word list and the classifiers, by the setting that names each; "" where none is given."""
        names = ("toxic_words", "toxicity_classifier", "quality_classifier", "domain_classifier")
        return {name: getattr(self, name) for name in names}


class SelectionConfig(Section):
    """Thresholds over the annotations, and the held-out split."""

    min_words: Positive = 50  # a word is 2 characters of Chinese or Japanese, 3 of Thai and its neighbours
    max_words: Positive = 100_000
    min_language_score: Share = 0.0
    min_language_share: Share = 0.0  # of the text, identified paragraph by paragraph
    # Documents other than code get a domain per language, as web-de: for weights, held-out texts and figures by language.
    domain_by_language: bool = False
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
