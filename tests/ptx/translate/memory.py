"""Loads, stores, atomics and addresses."""

from __future__ import annotations

from tests.ptx.parse import TYPE_BYTES
from tests.ptx.records import Address, Operand, Sink, Symbol
from tests.ptx.translate.arithmetic import is_float
from tests.ptx.translate.line import Line, translates

_SPACES = ("global", "shared", "local", "param", "const")
_CACHE = (
    *("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc"),
    *(f"L1::{policy}" for policy in ("evict_normal", "evict_unchanged", "evict_first")),
    *("L1::evict_last", "L1::no_allocate", "L2::64B", "L2::128B", "L2::256B"),
    *("L2::evict_last", "L2::evict_first", "L2::evict_normal"),
)
_SCOPES = ("cta", "gpu", "sys", "cluster")
_ORDERS = {
    "relaxed": "__ATOMIC_RELAXED",
    "volatile": "__ATOMIC_RELAXED",
    "acquire": "__ATOMIC_ACQUIRE",
    "release": "__ATOMIC_RELEASE",
    "acq_rel": "__ATOMIC_ACQ_REL",
}


def take_space(line: Line) -> str:
    """``global``, ``shared``... or ``generic`` where nothing is said."""
    for space in _SPACES:
        if line.take(space, f"{space}::cta"):
            return space
    return "generic"


def _take_cache(line: Line) -> bool:
    """Takes what is said about caches; whether a policy is among the operands."""
    while line.take(*_CACHE):
        pass
    return line.take("L2::cache_hint")


def pointer(line: Line, operand: Operand, space: str, size: int) -> str:
    """A checked pointer to ``size`` bytes."""
    if space == "shared":
        return line.shared(operand, size)
    if isinstance(operand, Address) and isinstance(operand.base, Symbol):
        name = operand.base.name
        if name in line.names.parameters:
            position, bytes_ = line.names.parameters[name]
            if operand.offset < 0 or operand.offset + size > bytes_ or operand.offset % size:
                raise line.refuse(f"not within the {bytes_} bytes of the parameter")
            return f"t.parameters[{position}] + {operand.offset}"
    address = line.address(operand)
    if space == "param":
        address = f"parameter_to_generic(t, {address})"
    return f"at_address(t, {line.number}, {address}, {size})"


def _count(line: Line) -> int:
    return line.choose({"v2": 2, "v4": 4, "v8": 8}, 1)


def _order(line: Line) -> str:
    line.take("weak")
    order = line.choose(_ORDERS, "")
    if order:
        line.take(*_SCOPES)
    return order


@translates("ld", "ldu")
def _(line: Line) -> str:
    type_ = line.type()
    order, space, count = _order(line), take_space(line), _count(line)
    has_policy = _take_cache(line)
    target, source, *_policy = line.operands(3 if has_policy else 2)
    targets = line.items(target)
    if len(targets) != count:
        raise line.refuse(f"{len(targets)} results of {count}")
    element = _memory_type(type_)
    where = pointer(line, source, space, count * TYPE_BYTES[type_])
    if order:
        if count > 1:
            raise line.refuse("orders memory and has several results")
        result = line.target(targets[0], type_, wider=True)
        return f"{result} = load_atomic<{element}, {order}>({where});"
    words = f"auto words = load<{element}, {count}>({where});"
    return f"{{ {words} {line.assign(targets, type_, 'words')} }}"


def _memory_type(type_: str) -> str:
    """What lies in memory: integers keep their sign, all else is bits."""
    return type_ if type_[0] in "su" else f"b{8 * TYPE_BYTES[type_]}"


@translates("st")
def _(line: Line) -> str:
    type_ = line.type()
    order, space, count = _order(line), take_space(line), _count(line)
    has_policy = _take_cache(line)
    target, source, *_policy = line.operands(3 if has_policy else 2)
    if space == "param":
        raise line.refuse("stores to a parameter")
    sources = line.items(source)
    if len(sources) != count:
        raise line.refuse(f"{len(sources)} values of {count}")
    element = f"b{8 * TYPE_BYTES[type_]}"
    where = pointer(line, target, space, count * TYPE_BYTES[type_])
    values = [f"static_cast<{element}>({line.value(v, type_, wider=True)})" for v in sources]
    if order:
        if count > 1:
            raise line.refuse("orders memory and has several values")
        return f"store_atomic<{element}, {order}>({where}, {values[0]});"
    return f"store<{element}, {count}>({where}, {{{', '.join(values)}}});"


_UPDATES = {
    "add": "add<{0}>(before, {1})",
    "min": "min<{0}>(before, {1})",
    "max": "max<{0}>(before, {1})",
    "and": "before & {1}",
    "or": "before | {1}",
    "xor": "before ^ {1}",
    "exch": "{1}",
    "inc": "increment(before, {1})",
    "dec": "decrement(before, {1})",
    "cas": "before == {1} ? {2} : before",
}


@translates("atom", "red")
def _(line: Line) -> str:
    type_ = line.type()
    order = _order(line) or "__ATOMIC_RELAXED"
    line.take(*_SCOPES)
    space = take_space(line)
    update = line.choose(_UPDATES)
    line.take("noftz")
    returns = line.statement.opcode == "atom"
    target, *operands = line.operands(*range(2, 5)) if returns else (Sink(), *line.operands(2))
    where = pointer(line, operands[0], space, TYPE_BYTES[type_])
    element = f"b{8 * TYPE_BYTES[type_]}" if is_float(type_) else type_
    values = [f"static_cast<{element}>({line.value(v, type_)})" for v in operands[1:]]
    if len(values) != update.count("{1}") + update.count("{2}"):
        raise line.refuse(f"has {len(values)} values")
    function = f"[&]({element} before) {{ return {update.format(type_, *values)}; }}"
    text = f"exchange<{order}, {element}>({where}, {function});"
    return text if isinstance(target, Sink) else f"{line.target(target, type_)} = {text}"


@translates("cvta")
def _(line: Line) -> str:
    type_ = line.type()
    is_back = line.take("to")
    space = take_space(line)
    target, operand = line.operands(2)
    value = line.value(operand, type_)
    if space == "shared":
        value = f"{'generic_to_shared' if is_back else 'shared_to_generic'}(t, {value})"
    elif space == "param":
        if is_back:
            raise line.refuse("back to the space of parameters")
        value = f"parameter_to_generic(t, {value})"
    return f"{line.target(target, type_)} = {value};"


@translates("prefetch", "prefetchu", "discard", "applypriority")
def _(line: Line) -> str:
    """Advice to caches."""
    take_space(line)
    line.take("L1", "L2", "L2::evict_last", "L2::evict_normal", "tensormap")
    return ";"


@translates("createpolicy")
def _(line: Line) -> str:
    """A cache's policy, which no instruction here reads."""
    line.take("fractional", "range")
    take_space(line)
    while line.take(*_CACHE, "L2::evict_unchanged"):
        pass
    line.take("b64")
    target, *_rest = line.operands(1, 2, 3, 4)
    return f"{line.target(target, 'b64')} = 0;"


@translates("fence", "membar")
def _(line: Line) -> str:
    """Orders a thread's own accesses, which here are in order; others wait at barriers."""
    line.take("acq_rel", "sc", "proxy", "acquire", "release")
    line.take("async", "async::generic", "alias", "tensormap::generic")
    line.take(*_SCOPES, "gl")
    line.take("async.shared::cta", "shared::cta", "async.global", "global", "mbarrier_init")
    line.take("sync_restrict::shared::cta", "cluster")
    return ";"
