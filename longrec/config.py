"""Configuration: frozen, closed (unknown keys are rejected), passed explicitly."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from longrec.errors import ArgumentError
from longrec.parsing import parse_config
from longrec.protocol import PROTOCOL_VERSION
from longrec.schema import NO_FEATURES, Schema

__all__ = ["EngineConfig", "Family", "Loss", "ModelConfig", "TrainConfig", "engine_config", "parse_config"]

Family = Literal["transformer", "transformer_xl", "hstu", "gru", "lstm", "bert4rec", "seq2seq"]
Loss = Literal["softmax", "sampled_softmax", "bce", "gbce"]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelConfig(_Config):
    """Shape of the network. Written into every checkpoint.

    Args:
        num_items: size of the catalogue.
        family: the kind of network (docs/models.md); those that don't use a field below ignore it.
        dim: width of the residual stream.
        num_layers: blocks, or recurrent layers; of seq2seq, in encoder and decoder each.
        num_heads: query heads; head_dim is dim / num_heads. Not gru, lstm.
        num_kv_heads: key/value heads; a divisor of num_heads (grouped-query attention). Not gru, lstm.
        hidden_dim: width of the gated feed-forward; of gru and lstm, of the state. Not hstu.
        window: events that an event may attend to in a layer, itself included; of bert4rec and seq2seq, that are
            encoded. Not gru, lstm.
        rotary_base: base of the rotary frequencies, and of transformer_xl's sinusoids.
        num_gap_buckets: log2 buckets of the seconds since the previous event.
        horizon: steps that seq2seq emits.
        repeats: whether an item's score has a learned term for having stood among the newest events, by how long ago
            (`modeling/repeats.py`). Not bert4rec, seq2seq.
        features: of events and items beside item and time; closed.
    """

    num_items: Positive
    family: Family = "transformer"
    dim: Positive = 64
    num_layers: Positive = 2
    num_heads: Positive = 2
    num_kv_heads: Positive = 2
    hidden_dim: Positive = 128
    window: Positive = 256
    rotary_base: Annotated[float, Field(gt=1.0)] = 10_000.0
    num_gap_buckets: Annotated[int, Field(ge=2)] = 32
    horizon: Positive = 2
    repeats: bool = False
    features: Schema = NO_FEATURES

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.num_heads

    @property
    def receptive_field(self) -> int:
        """Newest events that can reach an answer through windowed attention in each layer: L (W - 1) + 1.

        Of other families ask `reach`.
        """
        return self.num_layers * (self.window - 1) + 1

    @property
    def reach(self) -> int | None:
        """Newest events that can reach an answer; None: all of a history."""
        if self.family in ("gru", "lstm"):
            return None
        return self.window if self.family in ("bert4rec", "seq2seq") else self.receptive_field

    @model_validator(mode="after")
    def _fits(self) -> "ModelConfig":
        if not self.features.is_closed:
            raise ValueError("features: expected a closed schema; `longrec data import --schema` closes one")
        if self.dim % (2 * self.num_heads):
            raise ValueError(f"dim: expected a multiple of 2 * num_heads ({2 * self.num_heads}), got {self.dim}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads: expected a divisor of num_heads ({self.num_heads}), got {self.num_kv_heads}"
            )
        if self.repeats and self.family in ("bert4rec", "seq2seq"):
            raise ValueError(f"repeats: expected false for family {self.family}, got true")
        return self


class TrainConfig(_Config):
    """How a network is trained.

    Args:
        sequence_length: most events of a packed sequence; longer histories are cut anew each epoch. Bert4rec and
            seq2seq take the window instead.
        batch_events: events of one optimiser step.
        epochs: passes over the data; the cosine schedule ends with the last.
        max_seconds: training gets as many of the epochs as fit into this time, with the schedule scaled to them; as
            long as all fit, it changes nothing.
        learning_rate: peak of the schedule. weight_decay, warmup_steps, clip_norm: as usual.
        optimizer: AdamW, or SGD with Nesterov's momentum. momentum: of SGD.
        ema_decay: of the mean of the weights over the steps, which is then what is validated and kept; 0: none.
        dropout: in the network.
        adversarial: length of the step that makes each item's embedding worst for the loss, in mean lengths of an
            embedding; the loss there is added. 0: none.
        item_dropout: share of the input items that are replaced by the unknown item.
        hide_own: share of the catalogue that has no own vectors in a step, so that items' features alone can carry one.
        mask_share: share of the items that bert4rec masks.
        loss: over the whole catalogue (softmax), or over the target and sampled negatives (docs/training.md).
        num_negatives: items drawn for a step, of the losses that sample.
        negative_power: they are drawn in proportion to (training events + 1) ** power; 0: uniformly.
        calibration: t of gBCE, from 0, as BCE, to 1, which undoes what sampling does to probabilities.
        label_smoothing: probability that the target spreads over the catalogue; of softmax alone.
        steps_ahead: next items that a state is trained to predict; the first is the one that serving asks for, those
            after it shape the state, by maps that are dropped after training. Not bert4rec, seq2seq.
        ahead_decay: the loss of step s counts ahead_decay ** (s - 1).
        validate_every: epochs from one validation to the next; the last is always validated.
        patience: validations in a row without a better one that end the run; None: it runs to its end.
        precision: bfloat16 computes the matrix products in it, over weights that stay float32.
        seed: of weights, dropout and order; the same seed on the same machine gives the same weights.
    """

    sequence_length: Positive = 256
    batch_events: Positive = 1024
    epochs: Positive = 30
    max_seconds: Annotated[float, Field(gt=0)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] = 1.5e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: Fraction = 0.9
    ema_decay: Fraction = 0.0
    dropout: Fraction = 0.3
    adversarial: Annotated[float, Field(ge=0)] = 0.0
    item_dropout: Fraction = 0.05
    hide_own: Fraction = 0.1
    mask_share: Fraction = 0.2
    loss: Loss = "softmax"
    num_negatives: Positive = 256
    negative_power: Annotated[float, Field(ge=0, le=1)] = 0.0
    calibration: Annotated[float, Field(ge=0, le=1)] = 0.75
    label_smoothing: Fraction = 0.1
    steps_ahead: Annotated[int, Field(ge=1, le=16)] = 1
    ahead_decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    validate_every: Positive = 2
    patience: Positive | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: Annotated[int, Field(ge=0)] = 0


def _page_size(value: int) -> int:
    if value not in (16, 32, 64, 128):
        raise ValueError("16, 32, 64 or 128")
    return value


class EngineConfig(_Config):
    """How the engine serves; each field is a model parameter of config.pbtxt (a string there).

    Args:
        max_k: largest k of a request.
        max_horizon, max_beam: largest horizon and beam of a request; a beam's forks take pages of the pool.
        max_explain: most past events that a request may ask for as an item's explanation.
        max_excluded: most items in a request's `exclude`.
        max_seen: newest events of a user's log whose items `exclude_seen` leaves out.
        max_events_per_request: most events a user may send in one request.
        max_candidates: most candidates of a user in one request.
        max_step_events: most events that run through the network in one pass.
        inline_events: a user whose memory lacks at most so many events is answered at once; more are deferred, and
            computed in chunks between the batches.
        chunk_events: events of such a chunk, all its users together.
        memory_bytes: size of the page pool, all layers.
        host_memory_bytes: size of a second pool, in the host's memory, for the memories of users who had to leave the
            first; 0: there is none, and they are rebuilt from the log. For GPUs, whose pool is smaller than the host's.
        page_size: events of a page (the S of the kernels).
        dtype: of weights and of what is computed; bfloat16 is what the matrix units of a GPU want.
        memory_dtype: of pages; "same": as dtype. int8 has a scale for each event and head, and takes 0.28 of float32's
            bytes at heads of 32. On a GPU "same" or int8.
        cpu_threads: threads of an instance on a CPU; the server and its clients need the other cores.
        event_log: folder of the event log, relative to the model repository, or `redis://host:port/db` (`rediss://`
            with TLS).
        rules: folder of the rules files (`python_backend/rules.py`), relative to the model repository; read again when
            they change.
        durability: `commit`: an acknowledged event is on disk; `interval`: the last `flush_milliseconds` may be lost
            when the machine (not the process) stops; `none`: the operating system, or the Redis server, decides.
        flush_milliseconds: of `interval`; Redis syncs once a second, so there it is at least 1000.
        log_bytes: most bytes of the event log: of the folder's file, or of all users' events in Redis.
        max_user_events: newest events of a user that are always kept; older ones are dropped, positions stay true. At
            least the network's receptive field and one more. 0: everything is kept.
    """

    max_k: Annotated[int, Field(ge=1, le=256)] = 256
    max_horizon: Annotated[int, Field(ge=1, le=64)] = 16
    max_beam: Annotated[int, Field(ge=1, le=16)] = 16
    max_explain: Annotated[int, Field(ge=0, le=64)] = 16
    max_excluded: Annotated[int, Field(ge=0, le=65_536)] = 1024
    max_seen: Positive = 4096
    max_events_per_request: Positive = 2048
    max_candidates: Positive = 4096
    max_step_events: Positive = 2048
    inline_events: Positive = 64
    chunk_events: Positive = 128
    memory_bytes: Positive = 256 << 20
    host_memory_bytes: Annotated[int, Field(ge=0)] = 0
    page_size: Annotated[int, AfterValidator(_page_size)] = 32
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    memory_dtype: Literal["same", "int8", "float32", "bfloat16", "float16"] = "same"
    cpu_threads: Positive = 1
    event_log: str = "../event_log"
    rules: str = "../rules"
    durability: Literal["commit", "interval", "none"] = "interval"
    flush_milliseconds: Positive = 100
    log_bytes: Annotated[int, Field(ge=1 << 16)] = 16 << 30
    max_user_events: Annotated[int, Field(ge=0)] = 0

    @property
    def max_user_step_events(self) -> int:
        """Most events of one user in one pass: their page table has room for so many beside the window."""
        return max(self.inline_events, -(-self.chunk_events // 2))

    @property
    def is_redis_log(self) -> bool:
        """Whether the event log is a Redis server, not a folder."""
        return "://" in self.event_log

    @model_validator(mode="after")
    def _log_fits(self) -> "EngineConfig":
        scheme, separator, _ = self.event_log.partition("://")
        if separator and scheme not in ("redis", "rediss"):
            raise ValueError(f"event_log: expected a folder, redis://… or rediss://…, got {scheme}://…")
        if separator and self.durability == "interval" and self.flush_milliseconds < 1000:
            raise ValueError(
                f"flush_milliseconds: expected at least 1000 with Redis, which syncs once a second, got "
                f"{self.flush_milliseconds}"
            )
        return self


def engine_config(parameters: Mapping[str, str], source: str | Path) -> EngineConfig:
    """The settings among a served model's parameters, which say the wire's version, too.

    Args:
        parameters: name -> text. Without `protocol_version`: written before there was one.
        source: where they are from.

    Raises:
        ArgumentError: a setting doesn't fit, or they are of another version than this library.
    """
    settings = {name: value for name, value in parameters.items() if name != "schema"}  # the checkpoint has it whole
    version = settings.pop("protocol_version", str(PROTOCOL_VERSION))
    if version != str(PROTOCOL_VERSION):
        raise ArgumentError(
            f"{source}: protocol_version={version[:20]}", str(PROTOCOL_VERSION), remedy="longrec export writes it anew"
        )
    return parse_config(EngineConfig, settings, source)
