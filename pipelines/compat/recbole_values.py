"""What the values of RecBole's keys mean here: each function takes one and gives this project's, or refuses it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pipelines.errors import nearest

LOSSES = {"CE": "softmax", "BPR": "bpr"}
# One item is right: what was recalled is a hit, and the mean precision of a list is the target's reciprocal rank.
METRICS = {"ndcg": "NDCG", "mrr": "MRR", "map": "MRR", "hit": "HR", "recall": "HR"}
_REPORTED = {**METRICS, "precision": "HR"}  # a k-th of it


def empty(value: Any) -> bool:
    """Whether RecBole takes the value for none."""
    return value is None or value in ("", "None", {}, [])


def only_empty(reason: str) -> Callable[[Any], None]:
    """A key that nothing can be honoured of, but its absence."""

    def convert(value: Any) -> None:
        if not empty(value):
            raise ValueError(reason)

    return convert


def only(usual: bool, reason: str) -> Callable[[Any], None]:
    """A switch that can be honoured in one position."""

    def convert(value: Any) -> None:
        if not isinstance(value, bool):
            raise ValueError("it is neither true nor false")
        if value is not usual:
            raise ValueError(reason)

    return convert


def unless(usual: str) -> Callable[[Any], str | None]:
    """A reader's option, or None where RecBole's value is what the reader takes anyway."""

    def convert(value: Any) -> str | None:
        if not isinstance(value, str) or not value:
            raise ValueError("it is no name")
        return None if value == usual else value

    return convert


def least(value: Any) -> int | None:
    """``[5,inf)`` as the smallest count that stays."""
    text = str(value).strip()
    if empty(value):
        return None
    lower, _, upper = text.strip("[]()").partition(",")
    if upper.strip() not in ("inf", "Inf"):
        raise ValueError("only an interval that ends in 'inf' can be honoured")
    count = math.floor(float(lower)) + 1 if text.startswith("(") else math.ceil(float(lower))
    return max(count, 1)


def protocol(value: Any) -> str:
    """``eval_args`` as a protocol's name; what is left out there is RecBole's default for sequential models."""
    if not empty(value) and not isinstance(value, dict):
        raise ValueError("it is no mapping: give split, order, group_by and mode, such as {mode: full}")
    args = {} if empty(value) else dict(value)
    split, mode = args.pop("split", {"LS": "valid_and_test"}), args.pop("mode", "full")
    if split != {"LS": "valid_and_test"}:
        raise ValueError(f"split {split} is not leave-one-out ({{'LS': 'valid_and_test'}})")
    modes = set(mode.values()) if isinstance(mode, dict) else {mode}
    if modes != {"full"}:
        raise ValueError(f"mode {mode} samples negatives; numbers here are full rankings (mode: full)")
    if args.pop("order", "TO") != "TO":
        raise ValueError("only order TO (by time) can be honoured")
    args.pop("group_by", None)
    if args:
        known = ("split", "mode", "order", "group_by")
        raise ValueError(f"unknown entry '{min(args)}' ({nearest(min(args), known)})")
    return "loo-full"  # RecBole does not mask seen items for sequential models


def learner(value: Any) -> str:
    """The optimiser's name."""
    if str(value).lower() not in ("adam", "adamw"):
        raise ValueError("only adam and adamw can be honoured")
    return str(value).lower()


def cut_offs(value: Any) -> list[int]:
    """``topk`` as a list."""
    numbers = value if isinstance(value, list) else [value]
    if not numbers or any(not isinstance(one, int) or isinstance(one, bool) or one < 1 for one in numbers):
        raise ValueError("it is no count and no list of counts")
    return numbers


def metrics(value: Any) -> None:
    """Every metric is reported in any case; one that is not measured is refused."""
    names = [value] if isinstance(value, str) else list(value)
    for name in names:
        if str(name).lower() not in _REPORTED:
            known = [
                known.capitalize() if known not in ("ndcg", "mrr", "map") else known.upper() for known in _REPORTED
            ]
            raise ValueError(f"'{name}' is not measured ({nearest(str(name), known)})")


