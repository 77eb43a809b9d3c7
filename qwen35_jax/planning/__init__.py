"""What a program needs before it runs: compilation for chips that are elsewhere, their figures, operations, costs."""
