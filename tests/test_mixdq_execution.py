"""Integer layers against their simulation, layer by layer: forms, widths, dtypes, batches, BOS rows."""

import itertools
import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from t2iedit_mixdq import execution
from t2iedit_mixdq.bos import BosLookup, BosRows, BosTable
from t2iedit_mixdq.calibration import make_scheme
from t2iedit_mixdq.execution import NO_PRODUCTS, execute_layer, workshop
from t2iedit_mixdq.kernels import onednn
from t2iedit_mixdq.kernels.base import Weights, geometry_of
from t2iedit_mixdq.kernels.int_mm import IntMm, fits
from t2iedit_mixdq.kernels.native import Panels, Passes, Remembered, passes, products
from t2iedit_mixdq.kernels.panels import OUTPUTS, arranged
from t2iedit_mixdq.memory import EVERY, Watched, taken
from t2iedit_mixdq.packing import pack, packed_size, unpack
from t2iedit_mixdq.quantizers import observed_ranges
from t2iedit_mixdq.schemes import integer_weight, split_channels
from t2iedit_mixdq.simulation import Simulated, simulate
from t2iedit_mixdq.wiring import Layer, survey
from torch import nn

CPU = torch.device("cpu")
needs_vnni = pytest.mark.skipif(not onednn.available(), reason="this CPU has no VNNI")
FORMS = {
    "linear": (nn.Linear(24, 40), (3, 7, 24), 0),
    "linear without bias": (nn.Linear(24, 40, bias=False), (2, 24), 0),
    "convolution": (nn.Conv2d(12, 20, 3, padding=1), (2, 12, 9, 6), 0),
    "downsampling": (nn.Conv2d(12, 20, 3, stride=2, padding=1), (2, 12, 9, 6), 0),
    "dilated": (nn.Conv2d(8, 8, 3, padding=2, dilation=2), (1, 8, 9, 9), 0),
    "split shortcut": (nn.Conv2d(24, 16, 1), (2, 24, 5, 5), 8),
    "odd sizes": (nn.Conv2d(3, 5, 3, padding=1), (1, 3, 7, 5), 0),
    "channels in whole tiles": (nn.Conv2d(64, 48, 3, padding=1), (2, 64, 9, 7), 0),
}
ONEDNN = "oneDNN int8"
ENGINES = (ONEDNN, "AMX int8", "AVX2 int8")


def sqnr(reference, other):
    noise = (reference.double() - other.double()).square().sum()
    return float(10 * torch.log10(reference.double().square().sum() / noise.clamp(min=1e-30)))