def selection(value: Any, topk: Any) -> str:
    """``valid_metric`` as the metric that chooses the checkpoint."""
    name, _, cut_off = str(value).partition("@")
    if name.lower() not in METRICS or not cut_off.isdigit():
        raise ValueError("it is none of NDCG@k, MRR@k, Hit@k, Recall@k, MAP@k")
    if topk is not None and int(cut_off) not in cut_offs(topk):
        raise ValueError(f"{cut_off} is not in topk ({topk})")
    return f"{METRICS[name.lower()]}@{cut_off}"


def patience(value: Any) -> int:
    """RecBole stops after more than ``stopping_step`` validations without a better one, so after one more."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("it is no count")
    return value + 1


def loss(value: Any) -> str:
    """``loss_type``."""
    if value not in LOSSES:
        raise ValueError(f"it is not one of {', '.join(LOSSES)}")
    return LOSSES[value]


def clipping(value: Any) -> float:
    """``clip_grad_norm`` as the largest norm; 0 does not clip."""
    if empty(value):
        return 0.0
    args = dict(value)
    norm = float(args.pop("max_norm"))
    if float(args.pop("norm_type", 2)) != 2:
        raise ValueError("only norm_type 2 can be honoured")
    if args:
        raise ValueError(f"unknown entry '{min(args)}' ({nearest(min(args), ('max_norm', 'norm_type'))})")
    return norm


def precision(value: Any) -> str:
    """``enable_amp``: RecBole computes in float32 without it."""
    only_switch = {True: "auto", False: "float32"}
    if value not in (True, False):
        raise ValueError("it is neither true nor false")
    return only_switch[value]


def device_of_use(value: Any) -> str | None:
    """``use_gpu``: only ``false`` decides anything."""
    if not isinstance(value, bool):
        raise ValueError("it is neither true nor false")
    return None if value else "cpu"


def device_of_id(value: Any) -> str | None:
    """``gpu_id``: none, the first (any) or one of them."""
    text = str(value).strip()
    if "," in text:
        raise ValueError("several GPUs: use entrypoints/launch.sh, one process a GPU")
    if not text or value is None:
        return "cpu"
    return None if text == "0" else f"cuda:{int(text)}"


def negatives(key: str, value: Any, loss_type: Any) -> int | None:
    """How many negatives a target gets, or None without sampling."""
    if value is not None and value not in ("None", {}) and not isinstance(value, dict):
        raise ValueError("it is no mapping")
    args = modern(key, value)
    if not args or args.get("distribution", "uniform") in (None, "None"):
        if loss_type == "BPR" and key == "train_neg_sample_args":
            raise ValueError("loss_type BPR needs negatives")
        return None
    if loss_type != "BPR":
        raise ValueError("only loss_type BPR takes negatives")
    if args.pop("distribution", "uniform") != "uniform":
        raise ValueError("only uniform negatives can be honoured")
    if args.pop("dynamic", False):
        raise ValueError("dynamic negatives cannot be honoured")
    number = args.pop("sample_num", 1)
    for without_effect in ("alpha", "candidate_num"):  # of popularity and of dynamic sampling
        args.pop(without_effect, None)
    if args:
        known = ("distribution", "sample_num", "alpha", "dynamic", "candidate_num")
        raise ValueError(f"unknown entry '{min(args)}' ({nearest(min(args), known)})")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError("sample_num is no count")
    return number


def modern(key: str, value: Any) -> dict[str, Any]:
    """``train_neg_sample_args``, also from the older ``neg_sampling: {uniform: 1}``."""
    args = {} if empty(value) else dict(value)
    if key == "neg_sampling" and args:
        args = {"distribution": next(iter(args)), "sample_num": args.pop(next(iter(args))), **args}
    return args
