"""Integers of 2 and 4 bits in whole bytes: four or two to a byte, in memory and on disk."""

import torch
from jaxtyping import Int8, UInt8
from torch import Tensor


def pack(integers: Int8[Tensor, " n"], bits: int) -> UInt8[Tensor, " bytes"]:
    """Eight divided by `bits` values a byte; byte i holds the values i, i + n/k, i + 2n/k ... in rising bits.

    So unpacking writes whole stretches of memory. Values must fit; the length is padded with zeros.
    """
    per_byte = 8 // bits
    padded = torch.nn.functional.pad(integers, (0, -len(integers) % per_byte))
    stretches = padded.view(per_byte, len(padded) // per_byte).view(torch.uint8) & (2**bits - 1)
    packed = torch.zeros_like(stretches[0])
    for index, stretch in enumerate(stretches):
        packed |= stretch << (bits * index)
    return packed


def unpack_into(packed: UInt8[Tensor, " bytes"], bits: int, out: Int8[Tensor, " n"]) -> None:
    """The values again, signed, written into `out`, which says how many there are."""
    signed = packed.view(torch.int8)
    length = len(packed)
    for index, start in enumerate(range(0, len(out), max(1, length))):
        target = out[start : start + length]
        source = signed[: len(target)]
        # Up to the byte's top, then down again: the arithmetic shift carries the sign.
        torch.bitwise_left_shift(source, 8 - bits * (index + 1), out=target)
        target.bitwise_right_shift_(8 - bits)


def unpack(packed: UInt8[Tensor, " bytes"], bits: int, count: int) -> Int8[Tensor, " n"]:
    """The first `count` values again, signed."""
    out = torch.empty(count, dtype=torch.int8, device=packed.device)
    unpack_into(packed, bits, out)
    return out


def packed_size(count: int, bits: int) -> int:
    """How many bytes `count` values take."""
    return -(-count * bits // 8)
