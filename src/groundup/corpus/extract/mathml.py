"""Presentation MathML converted to TeX, for pages that have no TeX next to it."""

import re

from selectolax.lexbor import LexborNode

MAX_DEPTH = 60


def mathml_tex(math: LexborNode) -> str:
    """TeX of a <math> element; what is nested deeper than MAX_DEPTH is left out."""
    return _tex(math, 0).strip()


SYMBOLS = {
    "−": "-", "∑": "\\sum", "∏": "\\prod", "∫": "\\int", "∮": "\\oint", "∂": "\\partial", "∇": "\\nabla",
    "∞": "\\infty", "≤": "\\leq", "≥": "\\geq", "≠": "\\neq", "≈": "\\approx", "≡": "\\equiv", "∼": "\\sim",
    "∝": "\\propto", "×": "\\times", "⋅": "\\cdot", "·": "\\cdot", "÷": "\\div", "±": "\\pm", "∓": "\\mp",
    "∈": "\\in", "∉": "\\notin", "⊂": "\\subset", "⊆": "\\subseteq", "∪": "\\cup", "∩": "\\cap", "∅": "\\emptyset",
    "∀": "\\forall", "∃": "\\exists", "¬": "\\neg", "∧": "\\land", "∨": "\\lor", "→": "\\to", "←": "\\leftarrow",
    "⇒": "\\Rightarrow", "⇔": "\\Leftrightarrow", "↦": "\\mapsto", "…": "\\ldots", "⋯": "\\cdots", "⟨": "\\langle",
    "⟩": "\\rangle", "‖": "\\|", "°": "^\\circ", "ℝ": "\\mathbb{R}", "ℕ": "\\mathbb{N}", "ℤ": "\\mathbb{Z}",
    "ℚ": "\\mathbb{Q}", "ℂ": "\\mathbb{C}", "ℓ": "\\ell", "ℏ": "\\hbar", "′": "'", "{": "\\{", "}": "\\}", "%": "\\%",
    "&": "\\&", "#": "\\#", "⁡": "", "⁢": "", "⁣": "", "⁤": "", "α": "\\alpha", "β": "\\beta", "γ": "\\gamma",
    "δ": "\\delta", "ε": "\\varepsilon", "ϵ": "\\epsilon", "ζ": "\\zeta", "η": "\\eta", "θ": "\\theta", "ι": "\\iota",
    "κ": "\\kappa", "λ": "\\lambda", "μ": "\\mu", "ν": "\\nu", "ξ": "\\xi", "π": "\\pi", "ρ": "\\rho", "σ": "\\sigma",
    "τ": "\\tau", "υ": "\\upsilon", "φ": "\\varphi", "ϕ": "\\phi", "χ": "\\chi", "ψ": "\\psi", "ω": "\\omega",
    "Γ": "\\Gamma", "Δ": "\\Delta", "Θ": "\\Theta", "Λ": "\\Lambda", "Ξ": "\\Xi", "Π": "\\Pi", "Σ": "\\Sigma",
    "Φ": "\\Phi", "Ψ": "\\Psi", "Ω": "\\Omega",
}  # fmt: skip
ACCENTS = {
    "^": "hat", "ˆ": "hat", "~": "tilde", "˜": "tilde", "¯": "bar", "‾": "overline", "→": "vec", "⃗": "vec", "˙": "dot",
    "¨": "ddot",
}  # fmt: skip
FUNCTIONS = frozenset((
    "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "lim", "max", "min", "sup", "inf", "det", "dim", "ker",
    "arg", "gcd", "sinh", "cosh", "tanh", "arcsin", "arccos", "arctan",
))  # fmt: skip


def _tex(node: LexborNode, depth: int) -> str:
    """TeX of a MathML element (presentation markup of MathML Core)."""
    if depth > MAX_DEPTH:
        return ""
    parts = [child for child in node.iter() if child.tag not in ("annotation", "annotation-xml")]
    tag = node.tag
    if tag in ("mi", "mn", "mo", "mtext", "ms"):
        text = "".join(node.text(deep=True).split()) if tag != "mtext" else node.text(deep=True).replace("\u00a0", " ")
        if tag == "mtext":
            return f"\\text{{{text}}}" if text.strip() else " "
        if tag == "mi" and text in FUNCTIONS:
            return f"\\{text} "
        return "".join(
            f"{tex} " if (tex := SYMBOLS.get(letter, letter))[:1] == "\\" and tex[-1:].isalpha() else tex
            for letter in text
        )
    inner = [_tex(part, depth + 1).strip() for part in parts]
    if tag in ("msup", "msub", "msubsup", "mover", "munder", "munderover", "mfrac", "mroot") and len(inner) >= 2:
        return _scripts(tag, inner)
    if tag == "msqrt":
        return f"\\sqrt{{{_joined(inner)}}}"
    if tag == "mfenced":
        left, right = node.attributes.get("open") or "(", node.attributes.get("close") or ")"
        return f"{SYMBOLS.get(left, left)}{', '.join(inner)}{SYMBOLS.get(right, right)}"
    if tag == "mtable":
        return "\\begin{matrix} " + " \\\\ ".join(inner) + " \\end{matrix}"
    if tag in ("mtr", "mlabeledtr"):
        return " & ".join(inner)
    if tag == "mspace":
        return " "
    return _joined(inner)


def _joined(parts: list[str]) -> str:
    """Parts side by side, with a space between a command such as \\alpha and a letter that follows."""
    out = ""
    for part in parts:
        if re.search(r"\\[a-zA-Z]+$", out) and part[:1].isalpha():
            out += " "
        out += part
    return out


def _scripts(tag: str, inner: list[str]) -> str:
    base, first = inner[0], inner[1]
    second = inner[2] if len(inner) > 2 else ""
    if tag == "mfrac":
        return f"\\frac{{{base}}}{{{first}}}"
    if tag == "mroot":
        return f"\\sqrt[{first}]{{{base}}}"
    if tag == "mover" and first in ACCENTS:
        return f"\\{ACCENTS[first]}{{{base}}}"
    base = base if len(base) <= 1 or re.fullmatch(r"\\[a-zA-Z]+|\d+", base) else f"{{{base}}}"
    if tag in ("msup", "mover"):
        return f"{base}^{_braced(first)}"
    if tag in ("msub", "munder"):
        return f"{base}_{_braced(first)}"
    return f"{base}_{_braced(first)}^{_braced(second)}"


def _braced(tex: str) -> str:
    return tex if len(tex) == 1 else f"{{{tex}}}"
