"""What a step should cost, from the shape of the model and the board's data sheet: the first guess, before anything is measured."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from etameter.costs import Costs, prior
from etameter.work import ADAPTER, TERMS


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder-only transformer; `weight_bytes` is bytes per parameter, `kv_bytes` per stored key or value.

    Where it has `experts`, each is as wide as `intermediate_size` says, and a token passes `experts_per_token` of them.
    """

    layers: int
    hidden_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    weight_bytes: float = 2.0
    kv_bytes: float = 2.0
    experts: int = 0
    experts_per_token: int = 0

    @property
    def routed(self) -> float:
        """The share of the experts that a token passes; 0 for a dense model."""
        return self.experts_per_token / self.experts if self.experts else 0.0

    @property
    def expert_parameters(self) -> int:
        """Of all experts of all layers."""
        return self.layers * self.experts * self._mlp

    @property
    def step_parameters(self) -> int:
        """Parameters that every step passes over: all but the experts'."""
        attention = self.hidden_size * self.head_dim * (2 * self.attention_heads + 2 * self.kv_heads)
        dense = attention if self.experts else attention + self._mlp
        return self.layers * dense + self.hidden_size * self.vocab_size

    @property
    def parameters(self) -> int:
        """Parameters that a token passes: projections, gated MLP and output head, without the input embedding."""
        return self.step_parameters + self.layers * self.experts_per_token * self._mlp

    @property
    def _mlp(self) -> int:
        return 3 * self.hidden_size * self.intermediate_size

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


ADAPTER_SHARE = 0.01
"""An adapter of rank 16 to 64 has between half a percent and two percent of the weights that it adapts."""
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
        return int(value) if isinstance(value, int | float) and 1 <= value < math.inf else otherwise

    layers, hidden_size = number("num_layers", 0), number("hidden_size", 0)
    if not layers or not hidden_size:
        return QWEN3_8B
    heads = number("num_attention_heads", 32)
    experts, width = number("num_experts", 0), number("expert_size", number("intermediate_size", 4 * hidden_size))
    if experts <= (passed := number("experts_per_token", 1)):  # a token passes all of them: that is dense
        experts, passed, width = 0, 0, max(experts, 1) * width
    shape = ModelShape(
        layers=layers,
        hidden_size=hidden_size,
        attention_heads=heads,
        kv_heads=number("num_kv_heads", heads),
        head_dim=number("head_dim", hidden_size // heads),
        intermediate_size=width,
        vocab_size=number("vocab_size", 32000),
        experts=experts,
        experts_per_token=passed,
    )
    stored = shape.step_parameters + shape.expert_parameters
    return replace(shape, weight_bytes=number("weights_bytes", 2 * stored) / stored)


def roofline_prior(board: Board, shape: ModelShape) -> Costs:
    """Costs before the first fit."""
    weights, experts = (number * shape.weight_bytes for number in (shape.step_parameters, shape.expert_parameters))
    flop = 2.0 * shape.parameters
    token_j, pair_j = flop * board.prefill_j_per_flop, shape.pair_flop * board.prefill_j_per_flop
    energy = (
        board.idle_w,
        weights * board.weight_j_per_byte,
        token_j,
        pair_j,
        board.decode_token_j * shape.parameters / QWEN3_8B.parameters,
        shape.kv_token_bytes * board.kv_j_per_byte,
        token_j,
        ADAPTER_SHARE * weights * board.weight_j_per_byte,
        experts * board.weight_j_per_byte,
    )
    weights_s, attended_s = weights / board.bytes_per_s, shape.kv_token_bytes / board.bytes_per_s
    token_s, pair_s = flop / board.flop_per_s, shape.pair_flop / board.flop_per_s
    reading_s = (0, weights_s, 0, 0, 0, attended_s, 0, ADAPTER_SHARE * weights_s, experts / board.bytes_per_s)
    computing_s = (0, LAUNCH_S, token_s, pair_s, token_s, pair_s, token_s, 0, 0)
    floor = np.zeros(len(TERMS))
    floor[[1, ADAPTER]] = board.idle_w * LAUNCH_S  # an adapter brings kernels of its own to every layer
    return prior(energy, (reading_s, computing_s), floor=floor)
