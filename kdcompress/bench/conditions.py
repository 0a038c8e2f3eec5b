"""`--fail-if`: checks a condition on the figures of a benchmark.

    p50 > 5ms                              any result's median call takes longer than 5 ms
    student.p50 > 1.1 * old                it takes over 10 % longer than in the file of --compare
    ratio_high < 2 and rss > 200MB         certainly less than twice as fast as the baseline, and large
    student.p50 > teacher.p50 / 4          with the same threads and batch
    'student (PyTorch)'.first > 2s         a name that is no word stands in quotes

Sums of numbers (units: us ms s kB MB GB %) and metrics, with + - * / and parentheses, are compared by < <= >
>= == != and joined by `and`, `or`. A metric without an artefact is checked for every result, one with an
artefact for its results. `old` is the other side's metric in the file of --compare, for the same artefact,
runtime, precision, threads and batch.

A regular expression reads numbers and names, Python's parser the rest; only nodes in `_SIGNS` are evaluated.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from kdcompress.bench.compare import key_of, label_of
from kdcompress.bench.metrics import METRICS, NO_BASELINE, NO_PARITY, Kind
from kdcompress.errors import UserError, suggest

OLD = "old"
MAX_TOKENS = 200
"""Longest condition, in numbers, names and signs; it bounds the depth of the parsed tree too."""
_UNITS: dict[str, tuple[Kind, float]] = {
    "us": ("time", 1e-3), "ms": ("time", 1.0), "s": ("time", 1e3),
    "kB": ("memory", 1e-3), "MB": ("memory", 1.0), "GB": ("memory", 1e3), "%": ("number", 0.01),
}  # fmt: skip
_SHOWN: dict[Kind, str] = {"time": " ms", "memory": " MB", "number": "", "any": ""}
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)
      (?P<unit>\s*(?:us|ms|s|kB|MB|GB)\b|\s*%|[^\W\d]\w*)?
    | (?P<quoted>'[^']*'|"[^"]*")\.(?P<of_quoted>\w+)
    | (?P<name>[^\W\d][\w-]*(?:\.[\w-]+)*)
    | (?P<sign><=|>=|==|!=|[-+*/()<>])
    )""",
    re.VERBOSE,
)
_SIGNS: dict[type[ast.AST], tuple[str, Callable[[float, float], Any]]] = {
    ast.Lt: ("<", operator.lt), ast.LtE: ("<=", operator.le), ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge), ast.Eq: ("==", operator.eq), ast.NotEq: ("!=", operator.ne),
    ast.Add: ("+", operator.add), ast.Sub: ("-", operator.sub), ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
}  # fmt: skip
_COMPARISON = "expected one of < <= > >= == !="
_JOIN = "expected 'and', 'or' or the end"


@dataclass(frozen=True, slots=True)
class _Number:
    value: float
    kind: Kind


@dataclass(frozen=True, slots=True)
class _Figure:
    """A metric: of an artefact (None: of the present result), now or in the file of --compare."""

    artefact: str | None
    metric: str
    is_old: bool = False

    @property
    def kind(self) -> Kind:
        return "any" if self.metric == OLD else METRICS[self.metric].kind

    def __str__(self) -> str:
        return ".".join(filter(None, [OLD if self.is_old else None, self.artefact, self.metric]))


class _Unknown(Exception):
    """A figure that does not exist; `is_normal` if the condition is simply not about this result."""

    def __init__(self, reason: str, *, is_normal: bool = False) -> None:
        self.reason, self.is_normal = reason, is_normal
        super().__init__(reason)


