"""What the book stands on: its data, its models, their training, its figures.

The library does not need it. It needs matplotlib and scikit-learn (``pip install
minilora[experiments]``); each module says in its first lines what it is for.
"""
