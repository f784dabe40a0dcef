"""What a run or a comparison looks like, for people: one HTML file that loads nothing from elsewhere."""

from slimrank.report.write import page_of, write_report

__all__ = ["page_of", "write_report"]
