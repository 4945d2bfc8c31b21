"""SRResNet's last steps in one pass, compiled when they are first wanted. Only this file imports llvmlite.

PixelShuffle, PReLU, a depthwise 9 x 9 and a pointwise convolution to three maps are half the time of a
separable SRResNet in OpenVINO: four passes over 64 maps of the large picture, with the 9 x 9 far from the
processor's peak. Here a strip of the picture goes down through a ring of rows that stays in the cache, and
none of the large maps is written to memory. In float32 products are fused multiply-adds of 16 maps; in
bfloat16 they are the processor's dot products of two rows at once, summed up in float32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from pgsr.machine import processor_flags

from .tail import LANES, REACH, SIDE, STRIP

BLOCK = 8  # columns of two rows whose sums are in registers
WIDE = STRIP + 2 * REACH  # columns of the ring,
SLOTS = 8  # pairs of rows in it, a power of two of at least 5
PAIRS = 5  # of rows that two output rows see

F32, I64, PTR = ir.FloatType(), ir.IntType(64), ir.PointerType()
I8, I16, I32 = (ir.IntType(bits) for bits in (8, 16, 32))
VECTOR, WORDS, HALVES = (ir.VectorType(kind, LANES) for kind in (F32, I32, I16))
BF16 = ir.HalfType()  # stands for bfloat, which llvmlite has no class for


class Emitter:
    """The function as it is written, for a number of maps and a precision."""

    def __init__(self, maps: int, bf16: bool, pixels: bool) -> None:
        self.maps, self.bf16, self.pixels = maps, bf16, pixels
        self.blocks = maps // LANES
        self.module = ir.Module("tail")
        kind = ir.FunctionType(ir.VoidType(), [PTR] * 7 + [F32] + [I64] * 3)
        self.function = ir.Function(self.module, kind, "tail")
        pointers, numbers = self.function.args[:7], self.function.args[7:]
        for pointer in pointers:
            pointer.add_attribute("noalias")
        self.x, self.ring, self.sums, self.depthwise, self.pointwise, self.bias, self.out = pointers
        self.slope, self.height, self.width, self.out_width = numbers
        self.b = ir.IRBuilder(self.function.append_basic_block())
        self.whole()
        self.b.ret_void()

    # ------------------------------------------------------------------------
    # Words of LLVM's language.

    @contextmanager
    def loop(self, start: Any, stop: Any, step: int = 1) -> Iterator[Any]:
        b = self.b
        before, head = b.block, b.append_basic_block()
        b.branch(head)
        b.position_at_end(head)
        i = b.phi(I64)
        i.add_incoming(number(start), before)
        body, after = b.append_basic_block(), b.append_basic_block()
        b.cbranch(b.icmp_signed("<", i, number(stop)), body, after)
        b.position_at_end(body)
        yield i
        following = b.add(i, I64(step))
        i.add_incoming(following, b.block)
        b.branch(head)
        b.position_at_end(after)

    def sum(self, *terms: Any) -> Any:
        result = number(terms[0])
        for term in terms[1:]:
            result = self.b.add(result, number(term))
        return result

    def times(self, a: Any, factor: Any) -> Any:
        return self.b.mul(number(a), number(factor))

    def at(self, base: Any, offset: Any, kind: Any = F32) -> Any:
        return self.b.gep(base, [number(offset)], source_etype=kind)

    def load(self, base: Any, offset: Any, kind: Any = VECTOR) -> Any:
        return self.b.load(self.at(base, offset, kind.element), typ=kind, align=4)

    def store(self, value: Any, base: Any, offset: Any) -> None:
        self.b.store(value, self.at(base, offset, value.type.element), align=1)

    def spread(self, value: Any) -> Any:
        lone = self.b.insert_element(ir.Constant(VECTOR, ir.Undefined), value, I32(0))
        return self.shuffled(lone, lone, [0] * LANES)

    def shuffled(self, a: Any, c: Any, order: list[int]) -> Any:
        mask = ir.Constant(ir.VectorType(I32, len(order)), order)
        return self.b.shuffle_vector(a, c, mask)

    def intrinsic(self, name: str, *values: Any) -> Any:
        kind = ir.FunctionType(values[0].type, [value.type for value in values])
        known = self.module.globals.get(name)
        return self.b.call(known or ir.Function(self.module, kind, name), values)

    # ------------------------------------------------------------------------
    # The passes.

    def whole(self) -> None:
        """Strip by strip, two rows at a time."""
        columns = self.times(self.width, 2)
        with self.loop(0, columns, STRIP) as left:
            for pair in (-2, -1):
                self.clear(I64(pair))
            for pair in (0, 1):
                self.fill_or_clear(I64(pair), left)
            with self.loop(0, self.height) as pair:
                self.fill_or_clear(self.sum(pair, 2), left)
                self.two_rows(pair, left)

    def slot(self, pair: Any) -> Any:
        """Where a pair of rows begins in the ring, in values of 32 bits."""
        rows = 1 if self.bf16 else 2
        index = self.b.and_(self.sum(pair, 2), I64(SLOTS - 1))
        return self.times(index, self.blocks * rows * WIDE * LANES)

    def clear(self, pair: Any) -> None:
        rows = 1 if self.bf16 else 2
        start, nothing = self.slot(pair), ir.Constant(WORDS, [0] * LANES)
        with self.loop(0, self.blocks * rows * WIDE * LANES, LANES) as i:
            self.store(nothing, self.ring, self.sum(start, i))

    def fill_or_clear(self, pair: Any, left: Any) -> None:
        with self.b.if_else(self.b.icmp_signed("<", pair, self.height)) as (inside, outside):
            with inside:
                self.fill(pair, left)
            with outside:
                self.clear(pair)

    def fill(self, pair: Any, left: Any) -> None:
        """Two rows of the strip into the ring, activated. A low pixel holds its four places, each with its
        maps."""
        slope = self.spread(self.slope)
        first = self.sum(self.b.ashr(left, I64(1)), -REACH // 2)
        start = self.slot(pair)
        with self.loop(0, WIDE // 2) as j:
            column = self.sum(first, j)
            inside = self.b.icmp_unsigned("<", column, self.width)
            column = self.b.select(inside, column, I64(0))
            low = self.times(self.sum(self.times(pair, self.width), column), 4 * self.maps)
            with self.loop(0, self.blocks) as block:
                for right in (0, 1):
                    values = [
                        self.activated(
                            self.sum(low, (2 * down + right) * self.maps, self.times(block, LANES)),
                            slope,
                            inside,
                        )
                        for down in (0, 1)
                    ]
                    self.keep(values, start, block, self.sum(self.times(j, 2), right))

    def activated(self, offset: Any, slope: Any, inside: Any) -> Any:
        """PReLU of 16 maps, 0 outside the picture."""
        if self.bf16:
            halves = self.load(self.x, offset, HALVES)
            value = self.b.bitcast(
                self.b.shl(self.b.zext(halves, WORDS), ir.Constant(WORDS, [16] * LANES)), VECTOR
            )
        else:
            value = self.load(self.x, offset)
        positive = self.b.fcmp_ordered(">", value, of(0.0))
        value = self.b.select(positive, value, self.b.fmul(value, slope))
        return self.b.select(inside, value, of(0.0))

    def keep(self, values: list[Any], start: Any, block: Any, column: Any) -> None:
        if self.bf16:  # pairs of values, the upper row's in the lower half
            upper, lower = (self.rounded(value) for value in values)
            high = self.b.shl(self.b.zext(lower, WORDS), ir.Constant(WORDS, [16] * LANES))
            both = self.b.or_(self.b.zext(upper, WORDS), high)
            place = self.times(self.sum(self.times(block, WIDE), column), LANES)
            self.store(both, self.ring, self.sum(start, place))
            return
        for down, value in enumerate(values):
            row = self.sum(self.times(block, 2), down)
            place = self.times(self.sum(self.times(row, WIDE), column), LANES)
            self.store(value, self.ring, self.sum(start, place))

    def rounded(self, value: Any) -> Any:
        halves = self.b.fptrunc(value, ir.VectorType(BF16, LANES))
        return self.b.bitcast(halves, HALVES)

    def two_rows(self, pair: Any, left: Any) -> None:
        """Two output rows of a strip: sums over 16 maps at a time, then across the lanes."""
        nothing = of(0.0)
        with self.loop(0, 2 * STRIP * 3 * LANES, LANES) as i:
            self.store(nothing, self.sums, i)
        slots = [self.slot(self.sum(pair, q - 2)) for q in range(PAIRS)]
        with self.loop(0, self.blocks) as block, self.loop(0, STRIP, BLOCK) as column:
            self.to_three(self.convolved(slots, block, column), block, column)
        with self.loop(0, 2) as down, self.loop(0, STRIP, LANES) as column:
            self.put(self.sum(self.times(pair, 2), down), left, down, column)

    def convolved(self, slots: list[Any], block: Any, column: Any) -> list[list[Any]]:
        """The depthwise convolution of 16 maps at two rows of BLOCK columns."""
        kinds = 2 * PAIRS if self.bf16 else SIDE
        weights = self.at(self.depthwise, self.times(block, kinds * SIDE * LANES))
        sums: list[list[Any]] = [[of(0.0)] * BLOCK for _ in range(2)]
        steps = PAIRS if self.bf16 else 2 * PAIRS
        for step in range(steps):  # a pair of input rows, or one of them
            q, down = (step, 0) if self.bf16 else divmod(step, 2)
            row = self.times(block, 1 if self.bf16 else 2)
            start = self.sum(
                slots[q], self.times(self.sum(self.times(self.sum(row, down), WIDE), column), LANES)
            )
            x = [self.load(self.ring, self.sum(start, i * LANES)) for i in range(BLOCK + SIDE - 1)]
            for across in range(SIDE):
                for out in (0, 1):
                    kind = out * PAIRS + step if self.bf16 else step - out
                    if not self.bf16 and not 0 <= kind < SIDE:
                        continue
                    w = self.load(weights, (kind * SIDE + across) * LANES)
                    for i in range(BLOCK):
                        sums[out][i] = self.product(sums[out][i], x[i + across], w)
        return sums

    def product(self, total: Any, a: Any, c: Any) -> Any:
        if not self.bf16:
            return self.intrinsic("llvm.fma.v16f32", a, c, total)
        pairs = ir.VectorType(BF16, 2 * LANES)
        a, c = self.b.bitcast(a, pairs), self.b.bitcast(c, pairs)
        return self.intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", total, a, c)

    def to_three(self, sums: list[list[Any]], block: Any, column: Any) -> None:
        """The pointwise convolution, of these 16 maps."""
        weights = [
            self.load(self.pointwise, self.times(self.sum(self.times(block, 3), o), LANES)) for o in range(3)
        ]
        for down in (0, 1):
            for i in range(BLOCK):
                pixel = self.times(self.sum(column, down * STRIP + i), 3 * LANES)
                for o in range(3):
                    place = self.sum(pixel, o * LANES)
                    total = self.load(self.sums, place)
                    total = self.intrinsic("llvm.fma.v16f32", sums[down][i], weights[o], total)
                    self.store(total, self.sums, place)

    def put(self, row: Any, left: Any, down: Any, column: Any) -> None:
        """16 pixels of a row: float32 [3, H, W], or uint8 [H, W, 3]."""
        colours = []
        for o in range(3):
            start = self.times(self.sum(self.times(down, STRIP), column), 3 * LANES)
            lanes = [self.load(self.sums, self.sum(start, (3 * i + o) * LANES)) for i in range(LANES)]
            bias = self.b.load(self.at(self.bias, o), typ=F32)
            colours.append(self.b.fadd(self.across(lanes), self.spread(bias)))
        place = self.sum(self.times(row, self.out_width), left, column)
        if self.pixels:
            bytes_ = [self.as_byte(value) for value in colours]
            first = self.shuffled(bytes_[0], bytes_[1], list(range(32)))
            last = self.shuffled(bytes_[2], bytes_[2], list(range(32)))
            order = [i + 16 * o for i in range(LANES) for o in range(3)]
            self.store(self.shuffled(first, last, order), self.out, self.times(place, 3))
            return
        plane = self.times(self.times(self.height, 2), self.out_width)
        for o in range(3):
            self.store(colours[o], self.out, self.sum(place, self.times(plane, o)))

    def across(self, vectors: list[Any]) -> Any:
        """Sums of the lanes of 16 vectors, one a lane."""
        size = LANES
        while size > 1:
            groups = [range(g, g + size) for g in range(0, 2 * LANES, size)]
            first = [i for group in groups for i in group[: size // 2]]
            second = [i for group in groups for i in group[size // 2 :]]
            vectors = [
                self.b.fadd(self.shuffled(a, c, first), self.shuffled(a, c, second))
                for a, c in zip(vectors[::2], vectors[1::2], strict=True)
            ]
            size //= 2
        return vectors[0]

    def as_byte(self, value: Any) -> Any:
        """[-1, 1] -> 0 ... 255, rounded to even, as the graph does it."""
        value = self.b.fmul(self.b.fadd(value, of(1.0)), of(127.5))
        value = self.intrinsic("llvm.roundeven.v16f32", value)
        value = self.intrinsic("llvm.maxnum.v16f32", value, of(0.0))
        value = self.intrinsic("llvm.minnum.v16f32", value, of(255.0))
        return self.b.trunc(self.b.fptoui(value, WORDS), ir.VectorType(I8, LANES))


def of(value: float) -> Any:
    """A number in every lane."""
    return ir.Constant(VECTOR, [value] * LANES)


def number(value: Any) -> Any:
    """An integer of Python's as one of LLVM's."""
    return I64(value) if isinstance(value, int) else value


# ----------------------------------------------------------------------------
# Compiled.


def usable(bf16: bool) -> bool:
    """Returns whether this processor has the vectors, and in bfloat16 the dot products."""
    return processor_flags() >= ({"avx512f", "avx512bw", "avx512_bf16"} if bf16 else {"avx512f"})


@cache
def compiled(maps: int, bf16: bool, pixels: bool) -> Callable[..., None]:
    """The function: addresses of x, ring, sums, weights and result; slope, height, width, padded width.

    It lets Python's lock go while it computes.
    """
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten() + ",-prefer-256-bit"
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3
    )
    module = llvm.parse_assembly(str(Emitter(maps, bf16, pixels).module).replace("half", "bfloat"))
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 7, ctypes.c_float, *[ctypes.c_int64] * 3)
    function = kind(engine.get_function_address("tail"))
    _ENGINES.append(engine)
    return function


_ENGINES: list[Any] = []  # hold the code
