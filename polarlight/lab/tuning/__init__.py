"""Finding a learning rate: short runs over a grid, the optimum between them, and how flat it is.

found = find_lr(train, [0.005, 0.01, 0.02, 0.04], record=Path("lr.jsonl"))
print(found.optimum)
"""

from polarlight.lab.tuning.search import Search, announce, find_lr
from polarlight.lab.tuning.sweep import Edge, Optimum, Sweep

__all__ = ["Edge", "Optimum", "Search", "Sweep", "announce", "find_lr"]
