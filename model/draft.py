"""A draft model: what it is made of, and its file (docs/numerics.md says what it computes).

A draft guesses the tokens that a target model will choose. It reads the target's residual stream and token
embeddings, adds a few decoder layers of its own, and ends in a head over the most frequent tokens.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from flashlet.model.config import MAX_LAYERS, ModelConfig, RopeConfig
from flashlet.model.errors import FlashletError, ModelFormatError
from flashlet.model.int8_layout import Layout, alternate_panels, packed, panels_of, vector
from flashlet.model.parameters import check_shape
from flashlet.model.quantize import PANEL, pack_panels, quantize_matrix
from flashlet.model.safetensors import PADDING_PREFIX, SafetensorsFile, encode_header
from flashlet.model.weight_cache import ALIGNMENT, load_int8

FORMAT = "flashlet-draft"
VERSION, SHORTLIST_VERSION = "1", "2"  # of files without a shortlist and with one
MAX_DRAFT_TOKENS = 8  # that an executor proposes in one step
SHORTLIST_UNIT = PANEL * PANEL  # outputs: whole panels, and whole panels of their scores
DRAFTS = Path(__file__).parent / "drafts"  # those that are shipped
Arrays = Mapping[str, NDArray[Any]]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DraftConfig:
    """Shape of a draft model, and the target that it fits."""

    hidden_size: int  # of the target, and of the draft's own layers
    vocab_size: int  # of the target
    target_layers: int
    features: tuple[int, ...]  # inputs: the target's residual stream after so many layers
    output_vocab_size: int  # tokens that can be proposed
    intermediate_size: int
    num_layers: int = 1
    attention: bool = True  # false: layers are feed-forward only, and the heads are 0
    num_heads: int = 0
    num_kv_heads: int = 0
    head_dim: int = 0
    window: int = 0  # positions that attention sees; 0: all
    rms_norm_eps: float = 1e-5
    rope: RopeConfig = field(default_factory=RopeConfig)
    target_fingerprint: str = ""  # of the weights that it was trained for; empty: not known
    bits: int = 8  # of a weight, 4 or 8
    # Panels of 16 outputs whose scores are so far below the best are not looked at; 0: there is no shortlist.
    shortlist_gap: float = 0.0

    def __post_init__(self) -> None:
        """Reject shapes that no kernel could run."""
        heads = ("num_heads", "num_kv_heads", "head_dim")
        sizes = (
            "hidden_size", "vocab_size", "target_layers", "output_vocab_size", "intermediate_size",
            "num_layers",
        )  # fmt: skip
        for name in (*sizes, *heads):
            value, least = getattr(self, name), int(name not in heads or self.attention)
            if not least <= value < (2**31 if least else 1):
                raise ModelFormatError(f"draft {name}: expected {least} or more, found {value}")
        self._check_numbers()
        if self.bits not in (4, 8):
            raise ModelFormatError(f"draft bits: expected 4 or 8, found {self.bits}")
        if self.attention:
            self.layers_config(1)

    def _check_numbers(self) -> None:
        for name, value, limit in (
            ("output_vocab_size", self.output_vocab_size, self.vocab_size),
            ("num_layers", self.num_layers, MAX_LAYERS),
            ("target_layers", self.target_layers, MAX_LAYERS),
        ):
            if value > limit:
                raise ModelFormatError(f"draft {name}: expected at most {limit}, found {value}")
        most = self.target_layers
        distinct = set(self.features)
        if not distinct or len(distinct) < len(self.features) or not distinct <= set(range(most + 2)):
            raise ModelFormatError(
                f"draft features: expected distinct ones of 0 .. {most + 1}, found {list(self.features)}"
            )
        if not 0 <= self.window < 2**31 or (self.window and not self.attention):
            raise ModelFormatError(f"draft window: expected 0 or a number of positions, found {self.window}")
        if not 0 < self.rms_norm_eps < 1:
            raise ModelFormatError(
                f"draft rms_norm_eps: expected a number between 0 and 1, found {self.rms_norm_eps}"
            )
        if self.shortlist_gap and not 1e-6 <= self.shortlist_gap <= 1e6:  # finite in binary32, and not 0
            raise ModelFormatError(
                f"draft shortlist_gap: expected 0 or 1e-6 to 1e6 nats, found {self.shortlist_gap}"
            )
        if self.shortlist_gap and self.output_vocab_size % SHORTLIST_UNIT:
            raise ModelFormatError(
                f"draft output_vocab_size: expected a multiple of {SHORTLIST_UNIT} beside a shortlist, "
                f"found {self.output_vocab_size}"
            )

    def layers_config(self, context_length: int) -> ModelConfig:
        """The decoder layers as those of a model; without attention its heads are placeholders."""
        return ModelConfig(
            architecture="llama",
            vocab_size=self.output_vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads or 1,
            num_kv_heads=self.num_kv_heads or 1,
            head_dim=self.head_dim or 2,
            context_length=context_length,
            rms_norm_eps=self.rms_norm_eps,
            rope=self.rope if self.attention else RopeConfig(),
            tie_word_embeddings=False,
            sliding_windows=(self.window,) * self.num_layers if self.window else (),
        )

    def to_json(self) -> str:
        """All fields."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> DraftConfig:
        """Raises ModelFormatError for text that is no config."""
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError as error:
            raise ModelFormatError(f"draft config: {error}") from error


