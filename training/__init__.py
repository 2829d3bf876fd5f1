"""The school: labelled rows in, a guard model out.

seed rows -> `synthesize` -> reasoning rows -> `rsft` -> a torch model -> `export` -> a model directory ->
`GuardReasonerGuard("path")`; `evaluate` scores any guard on labelled rows.
"""
