import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus.extract.blocks import render
from groundup.corpus.extract.page_text import parse


def text(html: str) -> str:
    _, blocks = parse(html)
    return render(blocks, list(range(len(blocks.text))))


@pytest.mark.parametrize(
    "mathml, tex",
    [
        ("<mfrac><mi>a</mi><msqrt><mi>α</mi></msqrt></mfrac>", r"\frac{a}{\sqrt{\alpha}}"),
        ("<msubsup><mo>∑</mo><mrow><mi>i</mi><mo>=</mo><mn>1</mn></mrow><mi>n</mi></msubsup><mi>i</mi>", r"\sum_{i=1}^ni"),
        ("<mi>α</mi><mi>x</mi>", r"\alpha x"),
        ("<msup><mrow><mo>(</mo><mi>a</mi><mo>)</mo></mrow><mn>10</mn></msup>", "{(a)}^{10}"),
        ("<mover><mi>x</mi><mo>^</mo></mover><mo>≤</mo><mroot><mi>y</mi><mn>3</mn></mroot>", r"\hat{x}\leq\sqrt[3]{y}"),
        ("<mi>sin</mi><mi>x</mi>", r"\sin x"),
        ("<mtable><mtr><mtd><mn>1</mn></mtd><mtd><mn>0</mn></mtd></mtr><mtr><mtd><mn>0</mn></mtd></mtr></mtable>",
         r"\begin{matrix} 1 & 0 \\ 0 \end{matrix}"),
        ("<mtext>if </mtext><mi>x</mi>", r"\text{if }x"),
        ("<mfenced><mi>a</mi><mi>b</mi></mfenced>", "(a, b)"),
    ],
)  # fmt: skip
def test_mathml_is_written_as_tex(mathml, tex):
    assert text(f"<p>so <math>{mathml}</math>.") == f"so ${tex}$."


@pytest.mark.parametrize(
    "html, expected",
    [
        (r'<img class="latex" alt="\int_0^1 f" src=x>', r"$\int_0^1 f$"),
        ('<img src="https://s0.wp.com/latex.php?latex=%5Calpha+%2B+1&bg=fff" alt="">', r"$\alpha + 1$"),
        ('<img src="https://latex.codecogs.com/png.latex?%5Cdpi%7B120%7D%20%5Csum_i%20x_i">', r"$\sum_i x_i$"),
        (r'<img src="https://latex.codecogs.com/gif.latex?\large&space;a&plus;b">', "$a+b$"),
        (
            '<span class="MathJax" data-mathml="&lt;math&gt;&lt;mi&gt;x&lt;/mi&gt;&lt;/math&gt;"><svg></svg></span>',
            "$x$",
        ),
        ('<math display="block" alttext="x"><mi>x</mi></math>', "$$x$$"),
        ('<script type="math/tex">a < b</script>', "$a < b$"),
        (r'<script type="math/tex">% <![CDATA[' "\n" r"a < b %]]></script>", "$a < b$"),
        ('<script type="math/mml"><math><mi>y</mi></math></script>', "$y$"),
        ('<img alt="A cat" src="latex-gloves.jpg"><span data-math="grade 5">x</span>', "x"),
    ],
)
def test_other_carriers(html, expected):
    assert text(f"<p>so {html}") == f"so {expected}"


def test_a_formula_stands_once():
    inner = '<math><semantics><mi>y</mi><annotation encoding="application/x-tex">y^2</annotation></semantics></math>'
    katex = f'<span class="katex-mathml">{inner}</span><span class="katex-html" aria-hidden="true">y2</span>'
    assert text(f'<p>so <span class="katex-display"><span class="katex">{katex}</span></span>') == "so $$y^2$$"


PIECES = st.sampled_from(
    ["<math>", "</math>", "<mi>", "x", "</mi>", "<msup>", "</msup>", "<mfrac>", '<span class="katex">', "</span>", "<p>",
     "<annotation encoding=tex>", "</annotation>", '<script type="math/tex">', "</script>", "<img class=tex alt=y>", "<table>",
     "<mjx-container>", "</mjx-container>", '<b class="MathJax">', "<svg>", "</svg>", "<mtext><div>", "<i data-latex=z>"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=25).map("".join))
def test_any_nesting_of_formulas_is_survived(html):
    text(f"<p>a{html}")
    text(html + "<math>" * 200)
