"""All training-run corpora by name."""

from __future__ import annotations

from corpora.churn import CHURN
from corpora.controls import RANDOM
from corpora.corpus import Corpus
from corpora.finetuning import FULL, LORA, ROWS
from corpora.gpt import TINY_GPT
from corpora.walks import ADAM_WALK, EXP_AVG, RL_BF16

__all__ = ["CORPORA"]

CORPORA: dict[str, Corpus] = {
    "adam_walk": ADAM_WALK,
    "tiny_gpt": TINY_GPT,
    "finetune_real": FULL,
    "finetune_lora": LORA,
    "finetune_rows": ROWS,
    "rl_bf16": RL_BF16,
    "churn": CHURN,
    "exp_avg": EXP_AVG,
    "random": RANDOM,
}
