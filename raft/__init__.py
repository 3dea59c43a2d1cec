"""RAFT: align a language model by reward-ranked fine-tuning (arXiv 2304.06767)."""

__version__ = "0.1.0"
