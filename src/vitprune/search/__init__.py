"""Finding the ratios: plans that are tried on validation images, and searches that decide which to try next."""

from vitprune.search.baselines import BASELINES, baselines
from vitprune.search.curve_plans import curves_for, plan_from, sensitivity_search
from vitprune.search.errors import SearchError, Spent
from vitprune.search.front import front
from vitprune.search.goal import Goal, check_resolution
from vitprune.search.held import held
from vitprune.search.probe import COSTS, Probe
from vitprune.search.prober import Limits, Prober
from vitprune.search.quality import Drop, Judge, Quality, better, drop
from vitprune.search.ratio_search import found, ratio_search
from vitprune.search.record import Record
from vitprune.search.sensitivity import FRACTIONS, Curves, curves_of
from vitprune.search.space import PERS, Axis, Per, Space, space_of

__all__ = ["BASELINES", "COSTS", "PERS", "Axis", "Drop", "Goal", "Judge", "Limits", "Per", "Probe", "Prober", "Quality"]
__all__ += ["Record", "SearchError", "Space", "Spent", "baselines", "better", "check_resolution", "drop", "found"]
__all__ += ["front", "held", "ratio_search", "space_of"]
__all__ += ["FRACTIONS", "Curves", "curves_for", "curves_of", "plan_from", "sensitivity_search"]
