"""The benchmark suite: tasks that users have, and the peers that a practitioner would take.

``python -m examples.benchmarks.suite`` from a clone, or ``python examples/benchmarks/suite``; see
``README.md`` beside this file.
"""
