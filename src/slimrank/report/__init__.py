"""What a run looks like, for people."""

from slimrank.report.pictures import perplexity_picture, ranks_picture

__all__ = ["perplexity_picture", "ranks_picture"]