def inputs(shape, split=0):
    """Not centred, and with halves of very different range where a layer is split."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 0.4
    if split:
        x[:, split:] *= 30
    return x


def both(module, x, split=0, weight_bits=8, act_bits=8, tools=None, bos=None, rows=None, group=0):
    """The layer simulated and executed."""
    kind = "linear" if isinstance(module, nn.Linear) else "conv"
    name = "block.attn2.to_k" if bos is not None else "layer"
    layer = Layer(name, kind, module.weight.numel(), x.numel(), split)
    kept = x[:, bos.others(x.shape[1])] if bos is not None else x
    ranges = torch.stack([observed_ranges(part) for part in split_channels(kept, split)])
    scheme = make_scheme(module.weight, layer, weight_bits, act_bits, ranges=ranges, group=group)
    module = module.eval().requires_grad_(False)
    integers = integer_weight(module.weight, scheme, split)
    table = None if rows is None else BosTable(BosLookup(rows), rows @ module.weight.T)
    executed = execute_layer(
        layer,
        scheme,
        integers,
        geometry_of(module),
        tools or workshop(CPU, large=False),
        bias=module.bias,
        table=table,
        bos=bos,
    )
    return Simulated(module, layer, scheme, bos=bos), executed


@pytest.fixture(scope="module")
def native():
    """The passes in C, compiled for this machine."""
    made, reason = passes(native=True)
    if reason:
        pytest.skip(reason)
    return made


@pytest.fixture(params=ENGINES)
def engine(request, monkeypatch):
    """The engine of integer layers, for each that this machine has."""
    made = [one for one in products() if one.engine == request.param]
    if not made and (request.param != ONEDNN or not onednn.available()):
        pytest.skip(f"this machine has no {request.param}")
    monkeypatch.setattr(execution, "products", lambda: made)
    if request.param == "AVX2 int8":
        monkeypatch.setattr(onednn, "available", lambda: False)
    return request.param


@given(st.lists(st.integers(-8, 7), max_size=30), st.sampled_from([2, 4]))
def test_packing_gives_the_integers_back(values, bits):
    integers = torch.tensor([max(-2, min(1, v)) if bits == 2 else v for v in values]).to(torch.int8)
    packed = pack(integers, bits)
    assert len(packed) == packed_size(len(values), bits) == -(-len(values) * bits // 8)
    assert torch.equal(unpack(packed, bits, len(values)), integers)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("weight_bits", "act_bits"), [(8, 8), (4, 8), (2, 8), (8, 4), (4, 2)])
@torch.no_grad()
def test_execution_agrees_with_simulation(engine, form, weight_bits, act_bits):
    module, shape, split = FORMS[form]
    x = inputs(shape, split)
    simulated, executed = both(module, x, split, weight_bits, act_bits)
    if form == "dilated" and engine != ONEDNN:
        assert executed.engine == "dequantised" and "dilated" in executed.reason
    else:
        assert executed.engine == engine and executed.reason == ""
    assert sqnr(simulated(x), executed(x)) > 60
    for dtype in (torch.bfloat16, torch.float16):
        half = x.to(dtype)
        made = executed(half)
        assert made.dtype == dtype and sqnr(simulated(half.float()), made.float()) > 40


@needs_vnni
@pytest.mark.parametrize(
    "shape",
    [(64, 64), (24, 40), (1000, 100), (5, 3), (64, 32, 3, 3), (96, 64, 1, 1), (4, 320, 3, 3)],
)
def test_arranging_weights_equals_onednns_own_order(shape):
    module = nn.Linear(*shape[::-1]) if len(shape) == 2 else nn.Conv2d(shape[1], *shape[::2])
    geometry, forms = geometry_of(module), {}

    def prepack(weight):
        if len(shape) == 2:
            return torch.ops.onednn.qlinear_prepack(weight, None)
        form = [1, 1], [0, 0], [1, 1], 1
        return torch.ops.onednn.qconv_prepack(weight, torch.ones(shape[0]), 1.0, 0, *form, None)

    for seed in range(2):
        generator = torch.Generator().manual_seed(seed + 5)
        weight = torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)
        if len(shape) == 4:
            weight = weight.contiguous(memory_format=torch.channels_last)
        made = onednn.block(weight, forms, geometry, prepack)
        assert torch.equal(onednn._bytes(made), onednn._bytes(prepack(weight.contiguous())))
    assert list(forms) == [geometry]


@needs_vnni
@pytest.mark.parametrize("size", [(3, 5), (40, 24), (17, 11_520)])
def test_row_sums_are_exact_beyond_sixteen_bits(size):
    integers = torch.full(size, -128, dtype=torch.int8)
    integers[0] = 127
    assert torch.equal(onednn.row_sums(integers), integers.long().sum(1).int())


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_int_mm_agrees_with_simulation(form):
    """CUDA's kernel, run on the CPU: the same arithmetic."""
    module, shape, split = FORMS[form]
    if split or fits(geometry_of(module)):
        module, shape = nn.Conv2d(16, 8, 3, padding=1), (2, 16, 5, 4)
    x = inputs(shape)
    for bits in (8, 4):
        simulated, _ = both(module, x, 0, bits)
        scheme = simulated.scheme
        integers = integer_weight(module.weight, scheme, 0)
        kernel = IntMm(Weights(integers, bits, scheme.delta[0], geometry_of(module)))
        bias = None if module.bias is None else module.bias.float()
        assert sqnr(simulated(x), kernel(x, scheme.grids[0], bias)) > 60


def test_int_mm_says_what_it_cannot_take():
    assert "multiples of 8" in fits(geometry_of(nn.Conv2d(3, 8, 3)))
    assert "grouped" in fits(geometry_of(nn.Conv2d(16, 16, 3, groups=2)))
    assert fits(geometry_of(nn.Linear(16, 8))) == ""


