"""Every layer of the zoo: the classic systems, other authors' styles, and what must be refused."""

from __future__ import annotations

from tests.zoo import refused
from tests.zoo.classic.deepseek_v2 import DeepseekV2MoE
from tests.zoo.classic.deepseek_v3 import DeepseekV3MoE
from tests.zoo.classic.dense_soft import DenseSoft
from tests.zoo.classic.expert_choice import MeshExpertChoice, VMoEExpertChoice
from tests.zoo.classic.gshard_top2 import GShardTop2
from tests.zoo.classic.hash_routing import HashById, HashByPosition
from tests.zoo.classic.mixtral import Mixtral
from tests.zoo.classic.noisy_top_k import NoisyTopK
from tests.zoo.classic.soft_moe import SoftMoE
from tests.zoo.classic.switch_2048 import Switch2048
from tests.zoo.classic.switch_top1 import SwitchTop1
from tests.zoo.classic.top2_of_16 import Top2Of16
from tests.zoo.layer import ROWS, SEQUENCES, H, ZooLayer, floats, made, with_ids
from tests.zoo.styles import (
    around,
    choices,
    dispatch,
    inline,
    loops,
    models,
    results,
    routers,
    stacked,
    unusual_experts,
)

__all__ = ["CLASSIC", "REFUSED", "STYLES", "ZooLayer"]

CLASSIC = [
    ZooLayer("noisy_top_k", made(NoisyTopK), num_experts=8, **ROWS),
    ZooLayer(
        "noisy_top_k_with_loss",
        made(NoisyTopK, return_loss=True),
        num_experts=8,
        coupled=None,
        note="the second output is one number for the whole call",
        **ROWS,
    ),
    ZooLayer(
        "gshard_top2",
        made(GShardTop2, capacity_factor=1.0),
        num_experts=6,
        coupled=True,
        experts=("wi", "wo"),
        note="all tokens of a call compete for capacity",
        **SEQUENCES,
    ),
    ZooLayer(
        "gshard_top2_per_sequence",
        made(GShardTop2, one_group=False, capacity_factor=1.5),
        num_experts=6,
        experts=("wi", "wo"),
        note="only tokens of one sequence compete",
        **SEQUENCES,
    ),
    ZooLayer(
        "gshard_top2_with_loss",
        made(GShardTop2, return_loss=True),
        num_experts=6,
        coupled=None,
        experts=("wi", "wo"),
        **SEQUENCES,
    ),
    ZooLayer("switch_top1", made(SwitchTop1), num_experts=6, coupled=True, **SEQUENCES),
    ZooLayer(
        "switch_top1_dict",
        made(SwitchTop1, report="dict"),
        num_experts=6,
        coupled=None,
        note="also returns the mask of dropped tokens and the loss",
        **SEQUENCES,
    ),
    ZooLayer(
        "switch_top1_tuple",
        made(SwitchTop1, report="tuple", min_capacity=4),
        num_experts=6,
        coupled=None,
        note="also returns the number of dropped tokens and the loss",
        **SEQUENCES,
    ),
    ZooLayer("mixtral", made(Mixtral), num_experts=8, **SEQUENCES),
    ZooLayer(
        "deepseek_v2",
        made(DeepseekV2MoE),
        inputs=floats(2, 20, H),
        other_inputs=(floats(1, 1, H), floats(3, 7, H), floats(4, 64, H)),
        num_experts=160,
    ),
    ZooLayer(
        "deepseek_v3",
        made(DeepseekV3MoE).scaled("gate.weight", 0.5),
        inputs=floats(2, 20, H),
        other_inputs=(floats(1, 1, H), floats(3, 7, H), floats(4, 64, H)),
        num_experts=256,
    ),
    ZooLayer(
        "expert_choice_mesh",
        made(MeshExpertChoice),
        num_experts=6,
        experts=("wi", "wo"),
        note="softmax over tokens; experts choose within a sequence",
        **SEQUENCES,
    ),
    ZooLayer(
        "expert_choice_vmoe",
        made(VMoEExpertChoice),
        num_experts=6,
        coupled=True,
        note="softmax over experts; experts choose within the call",
        **SEQUENCES,
    ),
    ZooLayer("soft_moe", made(SoftMoE), num_experts=4, experts=("w1", "w2"), **SEQUENCES),
    ZooLayer(
        "hash_by_id",
        made(HashById),
        inputs=with_ids(50, 2, 6),
        other_inputs=(with_ids(50, 1, 1), with_ids(50, 3, 7), with_ids(50, 1, 40)),
        num_experts=6,
    ),
    ZooLayer("hash_by_position", made(HashByPosition), num_experts=6, **SEQUENCES),
    ZooLayer("dense_soft", made(DenseSoft), num_experts=5, **SEQUENCES),
    ZooLayer(
        "switch_2048",
        made(Switch2048),
        inputs=floats(64, H),
        other_inputs=(floats(1, H), floats(7, H), floats(1024, H)),
        num_experts=2048,
        experts=("w1", "w2"),
        reached=0.1,
    ),
    ZooLayer("top2_of_16", made(Top2Of16), num_experts=16, **SEQUENCES),
]

STYLES: list[ZooLayer] = [
    *loops.LAYERS,
    *stacked.LAYERS,
    *inline.LAYERS,
    *dispatch.LAYERS,
    *routers.LAYERS,
    *choices.LAYERS,
    *around.LAYERS,
    *unusual_experts.LAYERS,
    *results.LAYERS,
    *models.LAYERS,
]

REFUSED: list[ZooLayer] = refused.LAYERS
