"""The families by the name that `ModelConfig.family` gives them: the one registry, closed."""

from collections.abc import Mapping

from longrec.config import Family, ModelConfig
from longrec.modeling.bert4rec import BERT4Rec
from longrec.modeling.hstu import HSTU
from longrec.modeling.network import Network
from longrec.modeling.recurrent import GRU, LSTM
from longrec.modeling.seq2seq import Seq2Seq
from longrec.modeling.transformer import Transformer
from longrec.modeling.transformer_xl import TransformerXL

__all__ = ["FAMILIES", "build_network"]

FAMILIES: Mapping[Family, type[Network]] = {
    "transformer": Transformer,
    "transformer_xl": TransformerXL,
    "hstu": HSTU,
    "gru": GRU,
    "lstm": LSTM,
    "bert4rec": BERT4Rec,
    "seq2seq": Seq2Seq,
}


def build_network(config: ModelConfig, *, dropout: float = 0.0) -> Network:
    """A network of `config.family`, its weights drawn from torch's default generator."""
    return FAMILIES[config.family](config, dropout=dropout)
