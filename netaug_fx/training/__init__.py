"""The trainer behind ``netaug-fx train``: config, data, loop, checkpoints and report.

Everything here needs the extra ``train`` (``pip install 'netaug_fx[train]'``); the compiler itself does not.
Read `run` first: it is the whole job in one function.
"""
