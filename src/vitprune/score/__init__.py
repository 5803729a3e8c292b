"""How important each unit of each group is: larger is more important."""

from vitprune.score.registry import METHODS, Method, ScoreInfo, ScoreInputs, Scores, register, score

__all__ = ["METHODS", "Method", "ScoreInfo", "ScoreInputs", "Scores", "register", "score"]
