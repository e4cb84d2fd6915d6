"""The documentation site: `make docs`, strictly; the pages are the Markdown files here, the reference the code's docstrings."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE.parent / "src"
sys.path.insert(0, str(SOURCE))

project = "groundup"
author = "The groundup authors"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = "groundup"
exclude_patterns = ["_build"]
myst_heading_anchors = 4
suppress_warnings = [
    "docutils",  # docstrings are plain English, not reStructuredText; the pages have warnings of their own, "myst"
]
default_role = "literal"  # `x` in a docstring is code
autodoc_typehints = "none"  # they stand in the signature
autodoc_member_order = "bysource"


def write_reference() -> None:
    """A page for each folder of the package, of all its modules: whoever moves a module need not tell it here."""
    reference = HERE / "reference"
    reference.mkdir(exist_ok=True)
    for old in reference.glob("*.md"):
        old.unlink()
    folders: dict[str, list[str]] = {}
    for path in sorted((SOURCE / "groundup").rglob("*.py")):
        *parents, name = path.relative_to(SOURCE).with_suffix("").parts
        if name != "__main__":
            folders.setdefault(".".join(parents), []).append(".".join(parents if name == "__init__" else [*parents, name]))
    for folder, modules in folders.items():
        blocks = [f"## {module}\n\n```{{automodule}} {module}\n:members:\n```\n" for module in modules]
        (reference / f"{folder}.md").write_text("\n".join([f"# {folder}\n", *blocks]), encoding="utf-8")


write_reference()
# Not imported for the reference: while sphinx reads type annotations, FastAPI does not import.
autodoc_mock_imports = ["fastapi", "starlette", "uvicorn"]