@torch.no_grad()
def test_padding_is_real_zero_and_not_the_zero_point(engine):
    module, shape, _ = FORMS["convolution"]
    x = inputs(shape) + 3
    simulated, executed = both(module, x)
    (grid,) = executed.scheme.grids
    low = replace(grid, zero=0)
    assert executed.scheme.grids[0].zero == 0 or sqnr(simulated(x), executed(x)) > 60
    wrong = torch.nn.functional.pad(x, (1, 1, 1, 1), value=(0 - 7) * low.delta)
    padded = torch.nn.functional.conv2d(wrong, module.weight, module.bias)
    assert sqnr(simulated(x), padded) < 40


@pytest.mark.parametrize("form", ["linear", "convolution", "split shortcut"])
@torch.no_grad()
def test_batch_of_four_equals_four_singles(engine, form):
    module, shape, split = FORMS[form]
    x = inputs((4, *shape[1:]), split)
    for bits in (8, 4):
        _, executed = both(module, x, split, bits)
        alone = torch.cat([executed(x[index : index + 1]) for index in range(4)])
        assert torch.allclose(executed(x), alone, atol=1e-4)


@torch.no_grad()
def test_slices_that_do_not_lie_together_are_read_right(engine):
    """The released kernel takes the raw pointer of x[:, 1:] and is wrong from the second image on."""
    module, _, _ = FORMS["linear"]
    x = inputs((3, 8, 24))
    simulated, executed = both(module, x)
    part = x[:, 1:, :]
    assert not part.is_contiguous()
    assert torch.equal(executed(part), executed(part.contiguous()))
    raw = x.flatten()[24 : 24 + part.numel()].view(part.shape)
    assert sqnr(simulated(part), executed(raw)) < 10

    module, shape, _ = FORMS["convolution"]
    image = inputs((2, 12, 6, 9))
    _, executed = both(module, image)
    last = image.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(executed(image), executed(last), atol=1e-6)
    turned = image.transpose(2, 3)
    assert torch.allclose(executed(turned), executed(turned.contiguous()), atol=1e-6)


def test_four_bits_take_half_the_memory_of_eight(engine):
    """The released code silently keeps 16-bit weights here."""
    module = nn.Linear(256, 512)
    x = inputs((2, 256))
    sizes = {bits: both(module, x, 0, bits)[1].nbytes for bits in (8, 4, 2)}
    count = module.weight.numel()
    assert count <= sizes[8] < 1.1 * count
    assert sizes[4] < 0.6 * count and sizes[2] < 0.35 * count
    for act_bits in (8, 16):
        kernel = both(module, x, 0, 4, act_bits)[1].kernels[0]
        held = [v for v in vars(kernel).values() if isinstance(v, torch.Tensor)]
        assert not any(
            v.is_floating_point() and v.numel() > 512 for v in held if v.layout == torch.strided
        )


@torch.no_grad()
def test_whole_inputs_keep_packed_weights_and_say_so():
    module, shape, split = FORMS["split shortcut"]
    x = inputs(shape, split)
    simulated, executed = both(module, x, split, 4, 16)
    assert executed.engine == "dequantised" and "16 bits" in executed.reason
    assert sqnr(simulated(x), executed(x)) > 60


@torch.no_grad()
def test_without_integer_products_the_slower_path_is_right_and_said_once(monkeypatch):
    monkeypatch.setattr(onednn, "available", lambda: False)
    monkeypatch.setattr(execution, "products", list)
    tools = workshop(CPU, large=False)
    for form in ("linear", "convolution"):
        module, shape, split = FORMS[form]
        x = inputs(shape)
        simulated, executed = both(module, x, tools=tools)
        assert executed.engine == "dequantised" and "no integer products" in executed.reason
        assert sqnr(simulated(x), executed(x)) > 60
    assert tools.notes.count(NO_PRODUCTS) == 1


@pytest.fixture(params=ENGINES[1:])
def compiled(request):
    """The products in C, compiled for this machine."""
    made = [one for one in products() if one.engine == request.param]
    if not made:
        pytest.skip(f"this machine has no {request.param}")
    return made[0]


