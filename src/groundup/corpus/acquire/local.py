"""Sources that are files or folders of this machine. Light to import: a plan needs them before any chapter is imported."""

from pathlib import Path

from groundup.core.errors import UserError
from groundup.core.plain_files import expanded, open_plain, seen_from
from groundup.corpus.config import SourceConfig

NO_SUCH = "{}: no such source{}: give pydoc:, stdlib:, topics:, cc:, hf:, sitemap:, oai:, an https address, or a path"
SITEMAP = "sitemap:"
CRAWLED = ("http://", "https://", SITEMAP)


def local_path(source: SourceConfig) -> Path | None:
    """The file or folder on this machine that a source is read from, if it is one.

    Raises UserError where it does not exist: a wrong path is reported before the sources listed above it are crawled.
    """
    if source.source in ("pydoc:", "stdlib:", "topics:") or source.source.startswith((*CRAWLED, "cc:", "oai:")):
        return None
    if source.source.startswith("hf:"):
        path = Path(source.source.removeprefix("hf:").partition(":")[0])
        return path if path.exists() else None
    path = expanded(source.source)
    if path.is_dir():
        return path
    if not path.exists():
        raise UserError(NO_SUCH.format(source.source, seen_from(path)))
    open_plain(path).close()
    return path