class Condition:
    """A parsed condition.

    Args:
        text: The condition as the user wrote it.

    Raises:
        UserError: It cannot be read; the message says where it goes wrong.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._terms: dict[str, _Number | _Figure] = {}
        self._tree = self._parse()
        self._check_logic(self._tree)
        self._figures = [term for term in self._terms.values() if isinstance(term, _Figure)]
        if not self._figures:
            self._fail(f"names no figure; metrics: {', '.join(METRICS)}")

    @property
    def needs_old(self) -> bool:
        """True if it needs the file of --compare."""
        return any(figure.is_old for figure in self._figures)

    @property
    def metrics(self) -> set[str]:
        """The metrics in it."""
        return {figure.metric for figure in self._figures}

    def check(self, artefacts: Sequence[str]) -> None:
        """Refuses a condition on an artefact that is not measured.

        Raises:
            UserError: It names one.
        """
        for figure in self._figures:
            if figure.artefact is not None and figure.artefact not in artefacts:
                self._fail(f"no artefact {figure.artefact!r}{suggest(figure.artefact, artefacts)}")

    def failures(self, document: dict[str, Any], old: dict[str, Any] | None = None) -> list[str]:
        """Lists a sentence for each result that fulfils the condition, or that lacks a figure for it.

        Args:
            document: A document of schema `kdcompress.bench/1`.
            old: The document of --compare, if the condition needs it.
        """
        # An `old` without an artefact belongs to the present result, whichever that is.
        names = [f.artefact for f in self._figures if not (f.is_old and f.artefact is None)]
        about = None if None in names or not names else names[0]
        results = [r for r in document["results"] if about is None or r["artefact"] == about]
        sentences: list[str] = []
        skipped: list[str] = []
        for result in results:
            try:
                if self._holds(self._tree, document, old, result):
                    values = {f: _read(f, document, old, result) for f in self._figures}
                    listed = ", ".join(f"{f} is {value:.4g}{_SHOWN[f.kind]}" for f, value in values.items())
                    sentences.append(f"{label_of(result)}: {listed}")
            except _Unknown as unknown:
                sentence = f"{label_of(result)}: cannot be told: {unknown.reason}"
                (skipped if unknown.is_normal else sentences).append(sentence)
        if len(skipped) == len(results):  # a condition on nothing must not pass as fulfilled by none
            sentences += skipped or ["cannot be told: nothing of it was measured"]
        return [f"--fail-if {self.text!r}: {sentence}" for sentence in sentences]

    def _parse(self) -> ast.expr:
        """Replaces numbers and names by identifiers and leaves the rest to Python's parser."""
        words: list[str] = []
        shape = "o"  # of each token: v(alue), o(perator) or a parenthesis; the ends count as operators
        tokens: list[str] = []
        place = 0
        while self.text[place:].strip() and len(tokens) <= MAX_TOKENS:
            token = _TOKEN.match(self.text, place)
            if token is None:
                self._fail(f"cannot be read from {self.text[place:].strip()!r} on")
            place, word = token.end(), token["sign"] or token["name"]
            tokens.append(token[0].strip())
            if token["sign"] or word in {"and", "or"}:
                shape += word if word in {"(", ")"} else "o"
            else:
                shape, word = shape + "v", f"t{len(words)}"
                self._terms[word] = self._term(token)
            words.append(word)
        if len(tokens) > MAX_TOKENS:
            raise UserError(f"--fail-if '{self.text[:40]}...': is longer than {MAX_TOKENS} words and signs")
        wrong = re.search(r"[o(](?=[o)])|[v)](?=[v(])", shape + "o")
        if wrong is not None:
            at = "".join(f" at {token!r}" for token in tokens[wrong.start() :][:1])
            self._fail((_JOIN if wrong[0] in {"v", ")"} else "expected a number or a metric") + at)
        try:
            return ast.parse(" ".join(words), mode="eval").body
        except SyntaxError:  # values and operators alternate, so it is a parenthesis
            self._fail("expected ')'" if shape.count("(") > shape.count(")") else f"{_JOIN} at ')'")

    def _term(self, token: re.Match[str]) -> _Number | _Figure:
        if token["number"] is not None:
            unit = (token["unit"] or "").strip()
            if unit and unit not in _UNITS:
                self._fail(f"unknown unit {unit!r}{suggest(unit, _UNITS)}")
            kind, factor = _UNITS[unit] if unit else ("any", 1.0)
            return _Number(float(token["number"]) * factor, kind)
        if token["quoted"] is not None:
            artefact, metric, is_old = token["quoted"][1:-1], token["of_quoted"], False
        else:
            artefact, _, metric = token["name"].rpartition(".")
            if metric == OLD and not artefact:
                return _Figure(None, OLD, is_old=True)  # the other side of the comparison names the metric
            is_old = artefact == OLD or artefact.startswith(OLD + ".")
            artefact = artefact[len(OLD) + 1 :] if is_old else artefact
        if metric not in METRICS:
            self._fail(f"unknown metric {metric!r}{suggest(metric, METRICS)}")
        return _Figure(artefact or None, metric, is_old)

    def _check_logic(self, node: ast.expr) -> None:
        if isinstance(node, ast.BoolOp):
            for value in node.values:
                self._check_logic(value)
        elif not isinstance(node, ast.Compare):
            self._fail(_COMPARISON)
        elif len(node.ops) > 1:
            self._fail(f"{_JOIN} at {_SIGNS[type(node.ops[1])][0]!r}")
        else:
            left, right = node.left, node.comparators[0]
            self._name_old(left, right)
            self._name_old(right, left)
            self._same_kind(self._kind(left), self._kind(right))

    def _name_old(self, side: ast.expr, other: ast.expr) -> None:
        """Gives each bare `old` of one side the figure that the other side names."""
        bare = [name for name in _names(side) if self._terms[name] == _Figure(None, OLD, is_old=True)]
        figures = {
            t for name in _names(other) if isinstance(t := self._terms[name], _Figure) and not t.is_old
        }
        if bare and len(figures) != 1:
            self._fail("the other side of 'old' names no figure, or several; say which: old.p50")
        self._terms.update(
            {name: _Figure(f.artefact, f.metric, is_old=True) for name in bare for f in figures}
        )

    def _kind(self, node: ast.expr) -> Kind:
        if isinstance(node, ast.Name):
            return self._terms[node.id].kind
        if not isinstance(node, ast.BinOp):
            self._fail("expected a number or a metric, and not a comparison, in parentheses")
        left, right = self._kind(node.left), self._kind(node.right)
        if isinstance(node.op, ast.Add | ast.Sub):
            return self._same_kind(left, right)
        sign = _SIGNS[type(node.op)][0]
        if right in {"any", "number"}:
            return left if left != "any" else right
        if sign == "*" and left in {"any", "number"}:
            return right
        if sign == "/" and left == right:
            return "number"
        self._fail(f"{left} {sign} {right} is no figure")

    def _same_kind(self, left: Kind, right: Kind) -> Kind:
        if "any" not in {left, right} and left != right:
            self._fail(f"{left} and {right} do not go together")
        return right if left == "any" else left

    def _holds(self, node: ast.expr, *context: Any) -> bool:
        if isinstance(node, ast.BoolOp):
            every = all if isinstance(node.op, ast.And) else any
            return every(self._holds(value, *context) for value in node.values)
        assert isinstance(node, ast.Compare)
        compare = _SIGNS[type(node.ops[0])][1]
        return bool(compare(self._value(node.left, *context), self._value(node.comparators[0], *context)))

    def _value(self, node: ast.expr, *context: Any) -> float:
        if isinstance(node, ast.Name):
            term = self._terms[node.id]
            return term.value if isinstance(term, _Number) else _read(term, *context)
        assert isinstance(node, ast.BinOp)
        left, right = self._value(node.left, *context), self._value(node.right, *context)
        if isinstance(node.op, ast.Div) and right == 0:
            raise _Unknown("it divides by zero")
        return float(_SIGNS[type(node.op)][1](left, right))

    def _fail(self, why: str) -> NoReturn:
        raise UserError(f"--fail-if {self.text!r}: {why}")


