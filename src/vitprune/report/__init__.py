"""Tables and pictures: rows first, drawing after."""

from vitprune.report.table import Row, format_row, print_rows
from vitprune.report.widths import WidthRow, draw_widths, width_rows

__all__ = ["Row", "WidthRow", "draw_widths", "format_row", "print_rows", "width_rows"]
