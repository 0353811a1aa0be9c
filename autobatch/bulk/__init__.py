"""Many instances at once, given as arrays of integers: recorded without Python work for each node.

    expressions.py   `Expressions`: many nodes of one shape, as an array of their numbers; rows of tables
    patterns.py      what one call of a function records, learned from examples
    apply.py         `each`: a function of every element; `scan`: along sequences; `tree`: up trees

Everything recorded here is what the plain program would have recorded: the same nodes, the same numbers.
"""

from autobatch.bulk.apply import each, scan, tree
from autobatch.bulk.expressions import Expressions, rows

__all__ = ["Expressions", "each", "rows", "scan", "tree"]
