"""An experiment: does distillation teach a small student more than labels do, where there are few of them?

    python -m examples.distillation.run

``run`` is the command and holds the arms, ``task`` writes data whose true distribution is known, ``measure`` compares
exported models with it, and ``report`` makes the table. The other files are the run files of the arms.
"""
