import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unrefuse.config import KernelConfig
from unrefuse.errors import UnrefuseError
from unrefuse.kernel import (
    choose_kernel,
    gaussian,
    gaussian_weight_kernel,
    get_optimal_kernel_params,
    named_kernel,
    read_kernel,
)

# exp(-(layer/31 - 0.6)^2 / (2 * 0.15^2)), worked out with 28-digit decimals. DESIGN.md prints
# 0.7412, 0.3882, 0.0496 for layers 15, 25, 30: slips of the third and fourth digit.
VALUES = {
    0: 0.0003, 5: 0.0139, 10: 0.1808, 15: 0.7410, 19: 0.9963, 20: 0.9557, 25: 0.3878,
    30: 0.0495, 31: 0.0286,
}  # fmt: skip


def test_the_values_of_the_formula():
    weights = gaussian(32, 0.6, 0.15, threshold=0).weights
    assert {layer: round(weights[layer], 4) for layer in VALUES} == VALUES


def test_the_article_s_functions_are_ours():
    assert {i: round(gaussian_weight_kernel(32, 0.6, 0.15)[i], 4) for i in VALUES} == VALUES
    assert gaussian_weight_kernel(12) == list(gaussian(12, 0.6, 0.15, threshold=0).weights)
    assert get_optimal_kernel_params("Qwen/Qwen2.5-1.5B-Instruct") == (0.58, 0.14)
    assert get_optimal_kernel_params("other", 7_000_000_000) == pytest.approx((0.60, 0.165))
    assert get_optimal_kernel_params() == (0.60, 0.15)


def test_weights_under_the_threshold_are_0():
    weights = gaussian(32, 0.6, 0.15).weights
    assert [i for i, w in enumerate(weights) if w > 0] == list(range(9, 29))
    assert all(w == 0 or w >= 0.1 for w in weights)


def test_a_one_layer_model_has_position_0():
    assert gaussian(1, 0.0, 0.1).weights == (1.0,)
    assert gaussian(1, 0.1, 0.1).weights[0] == pytest.approx(np.exp(-0.5))


@given(st.integers(2, 120), st.floats(0, 1), st.floats(0.02, 1))
def test_the_kernel_follows_the_formula(layers, peak, width):
    weights = np.array(gaussian(layers, peak, width, threshold=0).weights)
    position = np.linspace(0, 1, layers)
    np.testing.assert_allclose(weights, np.exp(-0.5 * ((position - peak) / width) ** 2), atol=1e-12)
    wider = np.array(gaussian(layers, peak, width * 1.5, threshold=0).weights)
    assert (wider >= weights).all()
    mirrored = gaussian(layers, 1 - peak, width, threshold=0).weights
    np.testing.assert_allclose(weights[::-1], mirrored, atol=1e-9)


@pytest.mark.parametrize(
    "numbers", [(0, 0.5, 0.1), (8, 1.5, 0.1), (8, -0.1, 0.1), (8, 0.5, 0), (8, 0.5, float("inf"))]
)
def test_bad_numbers(numbers):
    with pytest.raises(UnrefuseError):
        gaussian(*numbers)


def test_a_kernel_that_leaves_every_layer_alone_is_refused():
    with pytest.raises(UnrefuseError, match="no layer reaches"):
        gaussian(4, 0.5, 0.01)


@pytest.mark.parametrize(
    ("word", "peak", "width"),
    [
        ("default", 0.60, 0.15), ("early_focus", 0.40, 0.15), ("late_focus", 0.75, 0.15),
        ("broad", 0.50, 0.25), ("narrow", 0.60, 0.08),
        ("conservative", 0.65, 0.12), ("standard", 0.60, 0.15), ("aggressive", 0.55, 0.20),
        ("Qwen2.5-0.5B", 0.60, 0.15), ("Qwen2.5-1.5B-Instruct", 0.58, 0.14),
        ("Qwen/Qwen2.5-Coder-7B-Instruct", 0.55, 0.16),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 0.55, 0.15),
        ("mistralai/Mistral-7B-Instruct-v0.3", 0.55, 0.15), ("0.3,0.2", 0.3, 0.2),
    ],
)  # fmt: skip
def test_named_kernels(word, peak, width):
    kernel = named_kernel(word, 32)
    assert (kernel.peak, kernel.width) == (peak, width)


