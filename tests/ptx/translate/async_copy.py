"""Asynchronous copies and mbarriers."""

from __future__ import annotations

from tests.ptx.records import Address, Operand, Sink
from tests.ptx.translate.line import Line, translates


@translates("cp")
def _(line: Line) -> str:
    if line.take_first("async", "bulk"):
        return _bulk(line)
    if not line.take_first("async"):
        raise line.refuse("not a known copy")
    if line.take("commit_group"):
        line.operands(0)
        return "commit_copies(t);"
    if line.take("wait_group"):
        (groups,) = line.operands(1)
        return f"wait_copies(t, {line.value(groups, 'b32')});"
    if line.take("wait_all"):
        line.operands(0)
        return "wait_all_copies(t);"
    return _copy(line)


def _copy(line: Line) -> str:
    line.choose({"ca": "ca", "cg": "cg"})
    if not line.take("shared", "shared::cta") or not line.take("global"):
        raise line.refuse("not from global to shared memory")
    line.take("L2::64B", "L2::128B", "L2::256B")
    has_policy = line.take("L2::cache_hint")
    to, from_, size, *rest = line.operands(*((4, 5) if has_policy else (3, 4)))
    count = line.value(size, "b32")
    if int(count, 0) not in (4, 8, 16):
        raise line.refuse("copies another number of bytes than 4, 8 or 16")
    sources = rest[:-1] if has_policy else rest
    num_read = line.value(sources[0], "b32") if sources else count
    addresses = f"{line.address(to)}, {line.address(from_)}"
    return f"copy_async(t, {line.number}, {addresses}, {count}, {num_read});"


def _bulk(line: Line) -> str:
    if line.take("commit_group"):
        return ";"
    if line.take("wait_group"):
        line.take("read")
        line.operands(1)
        return ";"
    if not line.take("tensor"):
        raise line.refuse("not a copy of a tensor's box")
    dimensions = line.take_matching(r"([1-5])d")
    line.take("tile")
    if dimensions is None:
        raise line.refuse("its rank is not known")
    rank = int(dimensions[1])
    if line.take_first("global", "shared::cta"):
        line.take("bulk_group")
        map_, source = line.operands(2)
        return _with_box(
            line, map_, rank, f"store_box(t, {line.number}, {{box}}, {line.address(source)});"
        )
    if not line.take("shared::cluster", "shared::cta") or not line.take("global"):
        raise line.refuse("not from global to shared memory")
    if not line.take("mbarrier::complete_tx::bytes"):
        raise line.refuse("no mbarrier is told")
    to, map_, barrier = line.operands(3)
    call = f"copy_box(t, {line.number}, {line.address(to)}, {{box}}, {line.address(barrier)});"
    return _with_box(line, map_, rank, call)


def _with_box(line: Line, operand: Operand, rank: int, call: str) -> str:
    if not isinstance(operand, Address) or len(operand.coordinates) != rank:
        raise line.refuse("has no box of its rank")
    coordinates = [line.value(each, "b32") for each in operand.coordinates]
    address = line.address(Address(operand.base, operand.offset))
    box = f"{address}, {rank}, at"
    values = ", ".join(f"static_cast<int32_t>({each})" for each in coordinates)
    array = f"const int32_t at[] = {{{values}}};"
    return f"{{ {array} {call.format(box=box)} }}"


@translates("mbarrier")
def _(line: Line) -> str:
    line.take("shared", "shared::cta")
    line.take("b64")
    where = line.number
    if line.take("init"):
        at, count = line.operands(2)
        return f"mbarrier_init(t, {where}, {line.address(at)}, {line.value(count, 'b32')});"
    if line.take("inval"):
        (at,) = line.operands(1)
        return f"mbarrier_invalidate(t, {where}, {line.address(at)});"
    line.take("release", "acquire", "relaxed")
    line.take("cta", "cluster")
    if line.take("arrive"):
        return _arrive(line)
    if line.take("expect_tx"):
        at, size = line.operands(2)
        return f"mbarrier_expect(t, {where}, {line.address(at)}, {line.value(size, 'b32')});"
    if line.take("try_wait", "test_wait"):
        # A state, as arrive returns it, is the parity of the phase.
        kind = "b32" if line.take("parity") else "b64"
        target, at, parity, *_hint = line.operands(3, 4)
        text = f"mbarrier_test(t, {where}, {line.address(at)}, {line.value(parity, kind)})"
        return f"{line.target(target, 'pred')} = {text};"
    raise line.refuse("not a known mbarrier")


def _arrive(line: Line) -> str:
    if line.take("expect_tx"):
        target, at, size = line.operands(3)
        address = line.address(at)
        expect = f"mbarrier_expect(t, {line.number}, {address}, {line.value(size, 'b32')}); "
        count = "1"
    else:
        target, at, *rest = line.operands(2, 3)
        address, expect = line.address(at), ""
        count = line.value(rest[0], "b32") if rest else "1"
    call = f"mbarrier_arrive(t, {line.number}, {address}, {count});"
    if isinstance(target, Sink):
        return expect + call
    return f"{expect}{line.target(target, 'b64')} = {call}"
