"""Integers of 2 and 4 bits in whole bytes: four or two to a byte, in memory and on disk."""

import torch
from jaxtyping import Int8, UInt8
from torch import Tensor


def pack(integers: Int8[Tensor, "*rows n"], bits: int) -> UInt8[Tensor, "*rows bytes"]:
    """Eight divided by `bits` values a byte; byte i of a row holds its values i, i + n/k, i + 2n/k ... in rising bits.

    So unpacking writes whole stretches of memory. Values must fit; each row is padded with zeros.
    """
    per_byte = 8 // bits
    padded = torch.nn.functional.pad(integers, (0, -integers.shape[-1] % per_byte))
    stretches = padded.view(torch.uint8).unflatten(-1, (per_byte, padded.shape[-1] // per_byte))
    packed = torch.zeros_like(stretches[..., 0, :])
    for index in range(per_byte):
        packed |= (stretches[..., index, :] & (2**bits - 1)) << (bits * index)
    return packed


def unpack_into(
    packed: UInt8[Tensor, "*rows bytes"], bits: int, out: Int8[Tensor, "*rows n"]
) -> None:
    """The values again, signed, written into `out`, which says how many there are."""
    signed = packed.view(torch.int8)
    length = packed.shape[-1]
    for index, start in enumerate(range(0, out.shape[-1], max(1, length))):
        target = out[..., start : start + length]
        source = signed[..., : target.shape[-1]]
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
