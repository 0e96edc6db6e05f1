"""Every table of accuracy, one after the other: data, exact denoisers, trained networks.

    python benchmarks/accuracy.py --peer-python PEERS/bin/python

The output is Markdown, a heading a part; --only runs some of them.
"""

from parts import run

PARTS = {
    "data": "accuracy_data.py --peer-python {peers}",
    "exact": "accuracy_model.py exact",
    "trained": "accuracy_model.py trained",
}

if __name__ == "__main__":
    run(__doc__, PARTS)
