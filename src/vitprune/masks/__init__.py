"""Pruning while training: learned masks and gates on the groups of a trace."""
