"""What a step should cost, from the shape of the model and the board's data sheet: the first guess, before anything is measured."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from etameter.costs import Costs, prior


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A dense decoder-only transformer; `weight_bytes` is bytes per parameter, `kv_bytes` per stored key or value."""

    layers: int
    hidden_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    weight_bytes: float = 2.0
    kv_bytes: float = 2.0

    @property
    def parameters(self) -> int:
        """Parameters that a token passes: projections, gated MLP and output head, without the input embedding."""
        attention = self.hidden_size * self.head_dim * (2 * self.attention_heads + 2 * self.kv_heads)
        mlp = 3 * self.hidden_size * self.intermediate_size
        return self.layers * (attention + mlp) + self.hidden_size * self.vocab_size

    @property
    def kv_token_bytes(self) -> float:
        """Bytes of keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.kv_bytes

    @property
    def pair_flop(self) -> float:
        """Operations for one query to attend one key, over all layers."""
        return 4.0 * self.layers * self.attention_heads * self.head_dim


QWEN3_8B = ModelShape(
    layers=36,
    hidden_size=4096,
    attention_heads=32,
    kv_heads=8,
    head_dim=128,
    intermediate_size=12288,
    vocab_size=151936,
)
"""From the model's public configuration."""


@dataclass(frozen=True, slots=True)
class Board:
    """A board's rates and energies.

    Bandwidth and bf16 throughput are NVIDIA's data sheets' times the share that inference commonly reaches; the energies come from linear
    fits of the public powertrace-sim recordings of Qwen3-8B (docs/method.md), divided by the bytes or operations of a step.
    """

    idle_w: float
    power_cap_w: float
    bytes_per_s: float
    flop_per_s: float
    weight_j_per_byte: float
    kv_j_per_byte: float
    prefill_j_per_flop: float
    decode_token_j: float


ROOFLINE_DEVIATION = np.array([0.7, 1.0, 1.0, 1.0, 1.0, 1.0])
"""Relative: what a board draws idle is better known from its name than what a model's work takes on it."""
LAUNCH_S = 0.002
"""A step of a model that is tiny for its board takes so long whatever it computes."""

H100 = Board(122.8, 700.0, 0.78 * 3.35e12, 0.55 * 989e12, 1.28e-10, 2.31e-10, 9.1e-13, 0.0251)
A100 = Board(82.9, 400.0, 0.78 * 2.04e12, 0.55 * 312e12, 1.54e-10, 2.71e-10, 1.66e-12, 0.0273)
CPU_PACKAGE = Board(20.0, 400.0, 3e10, 5e11, 1e-9, 1e-9, 5e-11, 1e-3)
"""A server CPU: the order of magnitude only; the first minute of measurement replaces it."""


def board_of(name: str) -> Board:
    """The board whose name NVML gives; the H100 stands for boards that are not in the list."""
    if "A100" in name.upper():
        return A100
    return CPU_PACKAGE if name == "RAPL" else H100


def shape_of(details: Mapping[str, int | float | str]) -> ModelShape:
    """The shape that a ring's header states; Qwen3-8B where it does not say enough."""

    def number(name: str, otherwise: int) -> int:
        value = details.get(name)
        return int(value) if isinstance(value, int | float) and value > 0 else otherwise

    layers, hidden_size = number("num_layers", 0), number("hidden_size", 0)
    if not layers or not hidden_size:
        return QWEN3_8B
    heads = number("num_attention_heads", 32)
    shape = ModelShape(
        layers=layers,
        hidden_size=hidden_size,
        attention_heads=heads,
        kv_heads=number("num_kv_heads", heads),
        head_dim=number("head_dim", hidden_size // heads),
        intermediate_size=number("intermediate_size", 4 * hidden_size),
        vocab_size=number("vocab_size", 32000),
    )
    return replace(shape, weight_bytes=number("weights_bytes", 2 * shape.parameters) / shape.parameters)


def roofline_prior(board: Board, shape: ModelShape) -> Costs:
    """Costs before the first fit."""
    weights = shape.parameters * shape.weight_bytes
    flop = 2.0 * shape.parameters
    energy = (
        board.idle_w,
        weights * board.weight_j_per_byte,
        flop * board.prefill_j_per_flop,
        shape.pair_flop * board.prefill_j_per_flop,
        board.decode_token_j * shape.parameters / QWEN3_8B.parameters,
        shape.kv_token_bytes * board.kv_j_per_byte,
    )
    time_s = (
        0.0,
        weights / board.bytes_per_s,
        flop / board.flop_per_s,
        shape.pair_flop / board.flop_per_s,
        flop / board.flop_per_s,
        shape.kv_token_bytes / board.bytes_per_s,
    )
    floor = np.array([0.0, board.idle_w * LAUNCH_S, 0.0, 0.0, 0.0, 0.0])
    return prior(energy, time_s, ROOFLINE_DEVIATION, floor)
