"""One-to-one matchings of a given size with the largest sum of similarities."""

import numpy as np
from scipy.optimize import linear_sum_assignment

Matching = list[tuple[int, int]]  # (row, column), by ascending row


def best_matching(similarity: np.ndarray, count: int) -> Matching:
    """Return the best matching with `count` pairs in any order of columns, by the Hungarian method.

    To obtain exactly `count` pairs, the table is extended by dummy rows and columns that the remaining rows and columns
    are matched with; a large penalty prevents matches between dummies.
    """
    rows, columns = similarity.shape
    size = rows + columns - count
    table = np.zeros((size, size))
    table[:rows, :columns] = similarity
    table[rows:, columns:] = -1e6 * (1 + np.abs(similarity).max())
    assignment = zip(*linear_sum_assignment(table, maximize=True), strict=True)
    return [(int(row), int(column)) for row, column in assignment if row < rows and column < columns]


def best_ordered_matching(similarity: np.ndarray, count: int) -> Matching:
    """Return the best matching whose rows and columns both ascend: deeper student layers with deeper teacher layers.

    Dynamic programming: best[k, i, j] is the largest sum of k pairs among the first i rows and j columns.
    """
    rows, columns = similarity.shape
    best = np.full((count + 1, rows + 1, columns + 1), -np.inf)
    best[0] = 0
    for pairs in range(1, count + 1):
        for row in range(1, rows + 1):
            for column in range(1, columns + 1):
                matched = best[pairs - 1, row - 1, column - 1] + similarity[row - 1, column - 1]
                best[pairs, row, column] = max(matched, best[pairs, row - 1, column], best[pairs, row, column - 1])
    return trace_back(best)


def trace_back(best: np.ndarray) -> Matching:
    """Recover the matching from the table of `best_ordered_matching`, starting at its last cell."""
    pairs, row, column = (side - 1 for side in best.shape)
    matching = []
    while pairs:
        if best[pairs, row, column] == best[pairs, row - 1, column]:
            row -= 1
        elif best[pairs, row, column] == best[pairs, row, column - 1]:
            column -= 1
        else:
            pairs, row, column = pairs - 1, row - 1, column - 1
            matching.append((row, column))
    return matching[::-1]
