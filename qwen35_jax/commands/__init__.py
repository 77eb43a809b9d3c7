"""The commands of ``qwen35``, one file a group; each offers ``add_X_options(parser)`` and ``run_X(args)``."""
