"""Tables for papers."""

from __future__ import annotations

import re
from collections.abc import Sequence

SIGNS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",
    "]": "{]}",
    "–": "--",
    "±": r"$\pm$",
    "−": "$-$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "\n": " ",
}
"""What LaTeX reads as a command or has no letter for; a bracket after a line's end would be read as its distance."""


def escape(text: str) -> str:
    r"""A text as LaTeX prints it, a minus before a number as one.

    >>> print(escape("50 % of label_maps, -0.2 ± 0.1"))
    50 \% of label\_maps, $-$0.2 $\pm$ 0.1
    """
    minus = re.sub(r"(?<![\w.])-(?=\d)", "−", text)
    return "".join(SIGNS.get(letter, letter) for letter in minus)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> str:
    """A booktabs table to be put in with ``\\input``.

    Args:
        head: a title per column.
        rows: cells as plain text; the first cell becomes a line of its own above the rows that share it.
        texts: so many of the columns hold words and stand left, the others stand right.
    """
    lines = [
        r"% written by geoseg report; needs \usepackage{booktabs}, and \usepackage[T1]{fontenc} for some names.",
        r"% Too wide for a page? \usepackage{adjustbox} and \begin{adjustbox}{max width=\linewidth} around it.",
        rf"\begin{{tabular}}{{{'l' * (texts - 1)}{'r' * (len(head) - texts)}}}",
        r"\toprule",
        " & ".join(map(escape, head[1:])) + r" \\",
    ]
    above = None
    for first, *cells in rows:
        if first != above:
            lines += [r"\midrule", rf"\multicolumn{{{len(cells)}}}{{l}}{{\textit{{{escape(first)}}}}} \\"]
            above = first
        lines.append(" & ".join(map(escape, cells)) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])