def _names(node: ast.expr) -> list[str]:
    return [part.id for part in ast.walk(node) if isinstance(part, ast.Name)]


def _read(
    figure: _Figure, document: dict[str, Any], old: dict[str, Any] | None, result: dict[str, Any]
) -> float:
    """Reads a figure from the present result, from another artefact's, or from the file of --compare."""
    if figure.artefact is not None and figure.artefact != result["artefact"]:
        result = _result_beside(result, figure.artefact, document)
    if figure.is_old:
        assert old is not None
        same = [other for other in old["results"] if key_of(other) == key_of(result)]
        if not same:
            raise _Unknown("it is not in the file of --compare", is_normal=True)
        document, result = old, same[0]
    metric = METRICS[figure.metric]
    value = metric.read(result, document["artefacts"][result["artefact"]])
    if value is None:
        raise _Unknown(
            f"{figure}: {metric.if_missing}", is_normal=metric.if_missing in {NO_BASELINE, NO_PARITY}
        )
    return float(value)


def _result_beside(result: dict[str, Any], artefact: str, document: dict[str, Any]) -> dict[str, Any]:
    """Finds an artefact's result with the same threads and batch, in the same runtime if there is one."""
    settings = result["threads"], result["batch"]
    beside = [
        other
        for other in document["results"]
        if other["artefact"] == artefact and (other["threads"], other["batch"]) == settings
    ]
    if not beside:
        raise _Unknown(f"{artefact} was not measured")
    return next((other for other in beside if key_of(other)[1:] == key_of(result)[1:]), beside[0])