def exact_and_made(compiled, bits, shape, outputs, window, stride, fitting=None):
    """Sums of the largest bytes there are among others, as integers of 64 bits and by the products in C."""
    generator = torch.Generator().manual_seed(0)
    top = 2 ** (bits - 1)
    q = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    weights = torch.randint(
        -top, top, (outputs, *window, shape[3]), dtype=torch.int8, generator=generator
    )
    q[:, : shape[1] // 2], weights[::2], weights[1::4] = 255, -top, top - 1
    fitting = compiled.fitting(top) if fitting is None else fitting
    rows = arranged(weights.flatten(1), 4 if fitting else 2, compiled.step).flatten(1)
    inputs, packed = rows.shape[1] // OUTPUTS, compiled.unpacks and bits in (2, 4)
    content, stored = (pack(rows, bits), bits) if packed else (rows, 8)
    panels = Panels(content, inputs, outputs, stored, fitting)
    fill = -outputs % OUTPUTS + outputs
    made = compiled.multiply(
        q, window, stride, panels, torch.ones(fill), torch.zeros(fill), torch.float32
    )
    image, kernel = q.permute(0, 3, 1, 2).double(), weights.permute(0, 3, 1, 2).double()
    return nn.functional.conv2d(image, kernel, stride=stride).permute(0, 2, 3, 1), made


PRODUCTS = [
    ((1, 13, 1, 24), 40, (1, 1), (1, 1)),
    ((1, 250, 1, 18), 16, (1, 1), (1, 1)),
    ((2, 9, 6, 12), 20, (3, 3), (1, 1)),
    ((2, 9, 8, 5), 7, (3, 3), (2, 2)),
    ((1, 5, 5, 1), 1, (1, 3), (1, 2)),
    # Whole tiles of channels: read where they lie, up to the image's end.
    ((2, 11, 8, 64), 48, (3, 3), (1, 1)),
    ((1, 3, 3, 128), 33, (3, 3), (1, 1)),
    ((3, 9, 9, 64), 20, (3, 3), (2, 2)),
    # Odd widths: 32 patches end between the two columns of the frame.
    ((2, 11, 11, 64), 20, (3, 3), (1, 1)),
    ((1, 33, 33, 64), 33, (3, 3), (1, 1)),
    ((1, 300, 1, 192), 70, (1, 1), (1, 1)),
    # More weights, and more inputs, than stay in a cache.
    ((1, 7, 5, 320), 260, (3, 3), (1, 1)),
    ((1, 66, 66, 256), 40, (3, 3), (1, 1)),
]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("bits", [8, 7, 4, 2])
@pytest.mark.parametrize("case", PRODUCTS)
def test_integer_products_are_exact(compiled, bits, case, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        exact, made = exact_and_made(compiled, bits, *case)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(exact.float(), made)


@pytest.mark.parametrize("compiled", ["AVX2 int8"], indirect=True)
@pytest.mark.parametrize(("bits", "fitting"), [(8, 1), (7, 2), (4, 16)])
def test_more_products_in_sixteen_bits_than_fit_are_wrong(compiled, bits, fitting):
    """What AVX2's multiplication of bytes makes of eight bits if nobody looks: it saturates."""
    many = (1, 20, 1, 96), 32, (1, 1), (1, 1)
    assert torch.equal(*(x.float() for x in exact_and_made(compiled, bits, *many)))
    exact, made = exact_and_made(compiled, bits, *many, fitting=fitting)
    assert (exact - made).abs().max() > 1000


def test_tiles_are_used_wherever_they_are_and_other_products_only_without_onednn():
    made, there = workshop(CPU, large=False).products, [one.engine for one in products()]
    expected = there[:1] if "AMX int8" in there or not onednn.available() else []
    assert [one.engine for one in (made,) if one] == expected


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_inputs_may_lie_in_memory_in_any_order(engine, dtype):
    for form, turned in (("linear without bias", (1, 0)), ("convolution", (3, 1, 0, 2))):
        module, shape, _ = FORMS[form]
        x = inputs(shape)
        _, executed = both(module, x)
        back = tuple(turned.index(axis) for axis in range(x.ndim))
        other = x.permute(turned).contiguous().permute(back)
        assert not other.is_contiguous()
        assert torch.equal(executed(x.to(dtype)), executed(other.to(dtype)))


@torch.no_grad()
@pytest.mark.usefixtures("engine")
def test_groups_of_inputs_in_no_whole_fours_are_left_to_floating_point():
    module, x = nn.Linear(48, 40), inputs((3, 7, 48))
    simulated, executed = both(module, x, weight_bits=4, group=6)
    assert executed.engine == "dequantised"
    assert sqnr(simulated(x), executed(x)) > 60


def test_bos_rows_are_first_rows_of_windows_or_those_given():
    assert BosRows().among(77) == [0]
    assert BosRows().among(154) == [0, 77]
    assert BosRows().among(20) == [0]
    assert BosRows((0, 5)).among(20) == [0, 5] and BosRows((0, 50)).among(20) == [0]
    assert 0 not in BosRows().others(77) and len(BosRows().others(77)) == 76


@pytest.fixture
def text_layer():
    """A layer, an outlier BOS row, and a batch whose second image has a zeroed first row, as SDXL's negative."""
    module = nn.Linear(32, 24)
    x = torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(2))
    x[0, 0], x[1] = 0, 0
    x[0, 0, 3] = 800
    x[1, 1:] = torch.randn(76, 32, generator=torch.Generator().manual_seed(3))
    return module, x


@torch.no_grad()
def test_bos_rows_go_through_the_original_weights(text_layer):
    module, x = text_layer
    simulated, executed = both(module, x, bos=BosRows(), rows=x[:1, 0])
    exact = module(x)
    for made in (simulated(x), executed(x)):
        assert torch.allclose(made[:, 0], exact[:, 0], atol=1e-4)
        # Zeros give exactly what the layer makes of zeros: its bias.
        assert torch.equal(made[1, 0], module.bias)
        assert sqnr(exact[:, 1:], made[:, 1:]) > 35
    with_bos, _ = both(module, x)
    assert sqnr(exact[:, 1:], with_bos(x)[:, 1:]) < 5


@torch.no_grad()
def test_constant_bos_output_on_a_zero_row_is_wrong(text_layer):
    """The released kernels prepend one constant for every image of the batch."""
    module, x = text_layer
    _, executed = both(module, x, bos=BosRows(), rows=x[:1, 0])
    constant = module(x[0, 0])
    assert (executed(x)[1, 0] - constant).abs().max() > 10


@pytest.mark.parametrize("bits", [8, 4])
@torch.no_grad()
def test_unknown_bos_row_costs_no_more_than_its_weights_rounding(text_layer, bits):
    """A text encoder changed by a LoRA has another BOS row than the table."""
    module, x = text_layer
    known = x[:1, 0] * 0.9
    simulated, executed = both(module, x, 0, bits, bos=BosRows(), rows=known)
    rounded = torch.nn.functional.linear(x[:, 0], simulated.rounded, module.bias)
    error = (executed(x)[:, 0] - module(x)[:, 0]).abs().max()
    # Only the tenth that the table does not know goes through the rounded weights.
    assert error < 0.2 * (rounded - module(x)[:, 0]).abs().max() + 1e-3


@torch.no_grad()
def test_changed_text_is_looked_up_anew(text_layer):
    """The answer is kept for one tensor as it is, whether another one comes or the same one changes."""
    module, x = text_layer
    _, executed = both(module, x, bos=BosRows(), rows=x[:1, 0])
    executed(x)
    other = x.flip(0)
    assert torch.allclose(executed(other)[:, 0], module(other)[:, 0], atol=1e-4)
    x[0, 0] = 0
    assert torch.equal(executed(x)[0, 0], module.bias)


@torch.no_grad()
def test_several_windows_have_several_bos_rows(text_layer):
    module, x = text_layer
    long = torch.cat([x[:1], x[:1]], dim=1)
    simulated, executed = both(module, long, bos=BosRows(), rows=x[:1, 0])
    for made in (simulated(long), executed(long)):
        assert torch.allclose(made[0, [0, 77]], module(long)[0, [0, 77]], atol=1e-4)


@torch.no_grad()
def test_models_in_one_process_share_no_scratch():
    module, shape, _ = FORMS["linear"]
    x = inputs(shape)
    pairs = []
    for seed in range(2):
        torch.manual_seed(seed)
        pairs.append(both(nn.Linear(24, 40), x, 0, 4))
    alone = [executed(x) for _, executed in pairs]
    for (_, executed), expected in itertools.chain(zip(pairs, alone, strict=True)):
        assert torch.equal(executed(x), expected)
    tools = workshop(CPU, large=False)
    shared = [both(m, x, 0, 4, tools=tools)[1] for m in (nn.Linear(24, 40), nn.Linear(24, 40))]
    first = shared[0](x)
    shared[1](x)
    assert torch.equal(shared[0](x), first)


def test_simulation_is_undone_even_when_it_fails_half_way(sd1):
    unet = sd1.pipeline.unet
    layers = survey(unet)
    modules = {name: unet.get_submodule(name) for name in layers}
    schemes = {n: make_scheme(modules[n].weight, layer, 4, 16) for n, layer in layers.items()}
    undo = simulate(unet, layers, schemes, bos=BosRows())
    assert all(isinstance(unet.get_submodule(name), Simulated) for name in layers)
    undo()
    assert all(unet.get_submodule(name) is module for name, module in modules.items())
    broken = schemes | {"nowhere": schemes["conv_out"]}
    with pytest.raises(AttributeError):
        simulate(unet, layers, broken, bos=BosRows())
    assert all(unet.get_submodule(name) is module for name, module in modules.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 7, 24), (5, 40), (2, 12, 5, 7)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 1)])
