"""Twelve ways in which real pages carry a formula: is its TeX in the extracted text, once, and nothing garbled beside it?"""

import re
from collections.abc import Callable
from importlib import metadata

from common import arguments, conclude, machine
from groundup.corpus.archive.warc import Page
from groundup.corpus.extract.page_text import extract

CLAIM = "formulas kept as TeX, of twelve encodings"
MATHML = "<mrow><mi>a</mi><mo>=</mo><msup><mi>b</mi><mn>2</mn></msup></mrow>"
RENDERED = (
    '<span class="mord">a</span><span class="mrel">=</span><span class="mord">b</span><span class="vlist">2</span>'
)
# name, HTML, TeX without spaces. The formula is always a = b^2, but where the encoding has its own spelling of it.
TEX = '<annotation encoding="application/x-tex">a=b^2</annotation>'
WIKI = r"{\displaystyle a=b^{2}}"
ENCODINGS = [
    ("TeX in the text", r"\(a=b^2\)", "a=b^2"),
    ("MathML with annotation", f"<math><semantics>{MATHML}{TEX}</semantics></math>", "a=b^2"),
    ("MathML with alttext (LaTeXML)", f'<math class="ltx_Math" alttext="a=b^{{2}}" display="inline">{MATHML}</math>', "a=b^{2}"),
    ("plain MathML", f"<math>{MATHML}</math>", "a=b^2"),
    ("KaTeX",
     f'<span class="katex"><span class="katex-mathml"><math><semantics>{MATHML}{TEX}</semantics></math></span>'
     f'<span class="katex-html" aria-hidden="true"><span class="base">{RENDERED}</span></span></span>', "a=b^2"),
    ("MathJax 2, rendered",
     f'<span class="MathJax_Preview"></span><span class="MathJax" id="MathJax-Element-1-Frame"><nobr><span class="math">'
     f'{RENDERED}</span></nobr></span><script type="math/tex" id="MathJax-Element-1">a=b^2</script>', "a=b^2"),
    ("MathJax 3, assistive MathML",
     '<mjx-container class="MathJax" jax="CHTML"><mjx-math class="MJX-TEX" aria-hidden="true"><mjx-mi><mjx-c class="mjx-c1D44E">'
     f'</mjx-c></mjx-mi></mjx-math><mjx-assistive-mml><math>{MATHML}</math></mjx-assistive-mml></mjx-container>', "a=b^2"),
    ("Wikipedia",
     '<span class="mwe-math-element"><span class="mwe-math-mathml-inline mwe-math-mathml-a11y" style="display: none;">'
     f'<math alttext="{WIKI}"><semantics>{MATHML}<annotation encoding="application/x-tex">{WIKI}</annotation></semantics></math>'
     f'</span><img src="svg/0" class="mwe-math-fallback-image-inline" aria-hidden="true" alt="{WIKI}"></span>', "a=b^{2}"),
    ("script, display (kramdown)",
     '<script type="math/tex; mode=display">% <![CDATA[\na=b^2 %]]></script>', "a=b^2"),
    ("WordPress image",
     '<img src="https://s0.wp.com/latex.php?latex=a%3Db%5E2&bg=ffffff&fg=000&s=0" alt="a=b^2" class="latex" />', "a=b^2"),
    ("CodeCogs image", '<img src="https://latex.codecogs.com/svg.latex?\\inline&space;a=b^2" title="formula">', "a=b^2"),
    ("data-latex attribute", f'<span class="math-render" data-latex="a=b^2"><span>{RENDERED}</span></span>', "a=b^2"),
]  # fmt: skip
BEFORE = "The side of the square follows from its area, which for every such figure is known to be given by"
AFTER = "as the reader may see by drawing it, and by counting the small squares that the drawing is made of."


def page_with(formula: str) -> str:
    more = (
        "<p>Nothing else needs to be measured, and no other figure that we have drawn so far has this simple property.</p>"
        * 2
    )
    return (
        "<!DOCTYPE html><html><head><title>Squares</title></head><body><main><article><h1>Squares</h1>"
        f"<p>{BEFORE} {formula} {AFTER}</p>{more}</article></main></body></html>"
    )


def kept(text: str, tex: str) -> str:
    """'yes', 'garbled' where the TeX has other traces of the formula beside it, 'lost' without TeX."""
    middle = re.sub(r"\s", "", text.partition(BEFORE[-40:])[2].partition(AFTER[:40])[0])
    bare = re.sub(r"^(\$\$?|\\\(|\\\[)|(\$\$?|\\\)|\\\])$", "", middle)
    return "yes" if bare == tex else "garbled" if tex in middle else "lost"


def extractors() -> dict[str, Callable[[str], str]]:
    tools: dict[str, Callable[[str], str]] = {
        "groundup": lambda html: extract(Page("", "text/html", html.encode())).text
    }
    from resiliparse.extract.html2text import extract_plain_text

    tools[f"resiliparse {metadata.version('resiliparse')}"] = lambda html: extract_plain_text(html, main_content=True)
    try:
        import trafilatura
    except ImportError:
        return tools
    tools[f"trafilatura {metadata.version('trafilatura')}"] = lambda html: trafilatura.extract(html) or ""
    return tools


def main() -> None:
    arguments(__doc__)
    counts: dict[str, int] = {}
    tools = extractors()
    print(f"{machine()}\n{'':40}" + "".join(f"{name:>20}" for name in tools))
    for name, formula, tex in ENCODINGS:
        verdicts = {tool: kept(run(page_with(formula)), tex) for tool, run in tools.items()}
        for tool, verdict in verdicts.items():
            counts[tool] = counts.get(tool, 0) + (verdict == "yes")
        print(f"{name:40}" + "".join(f"{verdict:>20}" for verdict in verdicts.values()))
    print(f"{'kept':40}" + "".join(f"{count:>20}" for count in counts.values()))
    peer = max((tool for tool in counts if tool != "groundup"), key=lambda tool: counts[tool])
    ours = counts["groundup"]
    conclude(CLAIM, ours, "encodings", len(ENCODINGS), ours == len(ENCODINGS), peer=peer, peer_figure=counts[peer])


if __name__ == "__main__":
    main()
