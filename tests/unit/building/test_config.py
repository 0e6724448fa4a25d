"""config.json: what is read, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_ternary.building.config import DecoderConfig, Rope
from onnx_ternary.errors import ModelError
from tests.support.checkpoints import configuration


def read(layout: str = "bitnet-packed", **changes: Any) -> DecoderConfig:
    return DecoderConfig.read(configuration(layout) | changes)  # type: ignore[arg-type]


def test_each_architecture_has_its_parts() -> None:
    bitnet, llama, qwen = read(), read("llama-packed"), read("qwen-groups")
    assert (bitnet.gate, bitnet.sub_norms, bitnet.head_norms) == ("relu2", True, False)
    assert (llama.gate, llama.sub_norms, llama.head_norms) == ("silu", False, False)
    assert (qwen.gate, qwen.sub_norms, qwen.head_norms) == ("silu", False, True)


def test_head_dim_defaults_to_that_of_the_architecture() -> None:
    assert read("llama-packed", head_dim=None).head_dim == 64
    assert read("qwen-groups", head_dim=None).head_dim == 128


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "architecture 'GemmaForCausalLM'"),
        ({"architectures": None}, "architecture None"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"use_sliding_window": True}, "use_sliding_window = True"),
        ({"sliding_window": 4096}, "sliding_window = 4096"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "'sliding_attention'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "RoPE type 'yarn'"),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "RoPE type 'dynamic'",
        ),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor = None"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method 'gptq'"),
        (
            {"quantization_config": {"quant_method": "bitnet", "use_rms_norm": True}},
            "use_rms_norm",
        ),
        (
            {"quantization_config": {"quant_method": "bitnet", "linear_class": "other"}},
            "linear_class 'other'",
        ),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"hidden_size": "256"}, "hidden_size = '256'"),
        ({"vocab_size": True}, "vocab_size = True"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps = -1.0"),
        ({"num_key_value_heads": 3}, "no multiple of 3"),
        ({"head_dim": 24}, "head_dim 24"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError) as error:
        read(**changes)
    assert named in str(error.value)


def test_a_window_that_is_switched_off_is_no_window() -> None:
    config = read("qwen-groups", sliding_window=4096, use_sliding_window=False)
    assert config.architecture == "Qwen3ForCausalLM"


def test_modules_not_converted_are_not_quantized() -> None:
    quantization = read(
        quantization_config={
            "quant_method": "bitnet",
            "modules_to_not_convert": ["lm_head", "model.layers.1.mlp.up_proj", "o_proj"],
        }
    ).quantization
    assert quantization is not None
    assert quantization.applies_to("model.layers.0.mlp.up_proj.weight")
    assert not quantization.applies_to("model.layers.1.mlp.up_proj.weight")
    assert not quantization.applies_to("model.layers.0.self_attn.o_proj.weight")
    assert not quantization.applies_to("lm_head.weight")


def test_both_spellings_of_rope_are_read(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    new = read(rope_parameters=scaling | {"rope_theta": 10000.0})
    old = read(rope_parameters=None, rope_scaling=scaling, rope_theta=10000.0)
    assert new.rope == old.rope == Rope(10000.0, "llama3", 8.0, 1.0, 4.0, 64)


def test_angles_follow_their_definition() -> None:
    cosines, sines = Rope(10000.0).tables(8, 5)
    angles = np.outer(np.arange(5), 10000.0 ** (-np.arange(0, 8, 2) / 8))
    # float32 frequencies and angles: two roundings of an angle of at most 4.
    np.testing.assert_allclose(cosines, np.cos(angles), rtol=0, atol=4 * 2.0**-22)
    np.testing.assert_allclose(sines, np.sin(angles), rtol=0, atol=4 * 2.0**-22)


def test_linear_scaling_divides_positions() -> None:
    plain, scaled = Rope(10000.0).tables(16, 9), Rope(10000.0, "linear", 2.0).tables(16, 9)
    np.testing.assert_array_equal(scaled[0][::2], plain[0][:5])
    np.testing.assert_array_equal(scaled[1][::2], plain[1][:5])


def test_llama3_scaling_keeps_short_waves_and_slows_long_ones() -> None:
    rope = Rope(10000.0, "llama3", 8.0, 1.0, 4.0, 64)
    plain, linear = Rope(10000.0).tables(64, 3), Rope(10000.0, "linear", 8.0).tables(64, 3)
    sines = rope.tables(64, 3)[1]
    waves = 2 * np.pi * 10000.0 ** (np.arange(0, 64, 2) / 64)
    short, long = waves < 64 / 4, waves > 64
    assert short.any()
    assert long.any()
    np.testing.assert_array_equal(sines[:, short], plain[1][:, short])
    np.testing.assert_array_equal(sines[:, long], linear[1][:, long])
    between = ~short & ~long
    assert (sines[1, between] < plain[1][1, between]).all()
    assert (sines[1, between] > linear[1][1, between]).all()