def draft_shapes(config: DraftConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a draft's trained tensors; all float32 but `vocab_ids`; matrices are [out, in].

    `vocab_ids` are the target's ids of the head's outputs, ascending where there is no shortlist. A
    shortlist scores each panel of 16 outputs.
    """
    hidden, inner, queries = config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim
    kv = config.num_kv_heads * config.head_dim
    attention = {"attn_norm": (hidden,), "q": (queries, hidden), "k": (kv, hidden), "v": (kv, hidden)}
    layer: dict[str, tuple[int, ...]] = attention | {"o": (hidden, queries)} if config.attention else {}
    layer |= {"ffn_norm": (hidden,), "gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    panels = config.output_vocab_size // PANEL
    shortlist: dict[str, tuple[int, ...]] = {"shortlist": (panels, hidden), "shortlist_bias": (panels,)}
    return {
        **{f"feature_norm.{index}": (hidden,) for index in range(len(config.features))},
        "fuse": (hidden, len(config.features) * hidden),
        "state_norm": (hidden,),
        "embed_norm": (hidden,),
        "input": (hidden, 2 * hidden),
        **{f"layers.{i}.{name}": shape for i in range(config.num_layers) for name, shape in layer.items()},
        "out_norm": (hidden,),
        **(shortlist if config.shortlist_gap else {}),
        "head": (config.output_vocab_size, hidden),
        "vocab_ids": (config.output_vocab_size,),
    }


def draft_layout(config: DraftConfig) -> Layout:
    """(safetensors dtype, shape) of every array of a draft file, in file order."""
    layout: Layout = {}
    for name, shape in draft_shapes(config).items():
        part = name.rpartition(".")[2]
        if name == "vocab_ids":
            layout[name] = ("I32", shape)
        elif len(shape) == 1:
            layout[name] = vector(shape[0])
        elif part == "q":
            rows = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
            layout[name.removesuffix("q") + "qkv"] = packed(panels_of(rows), shape[1], config.bits)
        elif part == "gate":
            layout[name + "_up"] = packed(2 * panels_of(shape[0]), shape[1], config.bits)
        elif part not in ("k", "v", "up"):
            layout[name] = packed(panels_of(shape[0]), shape[1], config.bits)
    return layout


def save_draft(
    path: Path, config: DraftConfig, tensors: Arrays, card: Mapping[str, Any] | None = None
) -> None:
    """Quantize the tensors of `draft_shapes` to groups of integers and write them to one file at `path`.

    `card` is kept as JSON: how the draft was made, and how well it does. Raises ModelFormatError for
    tensors that are missing, have another shape or cannot be quantized.
    """
    for name, shape in draft_shapes(config).items():
        check_shape(name, shape, tensors[name].shape if name in tensors else (), str(path))
    _check_vocabulary(config, tensors["vocab_ids"], str(path))
    metadata = {
        "format": FORMAT,
        "version": SHORTLIST_VERSION if config.shortlist_gap else VERSION,
        "config": config.to_json(),
        "card": msgspec.json.encode(dict(card or {})).decode(),
    }
    layout = draft_layout(config)
    header, table = encode_header(layout, metadata, ALIGNMENT)
    with path.open("wb") as stream:
        stream.write(header)
        for name, array in _packed_arrays(layout, tensors, config.bits):
            stream.write(array.tobytes())
            stream.write(bytes(-table[name].num_bytes % ALIGNMENT))


def load_draft(
    path: Path, target: ModelConfig, fingerprint: str = ""
) -> tuple[DraftConfig, dict[str, NDArray[Any]]]:
    """The draft at `path` as read-only arrays over the mapped file, named as in `draft_layout`.

    Raises FlashletError if the file cannot be read, ModelFormatError if it is damaged or made for a target
    of another shape. Weights that merely differ from those in `fingerprint` are logged.
    """
    config, file = _open(path)
    for name, expected, found in (
        ("hidden_size", target.hidden_size, config.hidden_size),
        ("vocab_size", target.vocab_size, config.vocab_size),
        ("layers", target.num_layers, config.target_layers),
    ):
        if expected != found:
            raise ModelFormatError(
                f"{path}: expected a draft for {name} {expected} of the target, found {found}"
            )
    if "" not in (fingerprint, config.target_fingerprint) and fingerprint != config.target_fingerprint:
        logger.warning("the draft %s was trained for other weights of this shape: it may guess badly", path)
    arrays = {name: file.array(name) for name in draft_layout(config)}
    _check_vocabulary(config, arrays["vocab_ids"], str(path))
    return config, arrays


def find_draft(model_path: Path) -> Path | None:
    """The shipped draft for the model at `model_path`: for its very weights, else for its shape.

    Quantizes the model if the cache does not have it; raises what that raises.
    """
    weights = load_int8(model_path)
    config, fingerprint = weights.config, target_fingerprint(weights.arrays)
    fitting = []
    for path in sorted(DRAFTS.glob("*.safetensors")):
        draft, _ = _open(path)
        shape = (draft.hidden_size, draft.vocab_size, draft.target_layers)
        if shape == (config.hidden_size, config.vocab_size, config.num_layers):
            fitting.append((draft.target_fingerprint != fingerprint, path))
    return min(fitting)[1] if fitting else None


def target_fingerprint(arrays: Arrays) -> str:
    """Hash of some of the arrays of an int8 model: its norms, and the first outputs of each layer."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        if name.endswith("norm"):
            digest.update(arrays[name].tobytes())
        elif name.endswith(".qkv"):
            digest.update(arrays[name][0].tobytes())
    return digest.hexdigest()[:32]


def draft_config(path: Path) -> DraftConfig:
    """The shape of the draft at `path`; raises as `load_draft`."""
    return _open(path)[0]


def read_card(path: Path) -> dict[str, Any]:
    """What `save_draft` was told about the draft."""
    card: dict[str, Any] = msgspec.json.decode(_open(path)[1].metadata.get("card", "{}"))
    return card


def _open(path: Path) -> tuple[DraftConfig, SafetensorsFile]:
    try:
        file = SafetensorsFile(path)
    except OSError as error:
        raise FlashletError(f"{path}: the draft model cannot be read: {error}") from error
    found = file.metadata.get("format"), file.metadata.get("version")
    if found not in ((FORMAT, VERSION), (FORMAT, SHORTLIST_VERSION)):
        raise ModelFormatError(
            f"{path}: expected a {FORMAT} file of version {VERSION} or {SHORTLIST_VERSION}, found {found}"
        )
    config = DraftConfig.from_json(file.metadata.get("config", ""))
    arrays = {
        name: (info.dtype, info.shape)
        for name, info in file.tensors.items()
        if not name.startswith(PADDING_PREFIX)
    }
    if arrays != draft_layout(config):
        raise ModelFormatError(f"{path}: the arrays are not those that its config asks for")
    return config, file


def _check_vocabulary(config: DraftConfig, ids: NDArray[np.int32], where: str) -> None:
    order, known = "ascending", ids.astype(np.int64)
    if config.shortlist_gap:
        order, known = "distinct", np.sort(known)
    if known[0] < 0 or known[-1] >= config.vocab_size or not (np.diff(known) > 0).all():
        raise ModelFormatError(f"{where}: vocab_ids: expected {order} ids below {config.vocab_size}")


def _packed_arrays(layout: Layout, tensors: Arrays, bits: int) -> Iterator[tuple[str, NDArray[Any]]]:
    def pack(*names: str) -> NDArray[np.uint8]:
        rows = np.concatenate([tensors[name] for name in names]).astype(np.float32)
        return pack_panels(quantize_matrix(rows, bits))

    for name, (dtype, shape) in layout.items():
        prefix, _, part = name.rpartition(".")
        if dtype != "U8":
            array: NDArray[Any] = tensors[name].astype(np.int32 if dtype == "I32" else np.float32)
        elif part == "qkv":
            array = pack(*(f"{prefix}.{matrix}" for matrix in "qkv"))
        elif part == "gate_up":
            array = alternate_panels(*(pack(f"{prefix}.{matrix}") for matrix in ("gate", "up")))
        else:
            array = pack(name)
        assert array.shape == shape, name
        yield name, array
