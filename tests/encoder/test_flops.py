from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

from mcontriever.encoder import flops


@pytest.mark.parametrize(("config_class", "kind"), [(XLMRobertaConfig, XLMRobertaModel), (BertConfig, BertModel)])
def test_torch_counts_the_same(config_class: type, kind: type) -> None:
    config = config_class(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=66,
        attn_implementation="eager",
    )
    model = kind(config, add_pooling_layer=False)
    counted = []
    for length in (1, 7, 30):
        with FlopCounterMode(display=False) as counter:
            model(input_ids=torch.full((1, length), 5))
        counted.append(counter.get_total_flops())
    assert [flops(config, [length]) for length in (1, 7, 30)] == counted
    assert flops(config, [1, 7, 30]) == flops(config, torch.tensor([30, 1, 7])) == sum(counted)
    assert flops(config, []) == 0
