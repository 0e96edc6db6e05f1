"""Every table of speed and memory, one after the other: data, products, shares, growth, the audit.

    python benchmarks/speed.py --peer-python PEERS/bin/python

One thread, in seconds of the processor where that can be said. The output is Markdown, a heading a
part; --only runs some of them.
"""

from parts import run

PARTS = {
    "data": "speed_data.py --peer-python {peers}",
    "memory": "speed_data.py --memory --memory-n 50000 100000 200000",
    "million": "speed_data.py --memory --memory-n 1000000",
    "products": "speed_model.py products",
    "shares": "shares_model.py",
    "growth": "speed_model.py growth",
    "audit": "speed_model.py audit",
}

if __name__ == "__main__":
    run(__doc__, PARTS)