def test_one_pass_makes_the_same_integers(native, dtype, shape, padding):
    x = inputs(shape).to(dtype)
    grid = both(nn.Linear(24, 8), inputs((3, 24)))[0].scheme.grids[0]
    padding = padding if len(shape) == 4 else (0, 0)
    layouts = [x, x.transpose(-1, -2).contiguous().transpose(-1, -2)]
    if len(shape) == 4:
        last = torch.cat([x, x + 1, x], dim=1).contiguous(memory_format=torch.channels_last)
        layouts += [x.contiguous(memory_format=torch.channels_last), *last.split(12, dim=1)[1:]]
    for value in layouts:
        expected, made = (p.quantise(value, grid, padding) for p in (Passes(), native))
        assert made.shape == expected.shape
        apart = (made.int() - expected.int()).abs()
        assert apart.max() <= 1 and apart.float().mean() < 0.01


def test_gated_gelu_is_that_of_torch(native):
    x = 3 * torch.randn(5, 3, 2 * 37, generator=torch.Generator().manual_seed(0))
    exact = Passes().gated_gelu(x)
    assert sqnr(exact, native.gated_gelu(x.bfloat16()).float()) > 50
    value, gate = x.chunk(2, dim=-1)
    swapped = nn.functional.gelu(value) * gate
    assert sqnr(exact, swapped) < 10


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(2, 32, 7, 5), (1, 40, 9, 9), (1, 12, 1, 1), (1, 320, 33, 2)])
@torch.no_grad()
def test_group_norm_is_that_of_torch(native, shape, threads):
    """Also where a channel's mean is hundreds of times its deviation."""
    if not native.attends:
        pytest.skip("this CPU has no AVX-512 BF16")
    generator = torch.Generator().manual_seed(0)
    norm = nn.GroupNorm(4, shape[1])
    norm.weight.normal_(generator=generator)
    norm.bias.normal_(generator=generator)
    x = torch.randn(shape, generator=generator)
    far = x + 100 * torch.randn(1, shape[1], 1, 1, generator=generator)
    even = torch.full(shape, 300.0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for image in (x.bfloat16(), far.bfloat16(), even.bfloat16()):
            for activated in (False, True):
                exact = Passes().group_norm(image.double(), norm.double(), activated=activated)
                made = native.group_norm(image, norm.float().bfloat16(), activated=activated)
                assert made.dtype == torch.bfloat16 and sqnr(exact, made) > 40
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "shape", [(1, 70, 70, 2, 40), (2, 33, 77, 3, 64), (1, 300, 600, 1, 8), (1, 1, 1, 2, 160)]
)
def test_attention_is_that_of_torch(native, shape):
    """Blocks that are full and not, one block and several, keys fewer than queries and more."""
    batch, queries, tokens, heads, dim = shape
    if not native.attends:
        pytest.skip("this CPU has no AVX-512 BF16")
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        2 * torch.randn(batch, n, heads * dim, generator=generator)
        for n in (queries, tokens, tokens)
    )
    exact = Passes().attention(q, k, v, heads, dim**-0.5)
    half = [x.bfloat16() for x in (q, k, v)]
    theirs = Passes().attention(*half, heads, dim**-0.5).float()
    # With AMX's tiles and without.
    for variant in range(1, native._attention + 1):
        native._attention, kept = variant, native._attention
        made = native.attention(*half, heads, dim**-0.5).float()
        native._attention = kept
        assert sqnr(exact, made) > min(40, sqnr(exact, theirs) - 1)
    if tokens > 1:
        unscaled = Passes().attention(q, k, v, heads, 1.0)
        assert sqnr(exact, unscaled) < 20


