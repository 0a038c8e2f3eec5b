"""`--fail-if`: a condition on the figures of a benchmark, in a small language of its own.

    p50 > 5ms                              any result's median call takes longer than 5 ms
    student.p50 > 1.1 * old                it takes over 10 % longer than in the file of --compare
    ratio_high < 2 and rss > 200MB         surely less than twice as fast as the baseline, and large
    student.p50 > teacher.p50 / 4          of the same threads and batch
    'student (PyTorch)'.first > 2s         a name that is no word stands in quotes

    condition  = all { "or" all }          all = comparison { "and" comparison }
    comparison = sum ( "<" | "<=" | ">" | ">=" | "==" | "!=" ) sum
    sum        = product { ( "+" | "-" ) product }         product = value { ( "*" | "/" ) value }
    value      = number [unit] | [artefact "."] metric | "old" ["." metric] | "(" sum ")"
    unit       = us ms s kB MB GB %

A metric without an artefact is judged for every result, one with an artefact for that artefact's. `old` is
the other side's metric in the file of --compare, of the same artefact, runtime, precision, threads and batch.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from kdcompress.bench.compare import key_of, label_of
from kdcompress.bench.metrics import METRICS, NO_BASELINE, NO_PARITY, Kind
from kdcompress.errors import UserError, suggest

_UNITS: dict[str, tuple[Kind, float]] = {
    "us": ("time", 1e-3), "ms": ("time", 1.0), "s": ("time", 1e3),
    "kB": ("memory", 1e-3), "MB": ("memory", 1.0), "GB": ("memory", 1e3),
    "%": ("number", 0.01),
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
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq,
    "!=": operator.ne,
}  # fmt: skip
_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
}  # fmt: skip
OLD = "old"


@dataclass(frozen=True, slots=True)
class _Number:
    value: float
    kind: Kind


@dataclass(frozen=True, slots=True)
class _Name:
    """A figure: of an artefact (None: of the result in hand), now or in the file of --compare."""

    artefact: str | None
    metric: str
    old: bool = False

    @property
    def kind(self) -> Kind:
        return METRICS[self.metric].kind

    def __str__(self) -> str:
        return ".".join(filter(None, [OLD if self.old else None, self.artefact, self.metric]))


@dataclass(frozen=True, slots=True)
class _Pair:
    sign: str
    left: _Node
    right: _Node
    kind: Kind = "any"


_Node = _Number | _Name | _Pair


class _Unknown(Exception):
    """A figure that is not there.

    Args:
        reason: Why.
        expected: Whether nothing is wrong with that: the result is not one that the condition is about.
    """

    def __init__(self, reason: str, expected: bool) -> None:
        self.reason, self.expected = reason, expected
        super().__init__(reason)


class Condition:
    """A parsed condition.

    Args:
        text: As the user wrote it.

    Raises:
        UserError: It is none; the message says where it goes wrong.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._tree = _Parser(text).condition()
        self._names = list(_names(self._tree))
        if not self._names:
            raise UserError(f"--fail-if {text!r}: names no figure; metrics: {', '.join(METRICS)}")

    @property
    def needs_old(self) -> bool:
        """Whether it looks into the file of --compare."""
        return any(name.old for name in self._names)

    @property
    def metrics(self) -> set[str]:
        """The metrics it names."""
        return {name.metric for name in self._names}

    def check(self, artefacts: Sequence[str]) -> None:
        """Refuses a condition on an artefact that is not measured.

        Raises:
            UserError: It names one.
        """
        for name in self._names:
            if name.artefact is not None and name.artefact not in artefacts:
                choices = suggest(name.artefact, artefacts)
                raise UserError(f"--fail-if {self.text!r}: no artefact {name.artefact!r}{choices}")

    def failures(self, document: dict[str, Any], old: dict[str, Any] | None = None) -> list[str]:
        """A sentence for each result that the condition holds for, or of which it cannot be told.

        Args:
            document: Of schema `kdcompress.bench/1`.
            old: The file of --compare, where the condition looks into it.
        """
        # An `old` without an artefact is that of the result in hand, whichever that is.
        named = [name.artefact for name in self._names if not (name.old and name.artefact is None)]
        about = None if None in named or not named else named[0]
        results = [r for r in document["results"] if about is None or r["artefact"] == about]
        said: list[str] = []
        expected: list[str] = []
        for result in results:
            try:
                if self._holds(self._tree, _Figures(document, old, result)):
                    said.append(f"{label_of(result)}: {self._told(_Figures(document, old, result))}")
            except _Unknown as unknown:
                sentence = f"{label_of(result)}: cannot be told: {unknown.reason}"
                (expected if unknown.expected else said).append(sentence)
        if len(expected) == len(results):  # a condition on nothing must not pass for one that is met
            said += expected or ["cannot be told: nothing of it was measured"]
        return [f"--fail-if {self.text!r}: {sentence}" for sentence in said]

    def _told(self, figures: _Figures) -> str:
        told = []
        for name in dict.fromkeys(self._names):
            told.append(f"{name} is {_shown(figures[name], name)}")
        return ", ".join(told)

    def _holds(self, node: _Node, figures: _Figures) -> bool:
        assert isinstance(node, _Pair)
        if node.sign == "and":
            return self._holds(node.left, figures) and self._holds(node.right, figures)
        if node.sign == "or":
            return self._holds(node.left, figures) or self._holds(node.right, figures)
        return _COMPARISONS[node.sign](_value(node.left, figures), _value(node.right, figures))


