"""What kernels are told, as words of 8 bytes at an address, and how much room they take. numba is not needed for it.

Fields are int64 where nothing else is said, addresses of fp32 numbers where what lies there is named.
"""

import ctypes
from collections.abc import Sequence

import numpy as np
import torch


def plan(fields: Sequence[str], numbers: Sequence[str] = ()) -> np.dtype[np.void]:
    """Words by name, the last of them float64."""
    return np.dtype([*((name, np.int64) for name in fields), *((name, np.float64) for name in numbers)])


def _granted() -> bool:
    """Whether Linux lets this process use the processor's own tiles, for which it has to be asked."""
    arch_prctl, ask, tiles = 158, 0x1023, 18  # of x86-64: ARCH_REQ_XCOMP_PERM, XTILEDATA
    return bool(ctypes.CDLL(None).syscall(arch_prctl, ask, tiles) == 0)


# -- attention

_CAN = torch.cpu.get_capabilities()
REGISTER = 16 if _CAN.get("avx512_f") else 8  # fp32 numbers of it
PAIRS = bool(_CAN.get("avx512_bf16"))  # whether the processor adds up products of bf16 numbers by itself
TILES = PAIRS and bool(_CAN.get("amx_bf16")) and _granted()  # whether it multiplies whole tiles of them (AMX)
SIDE = 16  # rows of such a tile, and units of a row
WIDTHS = 8  # of heads are multiples of this: tiles of their channels are as low as that, and may be wider
COLUMNS = 2 * REGISTER  # of a tile
HEIGHTS = (12, 4) if REGISTER == 16 else (6, 2)  # of tiles: as high as there are registers, and for the rest
ROWS = 64 if TILES else 48  # of queries at once, a multiple of the lowest tiles' height
LINE = 16  # units of a line of the cache: fp32 numbers, or pairs of bf16 ones

ATTENTION = plan(
    (
        "q", "k", "v", "out",  # as stored, [N, H, E], [M, K, E], and like q
        "softmax",  # [2, N, H]: the largest score of each row, and one over the sum of what is left of it
        "grad", "of_q", "of_k", "of_v",  # as stored: of what came out, and what the backward pass is to find
        "ends", "key_ends",  # int64 [documents + 1] each: 0, and where each ends
        "scratch", "shared",  # int64 [2, 8]: how many heads are taken, and how many threads have come
        "documents", "tokens", "heads", "kv_heads", "head_dim",
        "narrow", "pairs", "squares",  # whether numbers are bf16, are multiplied as such, and that by whole tiles
        "backward",  # which pass it is
        "room",  # units of scratch for each thread
    ),
    ("scale",),
)  # fmt: skip


def room(keys: int, width: int, pairs: bool, backward: bool) -> int:
    """Units of scratch that a thread takes for documents of at most so many keys."""
    (by_keys, by_width), in_unit = ((-(-n // COLUMNS) * COLUMNS) + LINE for n in (keys, width)), 1 + pairs
    gathered, by_unit = -(-keys * width // LINE) * LINE, width // in_unit * by_keys
    stacked, rows = -(-keys // COLUMNS) * COLUMNS // in_unit * by_width, ROWS * (by_keys + LINE)
    if not backward:
        return gathered + by_unit + stacked + 2 * rows + ROWS * (width + by_width)
    return gathered + 2 * by_unit + stacked + 2 * width * by_keys + 5 * rows + ROWS * (5 * width + by_width + LINE)


# -- products of matrices

HEIGHT = REGISTER // 2  # of a tile
MATMUL = plan(
    (
        "a", "b", "out",  # [rows, depth] and [columns, depth], bf16; [rows, columns], fp32 if wide, else bf16
        "rows", "columns", "depth", "out_row",
        "a_row", "a_step", "b_row", "b_step",  # numbers from one row, and from one number of a row, to the next
        "wide", "add",  # add: to what is there, which is wide
        "tall", "direct",  # whether there are more rows than columns, and whether rows of a are not laid out
        "threads", "panel",  # panel: rows, or columns, of it: whole tiles
        "scratch", "room",  # units for each thread: for the shorter side, a panel and a tile
        "shared",  # int64 [2]: how many threads have come, and how many panels are taken
    )
)  # fmt: skip

# -- what rows come to, number by number

NORM, NORM_BACKWARD, ROTATE, SWIGLU, SWIGLU_BACKWARD, SLOPES, SQUARES, UPDATE = range(8)  # operations
FUSED = plan(
    (
        "operation", "narrow",  # narrow: what is stored is bf16
        "rows", "columns", "some",  # some: rows of a part, which one thread computes
        "shared",  # int64: how many parts are taken
        "x", "y", "grad", "out", "of_x", "of_y",  # as stored
        "weight", "inverse", "of_weight",  # [columns], [rows], and [parts, columns], which add up to its gradient
        "heads", "table", "cos", "sin",  # table: rows of cos and sin, after which the first follows
        "targets", "losses", "learning",  # int64 [rows], [rows]; learning: whether slopes take the place of scores
        "sums",  # [parts], of squares
        "high", "rest", "first", "second",  # of weights: bf16 and int16, which make fp32 ones; their moments
    ),
    ("eps", "sign", "divisor", "decay", "beta_1", "beta_2", "rate", "root"),
)  # fmt: skip

# -- a step of decoding

LANES = 8  # samples of a panel
WEIGHTS = 48  # rows of them in one part
DEPTH = 128  # channels that a product adds up by themselves: fewer errors, and weights stay in the fastest cache
STRIP = 12  # rows of fp32 weights at once, while the next ones are asked for in the order of memory
PART = 16384  # numbers in one part of one sample's
DONE = -1  # the phase of a step that is over
OF_SAMPLES = ("tokens", "lane", "prompt", "said", "order")  # order: those of one prompt stand together

STEP = plan(
    (
        "n", "lanes", "panels", "threads",  # samples, those of a panel
        "dim", "layers", "heads", "kv_heads", "head_dim", "ffn", "vocab",
        "narrow", "pairs", "narrow_kept",  # whether weights, what they are multiplied with, keys and values are bf16
        "embeddings", "output", "norms", "weights",  # norms [2 layers + 1, D]; weights: int64 [layers, 7], addresses
        "cos", "sin",  # [context, E]
        "kept", "far", "near",  # int64 [layers, 4], addresses: keys and values of prompts and samples, so many tokens
        *OF_SAMPLES,  # int64 [n] each
        "x", "normed", "q", "k", "v", "mixed", "gate", "up",  # panels of so many channels; of pairs where multiplied
        "scratch", "room",  # room: numbers for each thread
        "logits",  # [n, V]
        "phase", "layer", "ticket", "done", "wake",
    ),
    ("eps",),
)  # fmt: skip
SEAT = plan(("plan", "thread"))  # of a thread: the address of a step's plan, and which thread it is

# -- the choice of tokens

DRAW = plan(
    (
        "logits", "rows", "vocab", "side",  # [rows, vocab], overwritten; side: how many parts a choice is among
        "temperatures", "keys", "said",  # int64 [rows] the latter two
        "tokens", "log_probs", "doubtful",  # what is found, [rows]: int64, float64, int64
        "bounds",  # float64 [side]: scratch
    ),
    ("top_p", "noise"),
)  # fmt: skip
