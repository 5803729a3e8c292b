"""The only part that joins the stages: load, trace, score, allocate, shrink, recover, evaluate, store, report."""
