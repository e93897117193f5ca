"""MXFP4: known codes, round trips, and transformers' own unpacking as an independent judge."""

import pytest
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from ftkit.models.mxfp4 import E2M1, dequantize_mxfp4, quantize_mxfp4


@pytest.fixture
def weight():
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(-9, 3, 96, base=2)  # columns of very different size
    return torch.randn(3, 64, 96, generator=generator) * scale


def test_shapes_and_dtypes_are_those_of_the_published_checkpoint(weight):
    blocks, scales = quantize_mxfp4(weight)
    assert (blocks.shape, blocks.dtype) == ((3, 96, 2, 16), torch.uint8)
    assert (scales.shape, scales.dtype) == ((3, 96, 2), torch.uint8)
    assert dequantize_mxfp4(blocks, scales).shape == weight.shape
    assert dequantize_mxfp4(blocks, scales).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_transformers_unpacks_the_same_numbers(weight, dtype):
    blocks, scales = quantize_mxfp4(weight)
    assert torch.equal(dequantize_mxfp4(blocks, scales, dtype), convert_moe_packed_tensors(blocks, scales, dtype=dtype))


def test_every_code_is_unpacked_as_transformers_does():
    blocks = torch.randint(256, (2, 5, 3, 16), dtype=torch.uint8)
    scales = torch.randint(100, 150, (2, 5, 3), dtype=torch.uint8)
    ours, theirs = dequantize_mxfp4(blocks, scales), convert_moe_packed_tensors(blocks, scales)
    assert torch.equal(ours, theirs)


def test_what_the_format_can_hold_survives_unchanged(weight):
    once = dequantize_mxfp4(*quantize_mxfp4(weight), torch.float32)
    assert torch.equal(dequantize_mxfp4(*quantize_mxfp4(once), torch.float32), once)
    assert torch.equal(dequantize_mxfp4(*quantize_mxfp4(once.bfloat16())).float(), once)


def test_a_block_written_out_by_hand():
    numbers = torch.zeros(32, 1)
    numbers[:8, 0], numbers[8:16, 0] = torch.tensor(E2M1), -torch.tensor(E2M1)
    blocks, scales = quantize_mxfp4(numbers * 0.25)
    assert scales.tolist() == [[127 - 2]]
    assert blocks[0, 0, :4].tolist() == [0x10, 0x32, 0x54, 0x76], "the earlier number lies in the low half"
    assert blocks[0, 0, 4:8].tolist() == [0x90, 0xBA, 0xDC, 0xFE], "the fourth bit is the sign; zero has none"


def test_ties_go_to_the_even_code():
    numbers = torch.zeros(32, 1)
    numbers[:8, 0] = torch.tensor([6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    rounded = dequantize_mxfp4(*quantize_mxfp4(numbers), torch.float32)[:8, 0]
    assert rounded.tolist() == [6.0, 0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]


def test_each_number_is_off_by_at_most_a_quarter_of_its_block_s_largest(weight):
    rounded = dequantize_mxfp4(*quantize_mxfp4(weight), torch.float32)
    largest = weight.unflatten(1, (2, 32)).abs().amax(2, keepdim=True).expand(3, 2, 32, 96).flatten(1, 2)
    assert ((rounded - weight).abs() <= largest / 4).all()
    assert (rounded - weight).norm() / weight.norm() < 0.13


def test_extreme_blocks():
    tiny, zero = torch.full((32, 1), 2.0**-140), torch.zeros(32, 1)
    assert dequantize_mxfp4(*quantize_mxfp4(zero)).eq(0).all()
    assert dequantize_mxfp4(*quantize_mxfp4(tiny), torch.float32).sub(tiny).abs().max() <= 2.0**-128


def test_what_cannot_be_held_is_refused():
    with pytest.raises(ValueError, match="multiple of 32, not 40"):
        quantize_mxfp4(torch.zeros(40, 32))
    with pytest.raises(ValueError, match="no infinities"):
        quantize_mxfp4(torch.full((32, 1), torch.inf))