class _Figures:
    """The figures that names stand for, seen from one result."""

    def __init__(self, document: dict[str, Any], old: dict[str, Any] | None, result: dict[str, Any]) -> None:
        self.document, self.old, self.result = document, old, result

    def __getitem__(self, name: _Name) -> float:
        document, result = self.document, self.result
        if name.artefact is not None and name.artefact != result["artefact"]:
            result = self._beside(name.artefact)
        if name.old:
            assert self.old is not None
            document = self.old
            same = [other for other in document["results"] if key_of(other) == key_of(result)]
            if not same:
                raise _Unknown("it is not in the file of --compare", expected=True)
            result = same[0]
        metric = METRICS[name.metric]
        value = metric.of(result, document["artefacts"][result["artefact"]])
        if value is None:
            raise _Unknown(f"{name}: {metric.why_not}", expected=metric.why_not in {NO_BASELINE, NO_PARITY})
        return float(value)

    def _beside(self, artefact: str) -> dict[str, Any]:
        """The artefact's result of the same threads and batch: in the same runtime if it has one there."""
        settings = (self.result["threads"], self.result["batch"])
        beside = [
            other
            for other in self.document["results"]
            if other["artefact"] == artefact and (other["threads"], other["batch"]) == settings
        ]
        if not beside:
            raise _Unknown(f"{artefact} was not measured", expected=False)
        return next((other for other in beside if key_of(other)[1:] == key_of(self.result)[1:]), beside[0])


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0
        self.token: re.Match[str] | None = None
        self.next()

    def condition(self) -> _Pair:
        node = self.all_of()
        while self.word() == "or":
            self.next()
            node = _Pair("or", node, self.all_of())
        if self.token is not None:
            self.fail("expected 'and', 'or' or the end")
        return node

    def all_of(self) -> _Pair:
        node = self.comparison()
        while self.word() == "and":
            self.next()
            node = _Pair("and", node, self.comparison())
        return node

    def comparison(self) -> _Pair:
        left = self.sum()
        sign = self.word()
        if sign not in _COMPARISONS:
            self.fail(f"expected one of {' '.join(_COMPARISONS)}")
        self.next()
        right = self.sum()
        left, right = self.with_old(left, right), self.with_old(right, left)
        self.same_kind(left, right)
        return _Pair(sign, left, right)

    def sum(self) -> _Node:
        node = self.product()
        while self.word() in {"+", "-"}:
            sign = self.word()
            self.next()
            right = self.product()
            node = _Pair(sign, node, right, self.same_kind(node, right))
        return node

    def product(self) -> _Node:
        node = self.value()
        while self.word() in {"*", "/"}:
            sign = self.word()
            self.next()
            right = self.value()
            node = _Pair(sign, node, right, self.product_kind(sign, node, right))
        return node

    def value(self) -> _Node:
        token = self.token
        if token is None:
            self.fail("expected a number or a metric")
        if token["sign"] == "(":
            self.next()
            node = self.sum()
            if self.word() != ")":
                self.fail("expected ')'")
            self.next()
            return node
        if token["number"] is not None:
            unit = (token["unit"] or "").strip()
            if unit and unit not in _UNITS:
                self.fail(f"unknown unit {unit!r}{suggest(unit, _UNITS)}")
            kind, factor = _UNITS[unit] if unit else ("any", 1.0)
            self.next()
            return _Number(float(token["number"]) * factor, kind)
        if token["sign"] is not None or self.word() in {"and", "or"}:
            self.fail("expected a number or a metric")
        name = self.named(token)
        self.next()
        return name

    def named(self, token: re.Match[str]) -> _Name:
        if token["quoted"] is not None:
            artefact, metric, old = token["quoted"][1:-1], token["of_quoted"], False
        else:
            artefact, _, metric = token["name"].rpartition(".")
            if metric == OLD and not artefact:
                return _Name(None, OLD, True)  # the other side says of which metric
            old = artefact == OLD or artefact.startswith(OLD + ".")
            if old:
                artefact = artefact[len(OLD) + 1 :]
        if metric not in METRICS:
            self.fail(f"unknown metric {metric!r}{suggest(metric, METRICS)}")
        return _Name(artefact or None, metric, old)

    def with_old(self, side: _Node, other: _Node) -> _Node:
        """The side with each bare `old` as what it stands for: the one figure that the other side names."""
        if isinstance(side, _Pair):
            left, right = self.with_old(side.left, other), self.with_old(side.right, other)
            kind = (
                self.product_kind(side.sign, left, right)
                if side.sign in "*/"
                else self.same_kind(left, right)
            )
            return _Pair(side.sign, left, right, kind)
        if not isinstance(side, _Name):
            return side
        if side.metric != OLD:
            return side
        named = {name for name in _names(other) if not name.old}
        if len(named) != 1:
            self.fail("the other side of 'old' names no figure, or several; say which: old.p50", here=False)
        (name,) = named
        return _Name(name.artefact, name.metric, True)

    def same_kind(self, left: _Node, right: _Node) -> Kind:
        kinds = {_kind(left), _kind(right)} - {"any"}
        if len(kinds) > 1:
            self.fail(f"{_kind(left)} and {_kind(right)} do not go together", here=False)
        return kinds.pop() if kinds else "any"

    def product_kind(self, sign: str, left: _Node, right: _Node) -> Kind:
        kinds = [_kind(left), _kind(right)]
        plain: set[Kind] = {"any", "number"}
        if kinds[1] in plain:
            return kinds[0] if kinds[0] != "any" else kinds[1]
        if kinds[0] in plain and sign == "*":
            return kinds[1]
        if sign == "/" and kinds[0] == kinds[1]:
            return "number"
        self.fail(f"{kinds[0]} {sign} {kinds[1]} is no figure", here=False)

    def word(self) -> str:
        """The token in hand if it is a sign or a word."""
        return "" if self.token is None else (self.token["sign"] or self.token["name"] or "")

    def next(self) -> None:
        """Takes the next token in hand; none at the end."""
        rest = self.text[self.place :]
        if not rest.strip():
            self.token = None
            return
        self.token = _TOKEN.match(self.text, self.place)
        if self.token is None:
            self.fail(f"cannot be read from {rest.strip()!r} on")
        self.place = self.token.end()

    def fail(self, why: str, *, here: bool = True) -> NoReturn:
        place = f" at {self.token[0].strip()!r}" if here and self.token is not None else ""
        raise UserError(f"--fail-if {self.text!r}: {why}{place}")


def _kind(node: _Node) -> Kind:
    if isinstance(node, _Name) and node.metric == OLD:
        return "any"  # until it is known what it stands for
    return node.kind


def _names(node: _Node) -> Iterator[_Name]:
    if isinstance(node, _Name):
        yield node
    elif isinstance(node, _Pair):
        yield from _names(node.left)
        yield from _names(node.right)


def _value(node: _Node, figures: _Figures) -> float:
    if isinstance(node, _Number):
        return node.value
    if isinstance(node, _Name):
        return figures[node]
    left, right = _value(node.left, figures), _value(node.right, figures)
    if node.sign == "/" and right == 0:
        raise _Unknown("it divides by zero", expected=False)
    return _ARITHMETIC[node.sign](left, right)


def _shown(value: float, name: _Name) -> str:
    return f"{value:.4g}{_SHOWN[name.kind]}"
