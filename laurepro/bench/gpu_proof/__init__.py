"""What the first minutes on a GPU are spent on: `make gpu-proof`, in the order of value, each step under its own limit.

`__main__.py` starts the steps as commands and needs nothing but Python; `steps.py` has those that are no command of
`laurepro` already; `imported.py` takes the files home, as `laurepro bench import`.
"""
