"""Pairs from a table of similarities: so many, one to one, with the largest sum."""

import numpy as np
from scipy.optimize import linear_sum_assignment

Matching = list[tuple[int, int]]  # (row, column), by ascending row


def best_matching(similarity: np.ndarray, count: int) -> Matching:
    """The best pairs in any order of columns, by the Hungarian method.

    Exactly `count` of the rows and columns find each other: the others are given to as many partners that stand for
    nobody, and those may not take each other.
    """
    rows, columns = similarity.shape
    size = rows + columns - count
    table = np.zeros((size, size))
    table[:rows, :columns] = similarity
    table[rows:, columns:] = -1e6 * (1 + np.abs(similarity).max())
    chosen = zip(*linear_sum_assignment(table, maximize=True), strict=True)
    return [(int(row), int(column)) for row, column in chosen if row < rows and column < columns]


def best_ordered_matching(similarity: np.ndarray, count: int) -> Matching:
    """The best pairs whose rows and columns both ascend: deeper student layers with deeper teacher layers.

    best[k, i, j] is the largest sum of k pairs among the first i rows and j columns.
    """
    rows, columns = similarity.shape
    best = np.full((count + 1, rows + 1, columns + 1), -np.inf)
    best[0] = 0
    for pairs in range(1, count + 1):
        for row in range(1, rows + 1):
            for column in range(1, columns + 1):
                together = best[pairs - 1, row - 1, column - 1] + similarity[row - 1, column - 1]
                best[pairs, row, column] = max(together, best[pairs, row - 1, column], best[pairs, row, column - 1])
    return retrace(best)


def retrace(best: np.ndarray) -> Matching:
    """From the last cell back along the choices that made it the best."""
    pairs, row, column = (side - 1 for side in best.shape)
    chosen = []
    while pairs:
        if best[pairs, row, column] == best[pairs, row - 1, column]:
            row -= 1
        elif best[pairs, row, column] == best[pairs, row, column - 1]:
            column -= 1
        else:
            pairs, row, column = pairs - 1, row - 1, column - 1
            chosen.append((row, column))
    return chosen[::-1]