def test_a_width_whose_square_is_no_float():
    assert gaussian(3, 0.5, 1e300).weights == (1, 1, 1)
    assert gaussian(3, 0.5, 1e-300).weights == (0, 1, 0)


@pytest.mark.parametrize("word", ["0.5,.", "1.2.3,1", ".,.", "0.5,0.1.1"])
def test_dots_that_are_no_number_are_no_kernel(word):
    with pytest.raises(UnrefuseError, match="no kernel"):
        named_kernel(word, 32)


def test_a_name_that_only_looks_alike_is_no_preset():
    with pytest.raises(UnrefuseError, match="no kernel"):
        named_kernel("Qwen2.5-72B", 80)


@pytest.mark.parametrize(
    ("parameters", "peak", "width"),
    [(5e8, 0.575, 0.135), (7e9, 0.60, 0.165), (7e10, 0.55, 0.20)],
)
def test_the_middle_of_the_size_class(parameters, peak, width):
    kernel = choose_kernel(KernelConfig(), 32, int(parameters), "unknown")
    assert (kernel.peak, kernel.width) == (pytest.approx(peak), pytest.approx(width))
    assert "size class" in kernel.source


def test_what_is_named_goes_before_the_preset_and_the_preset_before_the_size():
    shape = SimpleNamespace(
        model_type="qwen2", hidden_size=896, num_hidden_layers=24, vocab_size=151936
    )
    by_config = choose_kernel(KernelConfig(), 24, 630_000_000, "/models/mine", shape)
    assert by_config.source == "preset Qwen2.5-0.5B"
    named = choose_kernel(KernelConfig(profile="broad"), 24, 630_000_000, "Qwen2.5-7B", shape)
    assert (named.source, named.peak) == ("profile broad", 0.5)
    both = choose_kernel(KernelConfig(peak=0.3, width=0.2), 24, 1, "Qwen2.5-7B", shape)
    assert (both.peak, both.width, both.source) == (0.3, 0.2, "peak and width")
    part = choose_kernel(KernelConfig(style="standard", peak=0.3), 24)
    assert (part.peak, part.width) == (0.3, 0.15)
    assert "peak given" in part.source


@pytest.mark.parametrize(
    "text",
    [
        "[0, 0.5, 1]",
        json.dumps({"weights": [0, 0.5, 1]}),
        "0\n0.5\n1\n",
        "\ufeff0\r\n0.5\r\n1",
        "\ufeff[0, 0.5, 1]",
    ],
)
def test_kernel_files(tmp_path, text):
    file = tmp_path / "kernel.json"
    file.write_bytes(text.encode())
    assert read_kernel(file, 3).weights == (0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1, 2]", "2 weights; the model has 3"), ("[0, 0, 0]", "not all 0"),
        ("[0, -1, 1]", ">= 0"), ("[0, NaN, 1]", "finite"), ("a b c", "expected"),
        ('{"w": 1}', "expected"), ("[", "expected"), ("[[1], 2, 3]", "expected"),
        ('{"weights": "010"}', "expected"), ("[0, true, 1]", "expected"),
        ('["0", "1", "1"]', "expected"), ('{"weights": {"0": 1}}', "expected"),
        ('{"weights": null}', "expected"), (f"[0, 1, 1{'0' * 400}]", "expected"),
        ("[0, 1, Infinity]", "finite"), ("0\n1\n0,5\n", "expected"),
        ('{"weights": [0, 1, 1], "weights": [1, 0, 0]}', "expected"), ("[" * 100_000, "expected"),
        ("", "0 weights"), ("[0, 1, 1]\0", "zero byte"), ("0 1 nan", "finite"),
    ],
)  # fmt: skip
def test_bad_kernel_files(tmp_path, text, says):
    file = tmp_path / "kernel.json"
    file.write_text(text)
    with pytest.raises(UnrefuseError, match=says):
        read_kernel(file, 3)
    with pytest.raises(UnrefuseError, match="cannot read"):
        read_kernel(tmp_path / "missing", 3)
