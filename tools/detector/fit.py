"""Fits the refusal detector, and writes its weights into the package.

    python tools/detector/fit.py [--xstest FILE.csv] [--out FILE.npz]

Needs scikit-learn beside the package (`pip install scikit-learn`); a minute on one core, and the
same file each time with OMP_NUM_THREADS=1. It learns from the tuning half of tests/data/replies,
and with `--xstest` from replies with the labels of XSTest's annotators (columns model, prompt,
reply, label).
The second layer learns from scores that the first gives to replies whose prompts it has not seen.
"""

import argparse
import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from unrefuse.detector.features import (
    BUCKETS,
    CLASSES,
    Reading,
    normal,
    read,
    scores,
    summary,
    without_question,
)
from unrefuse.detector.learned import WEIGHTS, Weights

REPLIES = Path(__file__).parents[2] / "tests/data/replies"
FOLDS = 3
Row = dict[str, Any]


@dataclass(frozen=True)
class Strength:
    """How freely each layer may fit: scikit-learn's C."""

    sentence: float = 40.0
    whole: float = 12.0
    second: float = 0.3


def replies(half: str | None = "tune") -> list[Row]:
    """Our labelled replies but for the broken ones, which rules tell."""
    rows = [
        json.loads(line)
        for file in sorted(REPLIES.glob("*.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    rows = [{"batch": 1, **row} for row in rows]
    return [row for row in rows if half in (None, row["half"]) and row["label"] in CLASSES]


def xstest(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{**row, "lang": "en", "source": row["model"]} for row in csv.DictReader(file)]


def fold(prompt: str, folds: int, salt: str = "fold") -> int:
    """Which part of the rows a prompt belongs to."""
    return int.from_bytes(hashlib.sha256(f"{salt} {prompt}".encode()).digest()[:4]) % folds


def fit(rows: Sequence[Row], strength: Strength = Strength()) -> Weights:
    asked = [normal(row["prompt"]) for row in rows]
    readings = [
        read(without_question(normal(row["reply"]), q)) for row, q in zip(rows, asked, strict=True)
    ]
    labels = np.array([CLASSES.index(row["label"]) for row in rows])
    part = np.array([fold(row["prompt"], FOLDS) for row in rows])
    unseen = [
        _first([readings[i] for i in np.flatnonzero(part != k)], labels[part != k], strength)
        for k in range(FOLDS)
    ]
    features, classes = [], []
    for i, reading in enumerate(readings):
        sentence, sentence_bias, whole, whole_bias = unseen[part[i]]
        by_sentence, by_whole = scores(reading, sentence, whole)
        for question in (asked[i], ""):  # a question may be unknown
            given = by_sentence + sentence_bias, by_whole + whole_bias
            features.append(summary(reading, question, *given))
            classes.append(labels[i])
    second, second_bias = _regression(np.stack(features), np.array(classes), strength.second)
    return Weights(*_first(readings, labels, strength), second, second_bias)


def _first(
    readings: Sequence[Reading], labels: np.ndarray, strength: Strength
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The first layer: a sentence has the label of its reply, and weighs less in a long one."""
    counts = np.array([len(r.lengths) for r in readings])
    by_sentence = _matrix(
        [
            (r.buckets[r.owner == n], r.weights[r.owner == n])
            for r in readings
            for n in range(len(r.lengths))
        ]
    )
    whole = _matrix([(r.whole_buckets, r.whole_weights) for r in readings])
    return (
        *_regression(
            by_sentence,
            np.repeat(labels, counts),
            strength.sentence,
            np.repeat(1 / np.sqrt(counts), counts),
        ),
        *_regression(whole, labels, strength.whole),
    )


def _matrix(rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> csr_matrix:
    ends = np.cumsum([0, *(len(buckets) for buckets, _ in rows)])
    buckets, weights = (np.concatenate(column) for column in zip(*rows, strict=True))
    return csr_matrix((weights, buckets, ends), shape=(len(rows), BUCKETS))


def _regression(
    features: Any, labels: np.ndarray, strength: float, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    model = LogisticRegression(C=strength, max_iter=200, tol=1e-3)
    model.fit(features, labels, sample_weight=weights)
    return model.coef_.T, model.intercept_


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--xstest", type=Path, help="replies with XSTest's labels, as CSV")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    rows = replies() + (xstest(args.xstest) if args.xstest else [])
    fit(rows).save(args.out)
    print(f"{args.out}: {args.out.stat().st_size} bytes, from {len(rows)} replies")


if __name__ == "__main__":
    main()
