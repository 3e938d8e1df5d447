"""tmerge: merge language models of different architectures by optimal transport."""

__version__ = "0.1.0"
