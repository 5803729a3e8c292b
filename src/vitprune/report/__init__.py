"""Tables and pictures: rows first, drawing after."""

from vitprune.report.answers import Answers
from vitprune.report.comparison import CellResult, Comparison, Difference, Summary
from vitprune.report.comparison_picture import draw_comparison
from vitprune.report.comparison_table import comparison_csv, comparison_json, comparison_markdown, print_comparison
from vitprune.report.domains import DomainCell, DomainScores, DomainStudy
from vitprune.report.domains_json import domains_csv, domains_json
from vitprune.report.domains_study import draw_study
from vitprune.report.domains_table import domains_markdown, print_domains
from vitprune.report.front import Front, FrontPoint, Time, front_csv, front_json, front_markdown, pareto, print_front
from vitprune.report.front_picture import draw_front
from vitprune.report.paired import Hits, Interval, Spread
from vitprune.report.sensitivity import (
    SensitivityRow,
    print_sensitivity,
    sensitivity_csv,
    sensitivity_json,
    sensitivity_markdown,
)
from vitprune.report.sensitivity_picture import draw_sensitivity
from vitprune.report.table import Row, format_row, print_rows
from vitprune.report.widths import WidthRow, draw_widths, width_rows

__all__ = [
    "Answers",
    "CellResult",
    "Comparison",
    "Difference",
    "Front",
    "FrontPoint",
    "Hits",
    "Interval",
    "Row",
    "Spread",
]
__all__ += ["Summary", "Time", "WidthRow", "comparison_csv", "comparison_json", "comparison_markdown"]
__all__ += ["draw_comparison", "draw_front", "draw_widths", "format_row", "front_csv", "front_json", "front_markdown"]
__all__ += ["pareto", "print_comparison", "print_front", "print_rows", "width_rows"]
__all__ += ["SensitivityRow", "draw_sensitivity", "print_sensitivity", "sensitivity_csv", "sensitivity_json"]
__all__ += ["DomainCell", "DomainScores", "DomainStudy", "domains_csv", "domains_json", "sensitivity_markdown"]
__all__ += ["domains_markdown", "draw_study", "print_domains"]
