"""What a user can choose when a checkpoint is built."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

BuildActivation = Literal["auto", "keep", "int8"]
HeadChoice = Literal["keep", "int8", "int4"]
Task = Literal["generation", "embedding"]
PoolingChoice = Literal["auto", "mean", "last"]


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How `build` converts a checkpoint.

    Attributes:
        activation: ``int8`` quantizes the activations of ternary products as BitNet b1.58 does,
            ``keep`` does not; ``auto`` does where the checkpoint was trained so
            (``quant_method: bitnet``), because only int8 gives the tokens of transformers then.
        head: ``int8`` and ``int4`` store a float head by onnxruntime's own MatMulNBits quantizer,
            which changes the model's numbers; ``keep`` leaves the head float32. A ternary head goes
            through the op whatever is chosen.
        function_body: carry a body of standard operators for the op.
        task: ``generation`` builds a decoder for onnxruntime-genai, ``embedding`` one that gives
            a vector per text.
        pooling: of an embedding, the mean over the tokens or the last one; ``auto`` takes what
            modules.json of the checkpoint says.

    Raises:
        ValueError: on construction, for an unknown choice.
    """

    activation: BuildActivation = "auto"
    head: HeadChoice = "keep"
    function_body: bool = True
    task: Task = "generation"
    pooling: PoolingChoice = "auto"

    def __post_init__(self) -> None:
        for name, choices in (
            ("activation", BuildActivation),
            ("head", HeadChoice),
            ("task", Task),
            ("pooling", PoolingChoice),
        ):
            if getattr(self, name) not in get_args(choices):
                expected = ", ".join(get_args(choices))
                raise ValueError(f"{name} = {getattr(self, name)!r}, expected one of: {expected}")

    def to_dict(self) -> dict[str, Any]:
        """The options by name, ready for JSON."""
        return asdict(self)
