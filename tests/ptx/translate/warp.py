"""Instructions that the lanes of a warp do together."""

from __future__ import annotations

from tests.ptx.records import Operand, Pair, Sink
from tests.ptx.translate.line import Line, translates


def _split(target: Operand) -> tuple[Operand, Operand]:
    return (target.first, target.second) if isinstance(target, Pair) else (target, Sink())


def _store(line: Line, target: Operand, type_: str, value: str) -> str:
    return "" if isinstance(target, Sink) else f"{line.target(target, type_)} = {value};"


@translates("shfl")
def _(line: Line) -> str:
    if not line.take("sync"):
        raise line.refuse("not of the form shfl.sync")
    mode = line.choose({word: word for word in ("idx", "up", "down", "bfly")})
    type_ = line.type()
    target, *operands = line.operands(5)
    values = ", ".join(line.value(operand, "b32") for operand in operands)
    result, valid = _split(target)
    call = f"const auto got = shuffle(t, {line.number}, Shuffle::{mode}, {values});"
    stores = (
        f"{_store(line, result, type_, 'got.value')} {_store(line, valid, 'pred', 'got.valid')}"
    )
    return f"{{ {call} {stores} }}"


@translates("vote")
def _(line: Line) -> str:
    if not line.take("sync"):
        raise line.refuse("not of the form vote.sync")
    mode = line.choose({word: word for word in ("any", "all", "uni", "ballot")})
    type_ = line.type()
    target, value, mask = line.operands(3)
    arguments = f"{line.value(value, 'pred')}, {line.value(mask, 'b32')}"
    text = f"vote(t, {line.number}, Vote::{mode}, {arguments})"
    return f"{line.target(target, type_)} = {text};"


@translates("match")
def _(line: Line) -> str:
    mode = line.choose({"any": "any", "all": "all"})
    if not line.take("sync"):
        raise line.refuse("not of the form match.sync")
    type_ = line.type()
    target, value, mask = line.operands(3)
    arguments = f"t, {line.number}, {line.value(value, type_)}, {line.value(mask, 'b32')}"
    if mode == "any":
        return f"{line.target(target, 'b32')} = match_any({arguments});"
    lanes, all_ = _split(target)
    stores = f"{_store(line, lanes, 'b32', 'got.lanes')} {_store(line, all_, 'pred', 'got.all')}"
    return f"{{ const auto got = match_all({arguments}); {stores} }}"


@translates("redux")
def _(line: Line) -> str:
    if not line.take("sync"):
        raise line.refuse("not of the form redux.sync")
    mode = line.choose({word: word for word in ("add", "min", "max", "and", "or", "xor")})
    type_ = line.type()
    if type_ not in ("s32", "u32", "b32"):
        raise line.refuse("of another type than 32-bit integers")
    if mode in ("min", "max") and type_ == "u32":
        mode = f"u{mode}"
    elif mode in ("and", "or", "xor"):
        mode += "_"
    target, value, mask = line.operands(3)
    arguments = f"{line.value(value, type_)}, {line.value(mask, 'b32')}"
    text = f"reduce(t, {line.number}, Reduce::{mode}, {arguments})"
    return f"{line.target(target, type_)} = {text};"


@translates("elect")
def _(line: Line) -> str:
    if not line.take("sync"):
        raise line.refuse("not of the form elect.sync")
    target, mask = line.operands(2)
    lane, elected = _split(target)
    first = f"const uint32_t first = __builtin_ctz({line.value(mask, 'b32')});"
    stores = (
        f"{_store(line, lane, 'b32', 'first')} {_store(line, elected, 'pred', 't.lane == first')}"
    )
    return f"{{ {first} {stores} }}"