def test_attention_survives_scores_of_any_size(native):
    """The greatest score is taken off first, and it may come in the last block."""
    if not native.attends:
        pytest.skip("this CPU has no AVX-512 BF16")
    q = torch.ones(1, 1, 32).bfloat16()
    k = torch.linspace(-300, 300, 600)[None, :, None].expand(1, 600, 32).bfloat16()
    v = torch.arange(600.0)[None, :, None].expand(1, 600, 32).bfloat16()
    for keys, values in ((k, v), (k.flip(1), v)):
        expected = Passes().attention(q.float(), keys.float(), values.float(), 1, 32**-0.5)
        made = native.attention(q, keys, values, 1, 32**-0.5).float()
        assert torch.isfinite(made).all() and torch.allclose(made, expected, rtol=1e-2, atol=0.1)


def test_one_input_is_quantised_once_and_a_changed_one_anew(native):
    grid = both(nn.Linear(24, 8), inputs((3, 24)))[0].scheme.grids[0]
    other = replace(grid, zero=grid.zero + 1)
    remembered = Remembered(native)
    x = inputs((3, 24))
    first = remembered.quantise(x, grid)
    assert remembered.quantise(x, grid) is first
    assert remembered.quantise(x, other) is not first
    remembered.quantise(x, grid)
    x += 1
    assert not torch.equal(remembered.quantise(x, grid), first)
    assert torch.equal(remembered.quantise(x.clone(), grid), native.quantise(x, grid))


@pytest.mark.parametrize("bits", [2, 4])
@torch.no_grad()
def test_steps_for_groups_are_executed_as_simulated(engine, bits):
    """Channels whose first half is a tenth of the second: one step for both leaves it no levels."""
    module = nn.Linear(128, 48)
    module.weight[:, :64] /= 10
    x = inputs((3, 7, 128))
    x[..., 64:] /= 10
    exact = module(x)
    simulated, executed = both(module, x, 0, bits, group=32)
    assert executed.engine == engine
    assert sqnr(simulated(x), executed(x)) > 60
    alone, _ = both(module, x, 0, bits)
    assert sqnr(exact, simulated(x)) > sqnr(exact, alone(x)) + 3
    assert executed.nbytes < 0.8 * both(module, x)[1].nbytes
    weights = Weights(
        integer_weight(module.weight, simulated.scheme, 0),
        bits,
        simulated.scheme.delta[0],
        geometry_of(module),
        simulated.scheme.multipliers,
    )
    assert sqnr(simulated(x), IntMm(weights)(x, simulated.scheme.grids[0], module.bias)) > 60


def test_peak_is_seen_though_it_is_given_back():
    with Watched(CPU) as watched:
        block = torch.ones(2**24)
        held = taken(CPU) - watched.start
        time.sleep(20 * EVERY)
        del block
    assert watched.peak >= held - 2**20 > 2**25
